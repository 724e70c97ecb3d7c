package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/test/harness"
)

const (
	ourDomain   = "brands/acme/domains/ours.example"
	theirDomain = "brands/other/domains/theirs.example"
)

// target is an installation with two brands, acme and other, that is attacked.
type target struct {
	*dkimd

	in     *installation
	root   *clientv3.Client
	store  *keystore.Store
	issuer *issuer
	api    dkimv1.KeyManagementClient // as administrator
	access dkimv1.AccessControlClient

	// Resource names that there are, by the pattern of their kind, of brand other
	// where they are of a brand.
	names map[string]string
	// Good credentials, as in the authorization header, by who they are of.
	good map[string]string
	// shown has each credential that was sent, the wrong ones too.
	shown map[string]bool

	kek2    string // URL of a second key-encryption key
	earlier string // output before the last start
	audit   string // file
	addrs   atomic.Uint32
}

// What somebody may try who has no credentials, wrong ones, or those of another
// brand. All of it is refused with the right code and changes nothing; and of
// what was shown and stored meanwhile nothing secret stays behind.
func TestAttacks(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("attackers need loopback addresses of their own")
	}
	g := newTarget(t)
	d := newDay(g)
	d.morning(t)
	g.find(t)

	slow := g.startSlow(t)
	t.Run("credentials", func(t *testing.T) { attackCredentials(t, g) })
	t.Run("other brand", func(t *testing.T) { attackOtherBrand(t, g) })
	t.Run("names", func(t *testing.T) { attackNames(t, g) })
	t.Run("read only", func(t *testing.T) { attackReadOnly(t, g) })
	t.Run("HTTP", func(t *testing.T) { attackHTTP(t, g) })
	t.Run("brute force", func(t *testing.T) { attackBruteForce(t, g) })
	t.Run("request ids", func(t *testing.T) { attackRequestIDs(t, g) })
	t.Run("slow", func(t *testing.T) { slow.check(t) })

	d.evening(t)
	d.mail(t)
	t.Run("secrets", func(t *testing.T) { d.checkSecrets(t) })
}

func newTarget(t *testing.T) *target {
	t.Helper()
	pki := harness.NewPKI(t)
	g := &target{
		in:     &installation{etcd: harness.StartEtcd(t, pki), kek: pki.KEK(t), admin: pki.Client(t, "alice", "admin")},
		issuer: newIssuer(t), kek2: pki.KEK(t), shown: make(map[string]bool),
	}
	g.root = g.in.etcd.Client(t, "root")
	g.store = keystore.New(g.root, callLimit)
	g.dkimd = g.in.newDkimd(t, "dkimd1", g.in.kek)
	g.audit = t.TempDir() + "/audit.log"
	g.args = append(g.args, "--oidc-issuer", g.issuer.URL, "--oidc-audience", "dkimzone", "--oidc-ca", g.issuer.ca, "--audit-log", g.audit, "--log-level", "debug")
	g.launch(t)
	g.waitReady(t)
	g.in.dkimd = []*dkimd{g.dkimd}
	conn := connect(t, g.grpc, tlsConfig(t, g.in.admin))
	g.api, g.access = dkimv1.NewKeyManagementClient(conn), dkimv1.NewAccessControlClient(conn)

	ctx := deadline(t)
	nameServer := &dkimv1.NameServer{Host: "ns1.example.net"}
	if _, err := g.api.CreateZone(ctx, &dkimv1.CreateZoneRequest{ZoneId: zone, Zone: &dkimv1.Zone{NameServers: []*dkimv1.NameServer{nameServer}}}); err != nil {
		t.Fatal(err)
	}
	for brand, domain := range map[string]string{"acme": ourDomain, "other": theirDomain} {
		if _, err := g.api.CreateBrand(ctx, &dkimv1.CreateBrandRequest{BrandId: brand}); err != nil {
			t.Fatal(err)
		}
		if _, err := g.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: domain, Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519}); err != nil {
			t.Fatal(err)
		}
	}
	acme, other := g.newSecret(t, "acme"), g.newSecret(t, "other")
	g.good = map[string]string{
		"secret": basicAuth("acme", acme.GetSecret()), "their secret": basicAuth("other", other.GetSecret()),
		"JWT": "Bearer " + g.issuer.sign(t, map[string]any{"sub": "shop@example.net", "dkimzone_role": "brand", "dkimzone_brand": "acme"}),
	}
	g.names = map[string]string{"brands/*/secrets/*": other.GetName()}
	for who, token := range map[string]*dkimv1.Token{
		"admin": {Role: dkimv1.Role_ROLE_ADMIN}, "token": {Role: dkimv1.Role_ROLE_BRAND, Brand: "brands/acme"},
		"auditor": {Role: dkimv1.Role_ROLE_AUDITOR}, "our auditor": {Role: dkimv1.Role_ROLE_AUDITOR, Brand: "brands/acme"},
		"signer": {Role: dkimv1.Role_ROLE_SIGNER, Subject: "mx1"}, "our signer": {Role: dkimv1.Role_ROLE_SIGNER, Brand: "brands/acme", Subject: "mx2"},
	} {
		made := g.newToken(t, token)
		g.good[who] = "Bearer " + made.GetSecret()
		g.names["tokens/*"] = made.GetName()
	}
	for _, authorization := range g.good {
		g.shown[authorization] = true
	}
	return g
}

func (g *target) newToken(t *testing.T, token *dkimv1.Token) *dkimv1.Token {
	t.Helper()
	made, err := g.access.CreateToken(deadline(t), &dkimv1.CreateTokenRequest{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (g *target) newSecret(t *testing.T, brand string) *dkimv1.BrandSecret {
	t.Helper()
	made, err := g.access.CreateBrandSecret(deadline(t), &dkimv1.CreateBrandSecretRequest{Parent: "brands/" + brand})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (g *target) revokeSecret(t *testing.T, name string) {
	t.Helper()
	if _, err := g.access.RevokeBrandSecret(deadline(t), &dkimv1.RevokeBrandSecretRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
}

// find finds out the names of what there is of brand other.
func (g *target) find(t *testing.T) {
	t.Helper()
	key, err := g.api.PublishKey(deadline(t), &dkimv1.PublishKeyRequest{Parent: theirDomain, Selector: "mailer", PublicKey: publicText(newEd25519(t))})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := dkimv1.NewSignerClient(g.attacker(t, "signer").conn).RegisterSigner(g.as(t, "signer"), &dkimv1.RegisterSignerRequest{})
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(g.names, map[string]string{
		"zones/*": "zones/" + zone, "brands/*": "brands/other", "brands/*/domains/*": theirDomain, "brands/*/domains/*/keys/*": key.GetName(),
		"signers/*": signer.GetName(), "keyEncryption": "keyEncryption",
	})
}

// unchanged fails the test if the store is another one after call than before.
func (g *target) unchanged(t *testing.T, call func()) {
	t.Helper()
	before := dump(t, g.root)
	call()
	if after := dump(t, g.root); after != before {
		t.Errorf("the store has changed (-before +after):\n%s", cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")))
	}
}

func basicAuth(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// attacker is somebody with an address of his own, so that what he does wrong is
// not held against others.
type attacker struct {
	authorization []string
	conn          *grpc.ClientConn
	web           *http.Client
	base          string
}

// attacker returns one with the good credentials of somebody; "" has none.
func (g *target) attacker(t *testing.T, who string) *attacker {
	t.Helper()
	if who == "" {
		return g.stranger(t, nil)
	}
	return g.stranger(t, nil, g.good[who])
}

// stranger returns one with a certificate, if it is not nil, and authorization
// headers.
func (g *target) stranger(t *testing.T, cert *tls.Certificate, authorization ...string) *attacker {
	t.Helper()
	for _, a := range authorization {
		g.shown[a] = true
	}
	config := trusting(t, g.in.admin.CA)
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	dialer := g.dialer()
	conn, err := grpc.NewClient("passthrough:///"+g.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: config.Clone(), DialContext: dialer.DialContext, ForceAttemptHTTP2: true, DisableCompression: true}
	t.Cleanup(func() { conn.Close(); transport.CloseIdleConnections() })
	return &attacker{
		authorization: authorization, conn: conn, base: "https://" + g.http,
		web: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
}

// dialer dials from a loopback address that nobody has used.
func (g *target) dialer() *net.Dialer {
	n := g.addrs.Add(1)
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 3, byte(n>>8), byte(n))}}
}

// as is a context for calls of somebody.
func (g *target) as(t *testing.T, who string) context.Context {
	t.Helper()
	return metadata.AppendToOutgoingContext(deadline(t), "authorization", g.good[who])
}

// call calls any method, and takes one message of a stream.
func (a *attacker) call(t *testing.T, method string, req, answer proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	for _, v := range a.authorization {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
	}
	stream, err := a.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err == nil {
		_ = stream.CloseSend() // what went wrong is told by RecvMsg
	}
	if err := stream.RecvMsg(answer); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// answer is what came back over HTTPS.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

// do makes an HTTP request. Of an answer without end it takes the first part.
func (a *attacker) do(t *testing.T, method, path, body string, edit ...func(*http.Request)) answer {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		req.Body = nil
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header["Authorization"] = a.authorization
	for _, e := range edit {
		e(req)
	}
	resp, err := a.web.Do(req)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	got := answer{status: resp.StatusCode, header: resp.Header}
	if strings.HasSuffix(resp.Header.Get("Content-Type"), "ndjson") {
		part := make([]byte, 4096)
		n, _ := resp.Body.Read(part)
		got.body = string(part[:n])
		return got
	}
	whole, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got.body = string(whole)
	return got
}

// refused fails the test unless an answer is a refusal for a reason.
func (a answer) refused(t *testing.T, status int, reason string) {
	t.Helper()
	if a.status != status || reason != "" && !strings.Contains(a.body, `"`+reason+`"`) {
		t.Errorf("answered %v, want %d %s", a, status, reason)
	}
	if status == http.StatusUnauthorized && len(a.header.Values("WWW-Authenticate")) == 0 {
		t.Error("the answer has no WWW-Authenticate")
	}
	if a.header.Get("Location") != "" {
		t.Errorf("sent to %s", a.header.Get("Location"))
	}
}
