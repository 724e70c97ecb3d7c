package gateway

import (
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

const (
	vaultPrefix = "/vault/v1/"
	// vaultLease is how long a client may keep what it was told, in seconds: the
	// time after which ResolveSigningKeys is to be asked again.
	vaultLease = 300
	// clockSkew is by how much the clock of a client may be late.
	clockSkew = 10 * time.Minute
	// maxVaultList bounds a list, which is one document.
	maxVaultList = 100_000
)

// vault answers as the key-value store of a Vault does, for signers that read
// their keys there: rspamd's use_vault and KumoMTA. It is read only, and shows
// only what signs now.
//
// A path is {mount}/[data/][…/]{domain}[/{selector}]. With data it is that of KV
// version 2, else of version 1. Segments before the domain that have no dot are
// the operator's to choose.
type vault struct {
	signer  dkimv1.SignerClient
	callers dkimv1.CallersClient
	ready   func() error
}

// vaultPath is what a path of the key-value store names.
type vaultPath struct {
	second   bool // KV version 2
	list     bool
	domain   string // "" for all
	selector string // "" for all that sign
}

// vaultRequest makes a request one of this API: its token is the caller's, and
// paths that a client has put together with a slash too many are mended.
func vaultRequest(r *http.Request) (*http.Request, error) {
	clean := r.Clone(r.Context())
	for strings.Contains(clean.URL.Path, "//") {
		clean.URL.Path = strings.ReplaceAll(clean.URL.Path, "//", "/")
		clean.URL.RawPath = strings.ReplaceAll(clean.URL.RawPath, "//", "/")
	}
	if tokens := r.Header.Values("X-Vault-Token"); len(tokens) > 0 {
		if len(tokens) > 1 || r.Header.Get("Authorization") != "" {
			return nil, refuse(codes.Unauthenticated, "UNAUTHENTICATED", "give one token, once")
		}
		clean.Header.Set("Authorization", "Bearer "+tokens[0])
	}
	return clean, nil
}

func (v vault) serve(w http.ResponseWriter, r *http.Request, segments []string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != "LIST" {
		w.Header().Set("Allow", "GET, LIST")
		vaultError(w, http.StatusMethodNotAllowed, "this is for reading only; dkimctl and the API write")
		return
	}
	switch strings.Join(segments, "/") {
	case "sys/health":
		// Asked without a token. A Vault that cannot read its keys yet is sealed, and says so
		// with 503.
		code, sealed := http.StatusOK, v.ready() != nil
		if sealed {
			code = http.StatusServiceUnavailable
		}
		writeJSON(w, code, map[string]any{
			"initialized": true, "sealed": sealed, "standby": false, "performance_standby": false,
			"server_time_utc": time.Now().Unix(), "version": "1.0.0+dkimzone", "cluster_name": "dkimzone",
		})
		return
	case "auth/token/lookup-self":
		v.lookup(w, r)
		return
	}
	if mount, ok := strings.CutPrefix(strings.Join(segments, "/"), "sys/internal/ui/mounts/"); ok {
		v.mount(w, r, mount)
		return
	}
	p, ok := parseVaultPath(segments)
	if r.Method == "LIST" || r.URL.Query().Get("list") == "true" {
		p.list = true
	}
	switch {
	case !ok || p.list != (p.domain == ""):
		vaultError(w, http.StatusNotFound)
	case p.list:
		v.list(w, r)
	case p.selector == "":
		v.domain(w, r, p)
	default:
		v.key(w, r, p)
	}
}

func parseVaultPath(segments []string) (vaultPath, bool) {
	if len(segments) == 0 || segments[0] == "sys" || segments[0] == "auth" {
		return vaultPath{}, false
	}
	var p vaultPath
	rest := segments[1:]
	if len(rest) > 0 && slices.Contains([]string{"data", "metadata"}, rest[0]) {
		p.second, p.list = rest[0] == "data", rest[0] == "metadata"
		rest = rest[1:]
	}
	for len(rest) > 0 && !strings.Contains(rest[0], ".") {
		rest = rest[1:]
	}
	switch len(rest) {
	case 2:
		p.selector = rest[1]
		fallthrough
	case 1:
		p.domain = rest[0]
		return p, !p.list
	case 0:
		return p, true
	}
	return p, false
}

// vaultSelector is an element of what rspamd reads.
type vaultSelector struct {
	Selector   string `json:"selector"`
	Domain     string `json:"domain"`
	Key        string `json:"key"`
	PublicKey  string `json:"pubkey"`
	Algorithm  string `json:"alg"`
	Bits       int    `json:"bits"`
	ValidStart int64  `json:"valid_start"` // seconds of Unix time
	ValidEnd   int64  `json:"valid_end"`
}

// domain shows the keys that sign for a domain. One that nobody has, or for which
// nothing signs, has none, and is no error: rspamd would log one for each
// message.
func (v vault) domain(w http.ResponseWriter, r *http.Request, p vaultPath) {
	found, hold, err := v.keys(r.Context(), p.domain, func(*dkimv1.SigningKey) bool { return true })
	if err != nil {
		vaultFailure(w, err)
		return
	}
	defer clearKeys(found)
	now := time.Now()
	selectors := []vaultSelector{}
	for _, k := range found {
		s := vaultSelector{
			Selector: k.signing.GetSelector(), Domain: k.signing.GetDomain(),
			ValidStart: now.Add(-clockSkew).Unix(), ValidEnd: now.Add(hold).Unix(),
		}
		if err := s.set(k.private); err != nil {
			vaultFailure(w, err)
			return
		}
		selectors = append(selectors, s)
	}
	writeVault(w, p.second, map[string]any{"selectors": selectors})
}

// set fills in the key. Of the forms that rspamd reads, these are read by all its
// versions. The key is one that dkimd has made or looked at: nothing but what the answer
// needs is computed of it, as validating an RSA key takes longer than all else here.
func (s *vaultSelector) set(der []byte) error {
	var outer struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Private   []byte
	}
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 {
		return errors.New("a private key is damaged")
	}
	defer clear(outer.Private)
	switch algorithm := outer.Algorithm.Algorithm; {
	case algorithm.Equal(oidRSA):
		var inner struct { // the beginning of RSAPrivateKey (RFC 8017 §A.1.2)
			Version int
			N       *big.Int
			E       int
		}
		if rest, err := asn1.Unmarshal(outer.Private, &inner); err != nil || len(rest) > 0 {
			return errors.New("a private key is damaged")
		}
		s.Algorithm, s.Bits, s.Key = "rsa", inner.N.BitLen(), toPEM(der)
		spki, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: inner.N, E: inner.E})
		if err != nil {
			return fmt.Errorf("public key: %w", err)
		}
		s.PublicKey = base64.StdEncoding.EncodeToString(spki)
	case algorithm.Equal(oidEd25519):
		var seed []byte
		if rest, err := asn1.Unmarshal(outer.Private, &seed); err != nil || len(rest) > 0 || len(seed) != ed25519.SeedSize {
			return errors.New("a private key is damaged")
		}
		defer clear(seed)
		key := ed25519.NewKeyFromSeed(seed)
		defer clear(key)
		s.Algorithm, s.Bits, s.Key = "ed25519", 8*ed25519.SeedSize, seedText(seed)
		s.PublicKey = base64.StdEncoding.EncodeToString(key[ed25519.SeedSize:])
	default:
		return errors.New("a private key is of a kind that does not sign mail")
	}
	return nil
}

// As RFC 8017 §A.1 and RFC 8410 §3 have them.
var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// seedText is a seed as rspamd reads it. It does not decode what begins with a slash,
// which may be a file's name, but signs nothing and logs it; and it skips a space.
func seedText(seed []byte) string {
	text := base64.StdEncoding.EncodeToString(seed)
	if strings.HasPrefix(text, "/") {
		return " " + text
	}
	return text
}

func toPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// key shows one key by its selector, if it signs for its domain now: KumoMTA asks
// so.
func (v vault) key(w http.ResponseWriter, r *http.Request, p vaultPath) {
	found, _, err := v.keys(r.Context(), p.domain, func(k *dkimv1.SigningKey) bool {
		return strings.EqualFold(k.GetSelector(), p.selector)
	})
	if err != nil {
		vaultFailure(w, err)
		return
	}
	if len(found) == 0 {
		vaultError(w, http.StatusNotFound)
		return
	}
	defer clearKeys(found)
	text := toPEM(found[0].private)
	writeVault(w, p.second, map[string]any{"key": text, "selector": found[0].signing.GetSelector(), "domain": found[0].signing.GetDomain()})
}

// vaultKey is a key that signs now.
type vaultKey struct {
	signing *dkimv1.SigningKey
	private []byte // PKCS #8
}

// clearKeys overwrites private keys, as far as they are not part of an answer.
func clearKeys(keys []vaultKey) {
	for _, k := range keys {
		clear(k.private)
	}
}

// keys returns those of the keys which sign for a domain that wanted says, and
// how long they may be used. When one ceased to sign between the two calls that this
// takes, both are made once more; what then is no longer so is left out.
func (v vault) keys(ctx context.Context, domain string, wanted func(*dkimv1.SigningKey) bool) (found []vaultKey, hold time.Duration, err error) {
	for again := true; ; again = false {
		answer, err := v.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: domainName("-", domain)})
		if status.Code(err) == codes.NotFound {
			return nil, 0, nil
		}
		if err != nil {
			return nil, 0, err
		}
		signing := slices.DeleteFunc(answer.GetKeys(), func(k *dkimv1.SigningKey) bool { return !wanted(k) })
		if len(signing) == 0 {
			return nil, 0, nil
		}
		if found, err = v.fetch(ctx, signing); err != nil {
			return nil, 0, err
		}
		if len(found) == len(signing) || !again {
			return found, answer.GetHoldDuration().AsDuration(), nil
		}
		clearKeys(found)
	}
}

// fetch returns the private halves of the keys that still sign.
func (v vault) fetch(ctx context.Context, signing []*dkimv1.SigningKey) ([]vaultKey, error) {
	req := &dkimv1.FetchPrivateKeysRequest{Transient: true}
	for _, k := range signing {
		req.Keys = append(req.Keys, k.GetKey())
	}
	fetched, err := v.signer.FetchPrivateKeys(ctx, req)
	if err != nil {
		return nil, err
	}
	var found []vaultKey
	for i, res := range fetched.GetResults() {
		switch e := res.GetError(); {
		case e == nil && res.GetSigning():
			found = append(found, vaultKey{signing[i], res.GetPrivateKey()})
		case e != nil && codes.Code(e.GetCode()) == codes.Unavailable: //nolint:gosec // a gRPC code
			return nil, status.ErrorProto(e)
		}
	}
	return found, nil
}

// list names the domains that sign with keys of their own.
func (v vault) list(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel() // ends the watch
	stream, err := v.signer.WatchSigningKeys(ctx, &dkimv1.WatchSigningKeysRequest{Parent: "brands/-"})
	names := []string{}
	for err == nil {
		var resp *dkimv1.WatchSigningKeysResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		for _, d := range resp.GetDomains() {
			if len(d.GetKeys()) > 0 {
				names = append(names, lastPart(d.GetName()))
			}
		}
		if len(names) > maxVaultList {
			vaultError(w, http.StatusBadRequest, fmt.Sprintf("there are more than %d domains; use dkimctl domain list", maxVaultList))
			return
		}
		if resp.GetSynced() {
			slices.Sort(names)
			writeVault(w, false, map[string]any{"keys": slices.Compact(names)})
			return
		}
	}
	vaultFailure(w, err)
}

// lookup tells a client that its token is good, and whose it is.
func (v vault) lookup(w http.ResponseWriter, r *http.Request) {
	caller, err := v.callers.GetCaller(r.Context(), &dkimv1.GetCallerRequest{})
	if err != nil {
		vaultFailure(w, err)
		return
	}
	writeVault(w, false, map[string]any{
		"display_name": caller.GetSubject(), "type": "service", "renewable": false, "policies": []string{strings.ToLower(strings.TrimPrefix(caller.GetRole().String(), "ROLE_"))},
	})
}

// mount tells a client that what it asks for is a key-value store. Of which
// version the client decides by its paths: both are there.
func (v vault) mount(w http.ResponseWriter, r *http.Request, path string) {
	if _, err := v.callers.GetCaller(r.Context(), &dkimv1.GetCallerRequest{}); err != nil {
		vaultFailure(w, err)
		return
	}
	name, _, _ := strings.Cut(path, "/")
	writeVault(w, false, map[string]any{"path": name + "/", "type": "kv", "options": map[string]string{"version": "2"}})
}

// writeVault answers with data, in the form of a version of the key-value store.
func writeVault(w http.ResponseWriter, second bool, data map[string]any) {
	doc := map[string]any{
		"request_id": w.Header().Get("X-Request-Id"), "lease_id": "", "lease_duration": vaultLease, "renewable": false,
		"wrap_info": nil, "warnings": nil, "auth": nil, "data": data,
	}
	if second {
		doc["data"] = map[string]any{"data": data, "metadata": map[string]any{
			"created_time": time.Now().UTC().Format(time.RFC3339Nano), "custom_metadata": nil,
			"deletion_time": "", "destroyed": false, "version": 1,
		}}
	}
	writeJSON(w, http.StatusOK, doc)
}

// vaultFailure answers with an error of the service in the form of Vault's, whose
// clients know 403 for what they may not, whether they are known or not.
func vaultFailure(w http.ResponseWriter, err error) {
	if errors.Is(err, io.EOF) {
		err = status.Error(codes.Unavailable, "dkimd is stopping")
	}
	st := status.Convert(err)
	code := runtime.HTTPStatusFromCode(st.Code())
	if st.Code() == codes.Unauthenticated {
		code = http.StatusForbidden
	}
	vaultError(w, code, st.Message())
}

func vaultError(w http.ResponseWriter, code int, messages ...string) {
	if messages == nil {
		messages = []string{}
	}
	body, err := json.Marshal(map[string]any{"errors": messages})
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"errors":[]}`)
	}
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the caller may have gone
}
