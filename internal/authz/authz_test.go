package authz_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/health/grpc_health_v1"
	_ "google.golang.org/grpc/reflection/grpc_reflection_v1"
	_ "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/authz"
)

// What each role may call, by the letters of the roles: Admin, Brand, Signer,
// aUditor; X: only with the permission to export keys. In lower case, the second word says what one who is bound to brand
// acme may ask about: "own" things only; also leave the brand "open"; or "-":
// nothing.
var want = map[string]string{
	"KeyManagement/CreateZone":          "A -",
	"KeyManagement/GetZone":             "AU -",
	"KeyManagement/ListZones":           "AU -",
	"KeyManagement/UpdateZone":          "A -",
	"KeyManagement/DeleteZone":          "A -",
	"KeyManagement/AcceptZoneDeletions": "A -",
	"KeyManagement/ExportZone":          "AU -",
	"KeyManagement/CreateBrand":         "A -",
	"KeyManagement/GetBrand":            "ABU own name",
	"KeyManagement/ListBrands":          "ABU open",
	"KeyManagement/UpdateBrand":         "A -",
	"KeyManagement/DeleteBrand":         "A -",
	"KeyManagement/ProvisionDomain":     "AB own name",
	"KeyManagement/GetDomain":           "ABU own name",
	"KeyManagement/ListDomains":         "ABU own parent",
	"KeyManagement/UpdateDomain":        "AB own domain.name",
	"KeyManagement/DeleteDomain":        "AB own name",
	"KeyManagement/CheckDomain":         "AB own name",
	"KeyManagement/RotateDomain":        "AB own name",
	"KeyManagement/PlanRotation":        "ABU own parent",
	"KeyManagement/ListDomainEvents":    "ABU own parent",
	"KeyManagement/WatchDomains":        "ABU own parent",
	"KeyManagement/ListKeys":            "ABU own parent",
	"KeyManagement/GetKey":              "ABU own name",
	"KeyManagement/PublishKey":          "AB own parent",
	"KeyManagement/ImportKey":           "AB own parent",
	"KeyManagement/BatchPublishKeys":    "AB own parent requests.parent",
	"KeyManagement/DeleteKey":           "AB own name",
	"KeyManagement/RevokeKey":           "AB own name",
	"KeyManagement/GetSigner":           "AU -",
	"KeyManagement/ListSigners":         "AU -",
	"KeyManagement/DeleteSigner":        "A -",

	"Signer/RegisterSigner":     "AS open signer.brand",
	"Signer/ReportUse":          "AS own domains.domain",
	"Signer/ResolveSigningKeys": "ASU open name",
	"Signer/WatchSigningKeys":   "AS open parent",
	"Signer/Sign":               "AS own digests.key",
	"Signer/FetchPrivateKeys":   "AS own keys",

	"AccessControl/CreateToken":       "A -",
	"AccessControl/ListTokens":        "AU -",
	"AccessControl/RevokeToken":       "A -",
	"AccessControl/CreateBrandSecret": "A -",
	"AccessControl/ListBrandSecrets":  "AU own parent",
	"AccessControl/RevokeBrandSecret": "A -",

	"Callers/GetCaller": "ABSU open",

	"Custody/GetKeyEncryption":    "AU -",
	"Custody/RotateKeyEncryption": "A -",
	"Custody/ExportPrivateKey":    "AX own name",
	"Custody/Backup":              "A -",
	"Custody/Restore":             "A -",

	"Health/Check": "ABSU open",
	"Health/List":  "ABSU open",
	"Health/Watch": "ABSU open",

	"ServerReflection/ServerReflectionInfo": "AU -",
}

// methods are all methods that a server may offer: every service of the API that
// is compiled in, also such as this test has never heard of.
func methods(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	found := make(map[string]protoreflect.MethodDescriptor)
	protoregistry.GlobalFiles.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			s := fd.Services().Get(i)
			if pkg := string(fd.Package()); pkg != "dkim.v1" && pkg != "grpc.health.v1" && !strings.HasPrefix(pkg, "grpc.reflection.") {
				continue
			}
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				found["/"+string(s.FullName())+"/"+string(m.Name())] = m
			}
		}
		return true
	})
	if len(found) < len(want) {
		t.Fatalf("found %d methods only", len(found))
	}
	return found
}

var letters = map[string]authn.Role{"A": authn.Admin, "B": authn.Brand, "S": authn.Signer, "U": authn.Auditor}

// Every method of the API for every role, bound to a brand or not, about its own
// and other brands. A method that is new has no line in the table above, and fails.
func TestEveryMethod(t *testing.T) {
	lines := 0
	for method, descriptor := range methods(t) {
		short := string(descriptor.Parent().Name()) + "/" + string(descriptor.Name())
		t.Run(method, func(t *testing.T) {
			line, ok := want[short]
			if !ok {
				t.Fatal("nobody has said who may call it: add it to the table of authz, and here")
			}
			words := strings.Fields(line)
			for letter, role := range letters {
				allowed := strings.Contains(words[0], letter)
				if export := strings.Contains(words[0], "X"); role != authn.Brand {
					unbound := authn.Identity{Role: role, Name: "x"}
					if export {
						check(t, unbound, method, request(descriptor, words[2:], "brands/other"), false, "without the permission, "+string(role))
						unbound.ExportKeys = role == authn.Admin
					}
					check(t, unbound, method, request(descriptor, words[2:], ""), allowed, "unbound "+string(role))
					check(t, unbound, method, request(descriptor, words[2:], "brands/other/domains/a.example"), allowed, "unbound "+string(role)+" about a brand")
				}
				if role == authn.Admin {
					continue
				}
				bound := authn.Identity{Role: role, Name: "x", Brand: "acme"}
				has := len(words) > 2
				check(t, bound, method, request(descriptor, words[2:], "brands/acme"), allowed && words[1] != "-", string(role)+" about his brand")
				check(t, bound, method, request(descriptor, words[2:], "brands/acme/domains/a.example/keys/1"), allowed && words[1] != "-", string(role)+" about his own")
				for _, foreign := range []string{
					"brands/other", "brands/other/domains/a.example", "brands/acme2/domains/a.example", "brands/acm", "brands/ACME/domains/a.example",
					"brands/acme%2f/domains/a.example", "/brands/acme", "//brands/acme/domains/a.example", "x/brands/acme", "zones/acme",
					"brands//acme", "brands/./acme", "brands/../brands/acme", " brands/acme", "brands/\u0430cme", "acme", "brands/", "brands",
				} {
					check(t, bound, method, request(descriptor, words[2:], foreign), allowed && words[1] == "open" && !has, string(role)+" about "+foreign)
				}
				for _, open := range []string{"", "brands/-", "brands/-/domains/a.example"} {
					check(t, bound, method, request(descriptor, words[2:], open), allowed && words[1] == "open", string(role)+" about "+open)
				}
				// One foreign name among his own is enough.
				if len(words) > 2 && strings.Contains(words[len(words)-1], "s.") {
					mixed := request(descriptor, words[2:], "brands/acme/domains/a.example")
					proto.Merge(mixed, request(descriptor, words[len(words)-1:], "brands/other/domains/b.example"))
					if words[2] == "parent" { // which the merge overwrote not
						set(mixed.ProtoReflect(), "parent", "brands/acme")
					}
					check(t, bound, method, mixed, false, string(role)+" about his and others'")
				}
			}
			for _, id := range []authn.Identity{
				{}, {Role: "root", Name: "x"}, {Role: "ADMIN", Name: "x"}, {Role: "admin ", Name: "x"}, {Role: authn.Admin},
				{Role: authn.Brand, Name: "x"}, {Role: authn.Admin, Name: "x", Brand: "acme"}, {Role: authn.Brand, Name: "x", Brand: "-"},
			} {
				check(t, id, method, request(descriptor, words[2:], "brands/acme"), false, fmt.Sprintf("%+v", id))
			}
		})
		lines++
	}
	if lines != len(want)+1 { // reflection has two versions
		t.Errorf("%d methods, the table has %d", lines, len(want))
	}
}

func check(t *testing.T, id authn.Identity, method string, req proto.Message, allowed bool, who string) {
	t.Helper()
	err := authz.Request(id, method, req)
	if (err == nil) != allowed {
		t.Errorf("%s: %v, want it allowed: %t", who, err, allowed)
	}
	if err == nil {
		return
	}
	info, _ := status.Convert(err).Details()[0].(*errdetails.ErrorInfo)
	if status.Code(err) != codes.PermissionDenied || info.GetReason() != authz.ReasonDenied || info.GetDomain() != "dkimzone" {
		t.Errorf("%s: refused with %v", who, err)
	}
}

// request is a request of a method with a value in some fields.
func request(m protoreflect.MethodDescriptor, paths []string, value string) proto.Message {
	req := dynamicpb.NewMessage(m.Input())
	for _, path := range paths {
		set(req, path, value)
	}
	return req
}

func set(m protoreflect.Message, path, value string) {
	name, rest, deeper := strings.Cut(path, ".")
	field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	switch {
	case field.IsList() && deeper:
		set(m.Mutable(field).List().AppendMutable().Message(), rest, value)
	case field.IsList():
		m.Mutable(field).List().Append(protoreflect.ValueOfString(value))
	case deeper:
		set(m.Mutable(field).Message(), rest, value)
	default:
		m.Set(field, protoreflect.ValueOfString(value))
	}
}

func TestUnknownMethodIsDenied(t *testing.T) {
	for _, method := range []string{"", "/", "/dkim.v1.KeyManagement/", "/dkim.v1.KeyManagement/Nothing", "GetZone", "/dkim.v1.KeyManagement/getzone", "dkim.v1.KeyManagement/GetZone"} {
		if authz.Method(authn.Identity{Role: authn.Admin, Name: "alice"}, method) == nil {
			t.Errorf("%q is allowed", method)
		}
	}
}

// A request that has not the field that the table judges by is refused.
func TestForeignRequestIsDenied(t *testing.T) {
	id := authn.Identity{Role: authn.Brand, Name: "x", Brand: "acme"}
	if err := authz.Request(id, "/dkim.v1.KeyManagement/GetDomain", &dkimv1.ListBrandsRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
}

func TestInterceptors(t *testing.T) {
	const get, watch = "/dkim.v1.KeyManagement/GetDomain", "/dkim.v1.KeyManagement/WatchDomains"
	as := func(id authn.Identity) context.Context {
		return authn.NewContext(t.Context(), authn.Caller{Identity: id})
	}
	shop := authn.Identity{Role: authn.Brand, Name: "shop", Brand: "acme"}
	for name, tt := range map[string]struct {
		ctx    context.Context
		parent string
		want   codes.Code
	}{
		"own":       {as(shop), "brands/acme", codes.OK},
		"foreign":   {as(shop), "brands/other", codes.PermissionDenied},
		"all":       {as(shop), "brands/-", codes.PermissionDenied},
		"nobody":    {t.Context(), "brands/acme", codes.PermissionDenied},
		"no role":   {as(authn.Identity{}), "brands/acme", codes.PermissionDenied},
		"signer":    {as(authn.Identity{Role: authn.Signer, Name: "mx1"}), "brands/acme", codes.PermissionDenied},
		"the admin": {as(authn.Identity{Role: authn.Admin, Name: "alice"}), "brands/other", codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			called := false
			_, err := authz.UnaryInterceptor(tt.ctx, &dkimv1.GetDomainRequest{Name: tt.parent + "/domains/a.example"}, &grpc.UnaryServerInfo{FullMethod: get},
				func(context.Context, any) (any, error) { called = true; return nil, nil })
			if status.Code(err) != tt.want || called != (tt.want == codes.OK) {
				t.Errorf("unary: %v, called: %t", err, called)
			}
			got := false
			err = authz.StreamInterceptor(nil, &stream{ctx: tt.ctx, requests: []string{tt.parent}}, &grpc.StreamServerInfo{FullMethod: watch},
				func(_ any, s grpc.ServerStream) error {
					err := s.RecvMsg(&dkimv1.WatchDomainsRequest{})
					got = err == nil
					return err
				})
			if status.Code(err) != tt.want || got != (tt.want == codes.OK) {
				t.Errorf("stream: %v, got the request: %t", err, got)
			}
		})
	}
	// Each request of a stream is judged, not only the first.
	err := authz.StreamInterceptor(nil, &stream{ctx: as(shop), requests: []string{"brands/acme", "brands/other"}}, &grpc.StreamServerInfo{FullMethod: watch},
		func(_ any, s grpc.ServerStream) error {
			if err := s.RecvMsg(&dkimv1.WatchDomainsRequest{}); err != nil {
				t.Error(err)
			}
			return s.RecvMsg(&dkimv1.WatchDomainsRequest{})
		})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("second request: %v", err)
	}
}

// stream is the server's end of a stream on which requests come.
type stream struct {
	grpc.ServerStream

	ctx      context.Context
	requests []string // their parents
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) RecvMsg(m any) error {
	if len(s.requests) == 0 {
		return io.EOF
	}
	m.(*dkimv1.WatchDomainsRequest).Parent = s.requests[0]
	s.requests = s.requests[1:]
	return nil
}
