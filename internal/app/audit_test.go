package app

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/audit"
	"github.com/dkimzone/dkimzone/internal/auditlog"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keygen"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/service"
)

// audited is a dkimd on a store in memory.
type audited struct {
	*backend

	fake *keystoretest.Fake
	path string // of the audit log
	ca   *pki.CA
	addr string
}

// newAudited starts one.
func newAudited(t *testing.T) *audited {
	t.Helper()
	dir, logger := t.TempDir(), slog.New(slog.DiscardHandler)
	a := &audited{fake: keystoretest.NewFake(), path: filepath.Join(dir, "audit.log")}
	kek := filepath.Join(dir, "kek.key")
	if err := envelope.CreateKeyFile(kek); err != nil {
		t.Fatal(err)
	}
	keeper, err := envelope.OpenKeeper(t.Context(), "file://"+kek)
	if err != nil {
		t.Fatal(err)
	}
	store := keystore.New(a.fake, time.Minute)
	who, err := (&Access{}).authenticator(store, logger)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := (&Guard{}).open(logger)
	if err != nil {
		t.Fatal(err)
	}
	a.backend = &backend{
		store: store, keeper: keeper, authn: who, guard: guard, access: service.NewAccess(store, who.Forget, time.Now),
		sealer: &checkedSealer{sealer: envelope.NewSealer(keeper, store)}, pool: keygen.New(keygen.Options{Logger: logger}),
	}
	t.Cleanup(a.close)
	a.custody, a.mint = a.newCustody(KEK{}, logger), mint.New(a.pool, a.sealer)
	a.api = service.New(store, a.mint, nil, time.Now, logger)
	stopSigning, err := a.startSigning(t.Context(), Signing{KeyFetchers: []string{"*"}}, logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopSigning)
	account, err := (&Audit{Log: a.path}).open(t.Context(), "", logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := account.close(); err != nil {
			t.Error(err)
		}
	})
	a.keepAccount(account)

	if a.ca, err = pki.EnsureCA(filepath.Join(dir, "pki"), time.Now()); err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.ca.EnsureServer("server", []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := pki.ServerTLS(a.ca.CertFile(), cert, key, logger)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := Listen{GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Metrics: "127.0.0.1:0"}.bind()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bound.close)
	srv, err := newServers(bound, tlsConfig, a.backend, nil, logger)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.grpc.Serve(bound.grpc) // ends with Stop
	}()
	t.Cleanup(func() { srv.grpc.Stop(); <-done })
	a.addr = bound.grpc.Addr().String()
	return a
}

// as is a connection of a caller with a role.
func (a *audited) as(t *testing.T, id pki.Identity) *grpc.ClientConn {
	t.Helper()
	cert, key, err := a.ca.EnsureClient(id.Role+"-"+id.Name, id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := pki.ClientTLS(a.ca.CertFile(), cert, key, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// entries are those of the log, which must be whole, and its text.
func (a *audited) entries(t *testing.T) ([]auditlog.Entry, []byte) {
	t.Helper()
	text, err := os.ReadFile(a.path)
	if err != nil {
		t.Fatal(err)
	}
	var all []auditlog.Entry
	v := auditlog.Verifier{Each: func(e auditlog.Entry) { all = append(all, e) }}
	if err := v.File("audit.log", bytes.NewReader(text)); err != nil || len(v.Breaks()) > 0 {
		t.Errorf("the log is broken: %v %v", err, v.Breaks())
	}
	return all, text
}

// apiMethods are the methods of the API, by the names that interceptors get.
func apiMethods() map[string]protoreflect.MethodDescriptor {
	all := make(map[string]protoreflect.MethodDescriptor)
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for k := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(k)
				all[fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())] = m
			}
		}
		return true
	})
	return all
}

// stuffed is a request with a text in each field that takes one.
func stuffed(d protoreflect.MessageDescriptor, text string) *dynamicpb.Message {
	m := dynamicpb.NewMessage(d)
	stuff(m, text, 3)
	return m
}

func stuff(m protoreflect.Message, text string, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		if fd.IsMap() {
			continue
		}
		var v protoreflect.Value
		switch {
		case fd.Kind() == protoreflect.StringKind:
			v = protoreflect.ValueOfString(text)
		case fd.Kind() == protoreflect.BytesKind:
			v = protoreflect.ValueOfBytes([]byte(text))
		case fd.Kind() == protoreflect.MessageKind && depth > 0 && !strings.HasPrefix(string(fd.Message().FullName()), "google.protobuf."):
			inner := dynamicpb.NewMessage(fd.Message())
			stuff(inner, text, depth-1)
			v = protoreflect.ValueOfMessage(inner)
		default:
			continue
		}
		if fd.IsList() {
			m.Mutable(fd).List().Append(v)
		} else {
			m.Set(fd, v)
		}
	}
}

// call calls a method and returns how it ended. Of a stream at most one message
// is sent and received.
func call(ctx context.Context, conn *grpc.ClientConn, name string, m protoreflect.MethodDescriptor, req proto.Message) error {
	resp := dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingClient() && !m.IsStreamingServer() {
		return conn.Invoke(ctx, name, req, resp)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, name)
	if err != nil {
		return err
	}
	if err := s.SendMsg(req); err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(resp)
}

// fetch fetches a private key, which goes to secrets, as soon as dkimd knows what
// signs.
func fetch(ctx context.Context, conn *grpc.ClientConn, key string, secrets map[string][]byte) error {
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		resp, err := dkimv1.NewSignerClient(conn).FetchPrivateKeys(ctx, &dkimv1.FetchPrivateKeysRequest{Keys: []string{key}})
		if status.Code(err) == codes.Unavailable {
			select {
			case <-poll.C:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return err
		}
		r := resp.GetResults()[0]
		if r.GetError() != nil {
			return status.ErrorProto(r.GetError())
		}
		der := r.GetPrivateKey()
		secrets["fetched key"] = der[len(der)-32:]
		return nil
	}
}

// secretForms are what octets may look like in a text.
func secretForms(secret []byte) [][]byte {
	all := [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret)))}
	for shift := range 3 { // in base64 the octets before them shift them
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString(append(make([]byte, shift), secret...))
			all = append(all, []byte(text[4:len(text)-4]))
		}
	}
	return all
}

// TestNoSecretsInTheAuditLog calls each method, changes something by most of
// them, and looks for every secret that there is: those that were answered or
// sent, private keys that were made, and what stands in fields where it should
// not.
func TestNoSecretsInTheAuditLog(t *testing.T) {
	a := newAudited(t)
	ctx := t.Context()
	admin := a.as(t, pki.Identity{Role: "admin", Name: "alice"})
	api, tokens := dkimv1.NewKeyManagementClient(admin), dkimv1.NewAccessControlClient(admin)
	secrets := make(map[string][]byte)
	succeeded := make(map[string]bool)
	did := func(method string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v %v", method, err, status.Convert(err).Details())
		}
		succeeded[method] = true
	}
	const domain = "brands/acme/domains/spamtrap.dk"
	servers := []*dkimv1.NameServer{{Host: "ns1.example.org"}}
	_, err := api.CreateZone(ctx, &dkimv1.CreateZoneRequest{ZoneId: "keys.example.net", Zone: &dkimv1.Zone{NameServers: servers}})
	did("CreateZone", err)
	_, err = api.UpdateZone(ctx, &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: "zones/keys.example.net", RecordTtlSeconds: 600}})
	did("UpdateZone", err)
	_, err = api.AcceptZoneDeletions(ctx, &dkimv1.AcceptZoneDeletionsRequest{Name: "zones/keys.example.net"})
	did("AcceptZoneDeletions", err)
	_, err = api.CreateBrand(ctx, &dkimv1.CreateBrandRequest{BrandId: "acme"})
	did("CreateBrand", err)
	_, err = api.UpdateBrand(ctx, &dkimv1.UpdateBrandRequest{
		Brand: &dkimv1.Brand{Name: "brands/acme", DisplayName: "Acme", MaxDomains: 7}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name", "max_domains"}},
	})
	did("UpdateBrand", err)
	_, err = api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: domain, Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519})
	did("ProvisionDomain", err)
	_, err = api.UpdateDomain(ctx, &dkimv1.UpdateDomainRequest{Domain: &dkimv1.Domain{Name: domain, RotationPolicy: &dkimv1.RotationPolicy{Interval: durationpb.New(30 * 24 * time.Hour)}}})
	did("UpdateDomain", err)
	_, err = api.RotateDomain(ctx, &dkimv1.RotateDomainRequest{Name: domain, WhenReady: true})
	did("RotateDomain", err)
	seeds := [][]byte{bytes.Repeat([]byte("seedseed"), 4), bytes.Repeat([]byte("SEEDSEED"), 4), bytes.Repeat([]byte("Seed-See"), 4)}
	public := func(i int) string {
		return base64.StdEncoding.EncodeToString(ed25519.NewKeyFromSeed(seeds[i]).Public().(ed25519.PublicKey))
	}
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seeds[2]))
	if err != nil {
		t.Fatal(err)
	}
	imported := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	secrets["imported key"], secrets["imported seed"] = der, seeds[2]
	key, err := api.PublishKey(ctx, &dkimv1.PublishKeyRequest{Parent: domain, Selector: "own1", PublicKey: public(0)})
	did("PublishKey", err)
	_, err = api.BatchPublishKeys(ctx, &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme", Requests: []*dkimv1.PublishKeyRequest{
		{Parent: domain, Selector: "own2", PublicKey: public(1)}, {Parent: domain, Selector: "own3", PublicKey: imported},
	}})
	did("BatchPublishKeys", err)
	_, err = api.ImportKey(ctx, &dkimv1.ImportKeyRequest{Parent: domain, Selector: "own4", PrivateKey: imported})
	did("ImportKey", err)
	_, err = api.DeleteKey(ctx, &dkimv1.DeleteKeyRequest{Name: key.GetName()})
	did("DeleteKey", err)
	described, err := api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: domain})
	if err != nil {
		t.Fatal(err)
	}
	_, err = api.RevokeKey(ctx, &dkimv1.RevokeKeyRequest{Name: described.GetSelectors()[0].GetKey(), Reason: "correct horse"})
	did("RevokeKey", err)
	secrets["reason of a revocation"] = []byte("correct horse")
	token, err := tokens.CreateToken(ctx, &dkimv1.CreateTokenRequest{Token: &dkimv1.Token{Role: dkimv1.Role_ROLE_BRAND, Brand: "brands/acme", Subject: "ci"}})
	did("CreateToken", err)
	secret, err := tokens.CreateBrandSecret(ctx, &dkimv1.CreateBrandSecretRequest{Parent: "brands/acme"})
	did("CreateBrandSecret", err)
	secrets["token"], secrets["secret of a brand"] = []byte(token.GetSecret()), []byte(secret.GetSecret())
	secrets["end of the token"] = secrets["token"][len(secrets["token"])-20:]
	_, err = tokens.RevokeBrandSecret(ctx, &dkimv1.RevokeBrandSecretRequest{Name: secret.GetName()})
	did("RevokeBrandSecret", err)
	_, err = tokens.RevokeToken(ctx, &dkimv1.RevokeTokenRequest{Name: token.GetName()})
	did("RevokeToken", err)
	mx := a.as(t, pki.Identity{Role: "signer", Name: "mx1"})
	_, err = dkimv1.NewSignerClient(mx).RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{})
	did("RegisterSigner", err)
	_, err = dkimv1.NewSignerClient(mx).ReportUse(ctx, &dkimv1.ReportUseRequest{})
	did("ReportUse", err)
	did("FetchPrivateKeys", fetch(ctx, mx, described.GetSelectors()[1].GetKey(), secrets))
	_, err = api.DeleteSigner(ctx, &dkimv1.DeleteSignerRequest{Name: "signers/mx1"})
	did("DeleteSigner", err)

	// What is sealed now, opened.
	entries := a.fake.Dump()
	for k, v := range entries {
		rest, ok := strings.CutPrefix(k, schema.Root+"priv/keys/")
		if !ok {
			continue
		}
		parts := strings.Split(rest, "/")
		name := "brands/" + parts[0] + "/domains/" + parts[1] + "/keys/" + parts[2]
		plain, err := a.sealer.Open(ctx, parts[0], name, []byte(v))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		pair, err := keypair.Unmarshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		der, err := pair.PKCS8()
		if err != nil {
			t.Fatal(err)
		}
		secrets[name], secrets["PKCS #8 of "+name] = plain[1:], der[len(der)-32:]
	}
	if len(secrets) < 15 {
		t.Fatalf("found %d secrets only", len(secrets))
	}

	_, err = api.DeleteDomain(ctx, &dkimv1.DeleteDomainRequest{Name: domain})
	did("DeleteDomain", err)
	_, err = api.DeleteBrand(ctx, &dkimv1.DeleteBrandRequest{Name: "brands/acme"})
	did("DeleteBrand", err)
	_, err = api.DeleteZone(ctx, &dkimv1.DeleteZoneRequest{Name: "zones/keys.example.net"})
	did("DeleteZone", err)

	// What stands where it should not, and callers who may do nothing.
	secrets["pasted"] = []byte("qFJ2-pasted-9x4w")
	nobody := a.as(t, pki.Identity{Role: "auditor", Name: "eve"})
	for name, m := range apiMethods() {
		for _, text := range []string{imported, string(secrets["pasted"]), token.GetSecret()} {
			_ = call(ctx, admin, name, m, stuffed(m.Input(), text)) // nearly all are refused
		}
		_ = call(ctx, nobody, name, m, stuffed(m.Input(), imported)) // nearly all are denied
	}

	all, text := a.entries(t)
	lines := make(map[string]map[string]int) // of each method by outcome
	for _, e := range all {
		method := e.Call[strings.LastIndexByte(e.Call, '/')+1:]
		if lines[method] == nil {
			lines[method] = make(map[string]int)
		}
		lines[method][e.Outcome]++
	}
	for method := range succeeded {
		if lines[method]["OK"] == 0 {
			t.Errorf("%s has no line of its success: %v", method, lines[method])
		}
	}
	for name, m := range apiMethods() {
		if audit.Mutates(name) && len(lines[string(m.Name())]) == 0 {
			t.Errorf("%s has no line", name)
		}
	}
	for what, secret := range secrets {
		for _, form := range secretForms(secret) {
			if bytes.Contains(text, form) {
				t.Errorf("%s is in the log", what)
			}
		}
	}
	for _, mark := range []string{"PRIVATE KEY", "dkz_", "Acme"} {
		if bytes.Contains(text, []byte(mark)) {
			t.Errorf("%q is in the log", mark)
		}
	}
}

// Without its log dkimd changes nothing and goes on reading.
func TestNothingChangesWithoutAnAuditLog(t *testing.T) {
	a := newAudited(t)
	ctx := t.Context()
	api := dkimv1.NewKeyManagementClient(a.as(t, pki.Identity{Role: "admin", Name: "alice"}))
	zone := func(id string) *dkimv1.CreateZoneRequest {
		return &dkimv1.CreateZoneRequest{ZoneId: id, Zone: &dkimv1.Zone{NameServers: []*dkimv1.NameServer{{Host: "ns1.example.org"}}}}
	}
	if _, err := api.CreateZone(ctx, zone("one.example.net")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(a.path)
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	// The first call notices; its change stands, and its line is owed.
	_, err := api.CreateZone(ctx, zone("two.example.net"))
	if status.Convert(err).Message() == "" || !strings.Contains(fmt.Sprint(status.Convert(err).Details()), "AUDIT_FAILED") {
		t.Errorf("CreateZone: %v", err)
	}
	before := a.fake.Dump()
	if _, err := api.CreateZone(ctx, zone("three.example.net")); !strings.Contains(fmt.Sprint(status.Convert(err).Details()), "AUDIT_FAILED") {
		t.Errorf("CreateZone: %v", err)
	}
	if after := a.fake.Dump(); len(after) != len(before) {
		t.Errorf("%d keys in the store, %d before", len(after), len(before))
	}
	if resp, err := api.ListZones(ctx, &dkimv1.ListZonesRequest{}); err != nil || len(resp.GetZones()) != 2 {
		t.Errorf("ListZones: %v, %v", resp, err)
	}
	if err := a.account.readiness().Func(ctx); err == nil {
		t.Error("it is ready")
	}
	if err := a.store.DropRetained(ctx, "acme"); err == nil {
		t.Error("the controller changes something")
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for a.account.Ready() != nil {
		<-poll.C
	}
	if _, err := api.CreateZone(ctx, zone("three.example.net")); err != nil {
		t.Errorf("CreateZone: %v", err)
	}
	var resources []string
	all, _ := a.entries(t)
	for _, e := range all {
		if e.Resource != "" {
			resources = append(resources, e.Resource)
		}
	}
	if got := strings.Join(resources, " "); got != "zones/one.example.net zones/two.example.net zones/three.example.net" {
		t.Errorf("lines of %s", got)
	}
}
