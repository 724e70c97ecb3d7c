package e2e_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t)
	api := s.api(t)
	contents := func() string { return visible(t, api, s.dns) }
	seedRefusals(t, api)

	t.Run("grpc", func(t *testing.T) { checkRefusals(t, api, contents) })
	t.Run("dkimctl", func(t *testing.T) { checkCommandRefusals(t, s.client, contents) })
	t.Run("certificates", func(t *testing.T) {
		before := contents()
		checkStrangers(t, s.admin(), s.grpc, s.http)
		if after := contents(); after != before {
			t.Errorf("the store has changed (-before +after):\n%s", cmp.Diff(before, after))
		}
	})
	t.Run("health and reflection", func(t *testing.T) { checkHealthAndReflection(t, s) })
	t.Run("HTTPS with a certificate", func(t *testing.T) {
		conn, err := tls.Dial("tcp", s.http, tlsConfig(t, s.admin()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 200 ") {
			t.Errorf("GET /healthz: %q, %v", answer, err)
		}
	})
}

// checkHealthAndReflection asks what general tools ask.
func checkHealthAndReflection(t *testing.T, s *standalone) {
	t.Helper()
	conn := connect(t, s.grpc, tlsConfig(t, s.admin()))
	resp, err := healthpb.NewHealthClient(conn).Check(deadline(t), &healthpb.HealthCheckRequest{Service: "dkim.v1.KeyManagement"})
	if err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", resp, err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil || !strings.Contains(answer.String(), "dkim.v1.KeyManagement") {
		t.Errorf("reflection: %v, %v", answer, err)
	}
}

// visible is all that can be seen of a store from outside.
func visible(t *testing.T, api dkimv1.KeyManagementClient, server string) string {
	t.Helper()
	ctx := deadline(t)
	var b strings.Builder
	show := func(m proto.Message, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(prototext.Format(m))
	}
	zones, err := api.ListZones(ctx, &dkimv1.ListZonesRequest{})
	show(zones, err)
	brands, err := api.ListBrands(ctx, &dkimv1.ListBrandsRequest{})
	show(brands, err)
	domains, err := api.ListDomains(ctx, &dkimv1.ListDomainsRequest{Parent: "brands/-", PageSize: 1000})
	for _, d := range domains.GetDomains() { // what is seen and decided changes by itself
		d.EffectiveRotationPolicy, d.Conditions, d.NextRotationTime, d.NextCheckTime = nil, nil, nil, nil
		for _, s := range d.GetSelectors() {
			s.CnameCheck, s.RecordCheck = nil, nil
		}
	}
	show(domains, err)
	for _, d := range domains.GetDomains() {
		keys, err := api.ListKeys(ctx, &dkimv1.ListKeysRequest{Parent: d.GetName()})
		show(keys, err)
	}
	for _, z := range zones.GetZones() {
		serial, err := soaSerial(server, strings.TrimPrefix(z.GetName(), "zones/"))
		fmt.Fprintln(&b, z.GetName(), serial, err)
	}
	return b.String()
}

// Names that seedRefusals makes.
const (
	seededDomain = "brands/refused-acme/domains/spamtrap.dk"
	seededOther  = "brands/refused-other"
)

// seedRefusals makes what the refused calls run into: two brands, of which one
// has a domain with two Ed25519 keys that has been rotated once and a published
// key in the selector "mailer".
func seedRefusals(t *testing.T, api dkimv1.KeyManagementClient) {
	t.Helper()
	ctx := deadline(t)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []string{"refused-acme", "refused-other"} {
		must(api.CreateBrand(ctx, &dkimv1.CreateBrandRequest{BrandId: b}))
	}
	must(api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: seededDomain, Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519}))
	must(api.PublishKey(ctx, &dkimv1.PublishKeyRequest{Parent: seededDomain, Selector: "mailer", PublicKey: seededKey}))
}

// seededKey is the public key that stands in the selector "mailer".
var seededKey = publicText(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))

type refusal struct {
	name   string
	call   func(ctx context.Context) error
	code   codes.Code
	reason string // of the ErrorInfo; "" where gRPC itself refuses
}

func calling[Req, Resp any](method func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := method(ctx, req)
		return err
	}
}

func refusals(t *testing.T, api dkimv1.KeyManagementClient) []refusal {
	t.Helper()
	var all []refusal
	add := func(name string, code codes.Code, reason string, call func(context.Context) error) {
		all = append(all, refusal{name, call, code, reason})
	}

	provision := func(name string) func(context.Context) error {
		return calling(api.ProvisionDomain, &dkimv1.ProvisionDomainRequest{Name: name})
	}
	for _, d := range badDomains {
		add("domain: "+d.name, codes.InvalidArgument, "INVALID_DOMAIN", provision("brands/refused-acme/domains/"+d.domain))
	}
	add("no domain name", codes.InvalidArgument, "INVALID_NAME", provision("brands/refused-acme"))
	add("unknown brand", codes.NotFound, "BRAND_NOT_FOUND", provision("brands/nobody/domains/example.org"))
	add("bad brand", codes.InvalidArgument, "INVALID_BRAND", provision("brands/No_Body/domains/example.org"))
	add("domain of another brand", codes.AlreadyExists, "DOMAIN_CLAIMED", provision(seededOther+"/domains/spamtrap.dk"))

	for _, p := range []struct {
		name, reason string
		code         codes.Code
		req          *dkimv1.ProvisionDomainRequest
	}{
		{"unknown algorithm", "INVALID_ALGORITHM", codes.InvalidArgument, &dkimv1.ProvisionDomainRequest{Algorithm: 99}},
		{"other algorithm", "ALGORITHM_DIFFERS", codes.FailedPrecondition, &dkimv1.ProvisionDomainRequest{Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048}},
		{"TTL of a minute less a second", "INVALID_TTL", codes.InvalidArgument, &dkimv1.ProvisionDomainRequest{TtlSeconds: 59}},
		{"TTL of a day and a second", "INVALID_TTL", codes.InvalidArgument, &dkimv1.ProvisionDomainRequest{TtlSeconds: 86401}},
		{"negative TTL", "INVALID_TTL", codes.InvalidArgument, &dkimv1.ProvisionDomainRequest{TtlSeconds: -1}},
		{"selector with an underscore", "INVALID_SELECTOR", codes.InvalidArgument, withSelectors("a_b", "c")},
		{"selector twice", "INVALID_SELECTOR", codes.InvalidArgument, withSelectors("a", "A")},
		{"a selector alone in its algorithm", "INVALID_SELECTOR", codes.InvalidArgument, &dkimv1.ProvisionDomainRequest{
			Selectors: []*dkimv1.SelectorSpec{{Selector: "solo", Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048}},
		}},
		{"selector of a published key", "SELECTOR_IN_USE", codes.FailedPrecondition, withSelectors("mailer", "other")},
		{"selector too long for the label", "SELECTOR_TOO_LONG", codes.FailedPrecondition, withSelectors(strings.Repeat("s", 60), strings.Repeat("t", 60))},
	} {
		p.req.Name = seededDomain
		add("provision: "+p.name, p.code, p.reason, calling(api.ProvisionDomain, p.req))
	}

	publish := func(selector, key string, ttl int32) func(context.Context) error {
		return calling(api.PublishKey, &dkimv1.PublishKeyRequest{Parent: seededDomain, Selector: selector, PublicKey: key, TtlSeconds: ttl})
	}
	fresh := publicText(newEd25519(t))
	for name, key := range privateKeys(t) {
		add("publish: private key as "+name, codes.InvalidArgument, "PRIVATE_KEY_GIVEN", publish("new", key, 0))
	}
	add("publish: 1024-bit RSA key", codes.InvalidArgument, "KEY_SIZE_REFUSED", publish("new", shortRSA(t), 0))
	add("publish: ECDSA key", codes.InvalidArgument, "INVALID_PUBLIC_KEY", publish("new", publicECDSA(t), 0))
	add("publish: nonsense", codes.InvalidArgument, "INVALID_PUBLIC_KEY", publish("new", "v=DKIM1; p=!", 0))
	add("publish: nothing", codes.InvalidArgument, "INVALID_PUBLIC_KEY", publish("new", "", 0))
	add("publish: TTL", codes.InvalidArgument, "INVALID_TTL", publish("new", fresh, 86401))
	add("publish: bad selector", codes.InvalidArgument, "INVALID_SELECTOR", publish("new.", fresh, 0))
	add("publish: managed selector", codes.FailedPrecondition, "SELECTOR_IN_USE", publish("selector1", fresh, 0))
	add("publish: used selector", codes.FailedPrecondition, "SELECTOR_IN_USE", publish("mailer", fresh, 0))
	add("publish: same key twice", codes.AlreadyExists, "KEY_PUBLISHED", publish("new", seededKey, 0))
	add("publish: message of 20 MB", codes.ResourceExhausted, "", publish("new", strings.Repeat("A", 20<<20), 0))

	const stale = "no-such-etag"
	for name, call := range map[string]func(context.Context) error{
		"rotate domain": calling(api.RotateDomain, &dkimv1.RotateDomainRequest{Name: seededDomain, Etag: stale}),
		"delete domain": calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: seededDomain, Etag: stale}),
		"delete key":    calling(api.DeleteKey, &dkimv1.DeleteKeyRequest{Name: keyIn(t, api, "mailer"), Etag: stale}),
		"update zone":   calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: "zones/" + zone, Etag: stale, RecordTtlSeconds: 60}}),
		"delete zone":   calling(api.DeleteZone, &dkimv1.DeleteZoneRequest{Name: "zones/" + zone, Etag: stale}),
		"update brand":  calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: seededOther, Etag: stale, DisplayName: "x"}}),
		"delete brand":  calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: seededOther, Etag: stale}),
	} {
		add("stale etag: "+name, codes.Aborted, "ETAG_MISMATCH", call)
	}
	for name, call := range map[string]func(context.Context) error{
		"zones":   calling(api.ListZones, &dkimv1.ListZonesRequest{PageSize: -1}),
		"brands":  calling(api.ListBrands, &dkimv1.ListBrandsRequest{PageSize: -1}),
		"domains": calling(api.ListDomains, &dkimv1.ListDomainsRequest{Parent: "brands/-", PageSize: -1}),
		"keys":    calling(api.ListKeys, &dkimv1.ListKeysRequest{Parent: seededDomain, PageSize: -1}),
	} {
		add("page size -1: "+name, codes.InvalidArgument, "INVALID_PAGE_SIZE", call)
	}
	add("page token", codes.InvalidArgument, "INVALID_PAGE_TOKEN", calling(api.ListDomains, &dkimv1.ListDomainsRequest{Parent: "brands/-", PageToken: "x"}))
	add("filter", codes.InvalidArgument, "INVALID_FILTER", calling(api.ListDomains, &dkimv1.ListDomainsRequest{Parent: "brands/-", Filter: "color = red"}))
	add("watch from a bad token", codes.InvalidArgument, "INVALID_RESUME_TOKEN", func(ctx context.Context) error {
		stream, err := api.WatchDomains(ctx, &dkimv1.WatchDomainsRequest{Parent: "brands/-", ResumeToken: "x"})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	})

	add("rotate to a standby that is not proven", codes.FailedPrecondition, "STANDBY_NOT_PROVEN", calling(api.RotateDomain, &dkimv1.RotateDomainRequest{Name: seededDomain}))
	add("delete a managed key", codes.FailedPrecondition, "KEY_MANAGED", calling(api.DeleteKey, &dkimv1.DeleteKeyRequest{Name: keyIn(t, api, "selector1")}))
	add("get an unknown key", codes.NotFound, "KEY_NOT_FOUND", calling(api.GetKey, &dkimv1.GetKeyRequest{Name: seededDomain + "/keys/x"}))
	add("get an unknown domain", codes.NotFound, "DOMAIN_NOT_FOUND", calling(api.GetDomain, &dkimv1.GetDomainRequest{Name: "brands/refused-acme/domains/example.org"}))
	add("delete the domain of another brand", codes.NotFound, "DOMAIN_NOT_FOUND", calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: seededOther + "/domains/spamtrap.dk"}))
	add("create a brand again", codes.AlreadyExists, "BRAND_EXISTS", calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "refused-acme"}))
	add("create a brand in an unknown zone", codes.FailedPrecondition, "ZONE_NOT_FOUND", calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "x", Brand: &dkimv1.Brand{Zone: "zones/example.org"}}))
	add("delete a brand with domains", codes.FailedPrecondition, "BRAND_NOT_EMPTY", calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: "brands/refused-acme"}))
	add("move a brand to another zone", codes.InvalidArgument, "IMMUTABLE_FIELD", calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: seededOther, Zone: "zones/example.org"}}))
	nameServers := []*dkimv1.NameServer{{Host: "ns.example.org"}}
	add("create a zone again", codes.AlreadyExists, "ZONE_EXISTS", calling(api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: zone, Zone: &dkimv1.Zone{NameServers: nameServers}}))
	add("create a bad zone", codes.InvalidArgument, "INVALID_ZONE", calling(api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: "a_b.example", Zone: &dkimv1.Zone{NameServers: nameServers}}))
	add("create a zone without name servers", codes.InvalidArgument, "INVALID_ZONE", calling(api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: "example.org"}))
	add("delete a zone in use", codes.FailedPrecondition, "ZONE_IN_USE", calling(api.DeleteZone, &dkimv1.DeleteZoneRequest{Name: "zones/" + zone}))
	return all
}

var badDomains = []struct{ name, domain string }{
	{"empty", ""},
	{"too long", strings.Repeat("a.", 126) + "example"},
	{"label too long", strings.Repeat("a", 64) + ".example"},
	{"underscore", "spam_trap.dk"},
	{"trailing dot", "spamtrap.dk."},
	{"IPv4 address", "192.0.2.1"},
	{"IPv6 address", "2001:db8::1"},
	{"address literal", "[192.0.2.1]"},
	{"wildcard", "*.example.com"},
	{"public suffix", "co.uk"},
	{"single label", "localhost"},
	{"space", "spam trap.dk"},
	{"hyphen first", "-spamtrap.dk"},
	{"empty label", "spamtrap..dk"},
	{"bad IDNA", "xn--a.example"},
}

func withSelectors(names ...string) *dkimv1.ProvisionDomainRequest {
	req := &dkimv1.ProvisionDomainRequest{Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519}
	for _, n := range names {
		req.Selectors = append(req.Selectors, &dkimv1.SelectorSpec{Selector: n})
	}
	return req
}

// keyIn is the name of the key that stands in a selector of the seeded domain.
func keyIn(t *testing.T, api dkimv1.KeyManagementClient, selector string) string {
	t.Helper()
	d, err := api.GetDomain(deadline(t), &dkimv1.GetDomainRequest{Name: seededDomain})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.GetSelectors() {
		if s.GetSelector() == selector {
			return s.GetKey()
		}
	}
	t.Fatalf("%s has no selector %s", seededDomain, selector)
	return ""
}

// checkRefusals makes each refused call on what seedRefusals made. contents is
// all of the store, which must stay as it is.
func checkRefusals(t *testing.T, api dkimv1.KeyManagementClient, contents func() string) {
	t.Helper()
	before := contents()
	for _, r := range refusals(t, api) {
		t.Run(r.name, func(t *testing.T) {
			err := r.call(deadline(t))
			checkStatus(t, err, r.code, r.reason)
			if after := contents(); after != before {
				t.Errorf("it has changed the store (-before +after):\n%s", cmp.Diff(before, after))
				before = after
			}
		})
	}
}

func checkStatus(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	if err == nil || st.Code() != code {
		t.Fatalf("error is %v, want code %v", err, code)
	}
	if strings.Contains(st.String(), "PRIVATE KEY") {
		t.Errorf("error repeats a private key: %v", err)
	}
	var got *errdetails.ErrorInfo
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			got = info
		}
	}
	if reason == "" && got == nil {
		return
	}
	if got.GetReason() != reason || got.GetDomain() != "dkimzone" || st.Message() == "" {
		t.Errorf("error %v has ErrorInfo %v, want reason %s", err, got, reason)
	}
}

// checkStrangers connects without a certificate, with one of another CA and with
// one of this CA that is for something else. None may get anything.
func checkStrangers(t *testing.T, admin harness.Cert, grpcAddr, httpAddr string) {
	t.Helper()
	foreign := tlsConfig(t, harness.NewPKI(t).Client(t, "admin", "admin"))
	foreign.RootCAs = trusting(t, admin.CA).RootCAs
	t.Run("no certificate", func(t *testing.T) {
		_, err := dial(t, grpcAddr, trusting(t, admin.CA)).ListZones(deadline(t), &dkimv1.ListZonesRequest{})
		checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
		ctx := metadata.AppendToOutgoingContext(deadline(t), "authorization", "Bearer dkz_aaaaaaaaaaaa_"+strings.Repeat("A", 32))
		_, err = dial(t, grpcAddr, trusting(t, admin.CA)).ListZones(ctx, &dkimv1.ListZonesRequest{})
		checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
	})
	t.Run("wrong credentials with a certificate", func(t *testing.T) {
		ctx := metadata.AppendToOutgoingContext(deadline(t), "authorization", "Basic YWNtZTphY21l")
		_, err := dial(t, grpcAddr, tlsConfig(t, admin)).ListZones(ctx, &dkimv1.ListZonesRequest{})
		checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
	})
	t.Run("certificate of another CA", func(t *testing.T) {
		for what, addr := range map[string]string{"gRPC": grpcAddr, "HTTPS": httpAddr} {
			if answer, err := handshake(addr, foreign); err == nil || len(answer) > 0 {
				t.Errorf("%s: got %q, %v; want nothing but a refused handshake", what, answer, err)
			}
		}
		_, err := dial(t, grpcAddr, foreign).ListZones(deadline(t), &dkimv1.ListZonesRequest{})
		checkStatus(t, err, codes.Unavailable, "")
	})
}

// handshake connects as an HTTP/2 client does and returns what the server says
// to it.
func handshake(addr string, cfg *tls.Config) ([]byte, error) {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		return nil, err
	}
	answer := make([]byte, 512)
	n, err := conn.Read(answer)
	return answer[:n], err
}

// checkCommandRefusals is what an operator sees of refusals.
func checkCommandRefusals(t *testing.T, c client, contents func() string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	type refused struct {
		name string
		args string
		code int
		want string
	}
	tests := []refused{
		{"unknown brand", "domain provision nobody example.org", 1, "[BRAND_NOT_FOUND]"},
		{"second brand", "domain provision refused-other spamtrap.dk", 1, "[DOMAIN_CLAIMED]"},
		{"1024-bit algorithm", "domain provision refused-acme example.org --algorithm rsa1024", 2, "rsa1024"},
		{"1024-bit key", "key publish refused-acme spamtrap.dk new --public-key-file " + write("short.pem", shortRSA(t)), 1, "1024"},
		{"TTL too short", "key publish refused-acme spamtrap.dk new --ttl 59 --public-key-file " + write("good", publicText(newEd25519(t))), 1, "[INVALID_TTL]"},
		{"same key under another name", "key publish refused-acme spamtrap.dk new --public-key-file " + write("seeded", seededKey), 1, "[KEY_PUBLISHED]"},
		{"no key file", "key publish refused-acme spamtrap.dk new --public-key-file " + filepath.Join(dir, "none"), 1, "no such file"},
		{"stale etag", "domain rotate refused-acme spamtrap.dk --etag stale", 1, "[ETAG_MISMATCH]"},
		{"stale etag of a deletion", "domain delete refused-acme spamtrap.dk --yes --etag stale", 1, "[ETAG_MISMATCH]"},
		{"standby not proven", "domain rotate refused-acme spamtrap.dk", 1, "[STANDBY_NOT_PROVEN]"},
		{"brand again", "brand create refused-acme", 1, "[BRAND_EXISTS]"},
		{"unknown domain", "domain cnames refused-acme example.org", 1, "[DOMAIN_NOT_FOUND]"},
		{"bad filter", "domain list --filter color=red", 1, "[INVALID_FILTER]"},
		{"missing argument", "domain provision refused-acme", 2, "DOMAIN"},
		{"unknown command", "domain frobnicate", 2, "frobnicate"},
		{"unknown output form", "zone list -o xml", 2, "json"},
		{"nobody there", "zone list --address " + harness.Addr(t), 1, "cannot reach dkimd"},
	}
	for _, d := range badDomains {
		if !strings.Contains(d.domain, " ") && d.domain != "" && !strings.HasPrefix(d.domain, "-") {
			tests = append(tests, refused{"domain: " + d.name, "domain provision refused-acme " + d.domain, 1, "[INVALID_DOMAIN]"})
		}
	}
	for name, text := range privateKeys(t) {
		file := write(strings.ReplaceAll(name, " ", "-"), text)
		tests = append(tests, refused{"private key as " + name, "key publish refused-acme spamtrap.dk new --public-key-file " + file, 1, "private key"})
	}
	before := contents()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkFailed(t, c.run(t, strings.Fields(tt.args)...), tt.code, tt.want)
		})
	}
	t.Run("empty domain", func(t *testing.T) {
		checkFailed(t, c.run(t, "domain", "provision", "refused-acme", ""), 1, "[INVALID_DOMAIN]")
	})
	t.Run("no configuration", func(t *testing.T) {
		checkFailed(t, harness.Run(t, t.TempDir(), harness.Dkimctl, nil, "zone", "list"), 1, "dkimctl.yaml")
	})
	if after := contents(); after != before {
		t.Errorf("the store has changed (-before +after):\n%s", cmp.Diff(before, after))
	}
}

func checkFailed(t *testing.T, r harness.Result, code int, want string) {
	t.Helper()
	if r.Code != code || r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, want) {
		t.Errorf("exit code %d, standard output %q, standard error %q; want code %d and one line with %q", r.Code, r.Stdout, r.Stderr, code, want)
	}
}
