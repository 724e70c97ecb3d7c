package e2e_test

import (
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/dkimzone/dkimzone/internal/pki"
)

// method is a method of the API, and how it is called over HTTPS.
type method struct {
	protoreflect.MethodDescriptor

	name             string // as gRPC names it
	verb, path, body string // of its google.api.http rule
}

// methods are all of them.
func methods(t *testing.T) []method {
	t.Helper()
	var all []method
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			service := fd.Services().Get(i)
			for j := range service.Methods().Len() {
				m := method{MethodDescriptor: service.Methods().Get(j)}
				m.name = "/" + string(service.FullName()) + "/" + string(m.Name())
				rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
				m.body = rule.GetBody()
				for verb, path := range map[string]string{
					"GET": rule.GetGet(), "POST": rule.GetPost(), "PUT": rule.GetPut(), "PATCH": rule.GetPatch(), "DELETE": rule.GetDelete(),
				} {
					if path != "" {
						m.verb, m.path = verb, path
					}
				}
				if m.verb == "" {
					t.Errorf("%s has no google.api.http rule", m.name)
				}
				all = append(all, m)
			}
		}
		return true
	})
	if len(all) < 40 {
		t.Fatalf("found %d methods only", len(all))
	}
	slices.SortFunc(all, func(a, b method) int { return strings.Compare(a.name, b.name) })
	return all
}

var pathVariable = regexp.MustCompile(`\{([a-z_.]+)=([^}]*)\}`)

// request is a request about the resources of some names, by the patterns of
// their kinds. It is the gRPC request, and the path and body of the HTTP request.
func (m method) request(t *testing.T, names map[string]string) (req *dynamicpb.Message, path, body string) {
	t.Helper()
	message := dynamicpb.NewMessage(m.Input())
	kinds := map[string]string{
		"Zone": "zones/*", "Brand": "brands/*", "Domain": "brands/*/domains/*", "Key": "brands/*/domains/*/keys/*", "Signer": "signers/*",
		"Token": "tokens/*", "BrandSecret": "brands/*/secrets/*", "KeyEncryption": "keyEncryption",
	}
	fillNames(message, func(kind string, child bool) string {
		pattern := kinds[strings.TrimPrefix(kind, "dkimzone/")]
		if child {
			pattern = strings.TrimSuffix(pattern, "/*")
			pattern = pattern[:max(0, strings.LastIndexByte(pattern, '/'))]
		}
		return names[pattern]
	}, 0)
	path = m.path
	inBody := proto.Clone(message).ProtoReflect()
	for _, v := range pathVariable.FindAllStringSubmatch(m.path, -1) {
		name, ok := names[v[2]]
		if !ok {
			t.Fatalf("%s: this test needs a name of the form %s", m.name, v[2])
		}
		path = strings.Replace(path, v[0], name, 1)
		setField(message, v[1], name)
		setField(inBody, v[1], "")
	}
	if m.body != "" {
		of := inBody.Interface()
		if m.body != "*" {
			of = inBody.Get(inBody.Descriptor().Fields().ByName(protoreflect.Name(m.body))).Message().Interface()
		}
		text, err := protojson.Marshal(of)
		if err != nil {
			t.Fatal(err)
		}
		body = string(text)
	}
	return message, path, body
}

// setField sets a string field, given as "name" or "domain.name".
func setField(m protoreflect.Message, path, value string) {
	name, rest, deeper := strings.Cut(path, ".")
	field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	if deeper {
		setField(m.Mutable(field).Message(), rest, value)
		return
	}
	m.Set(field, protoreflect.ValueOfString(value))
}

// fillNames sets each field that is the name of a resource, at any depth. A list
// gets one element.
func fillNames(m protoreflect.Message, nameOf func(kind string, child bool) string, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		field := m.Descriptor().Fields().Get(i)
		behavior, _ := proto.GetExtension(field.Options(), annotations.E_FieldBehavior).([]annotations.FieldBehavior)
		if slices.Contains(behavior, annotations.FieldBehavior_OUTPUT_ONLY) {
			continue
		}
		switch {
		case field.IsMap() || field.ContainingOneof() != nil:
		case field.Message() != nil:
			if depth > 3 || field.Message().ParentFile().Package() != "dkim.v1" {
				continue
			}
			inner := m.NewField(field)
			if !field.IsList() {
				fillNames(inner.Message(), nameOf, depth+1)
			} else {
				element := inner.List().NewElement()
				fillNames(element.Message(), nameOf, depth+1)
				inner.List().Append(element)
			}
			m.Set(field, inner)
		case field.Kind() == protoreflect.StringKind:
			kind, child := "", false
			if ref, ok := proto.GetExtension(field.Options(), annotations.E_ResourceReference).(*annotations.ResourceReference); ok && ref != nil {
				kind = ref.GetType()
				if kind == "" {
					kind, child = ref.GetChildType(), true
				}
			} else if self, ok := proto.GetExtension(m.Descriptor().Options(), annotations.E_Resource).(*annotations.ResourceDescriptor); ok && self != nil && field.Name() == "name" {
				kind = self.GetType()
			}
			name := nameOf(kind, child)
			switch {
			case kind == "" || name == "":
			case field.IsList():
				m.Mutable(field).List().Append(protoreflect.ValueOfString(name))
			default:
				m.Set(field, protoreflect.ValueOfString(name))
			}
		}
	}
}

// ownOnly are the methods that name no resource and answer with what is the
// caller's.
var ownOnly = []string{"ListBrands", "GetCaller"}

// attackOtherBrand asks for what is of brand other, by each method, with the
// credentials of brand acme of each kind. The answers are the same whether it is
// there or not.
func attackOtherBrand(t *testing.T, g *target) {
	t.Helper()
	attackers := map[string]*attacker{"certificate": g.stranger(t, g.client(t, pki.Identity{Role: "brand", Brand: "acme", Name: "shop"}, time.Now()))}
	for _, who := range []string{"secret", "token", "JWT", "our auditor", "our signer"} {
		attackers[who] = g.attacker(t, who)
	}
	nobody := g.attacker(t, "")
	absent := make(map[string]string)
	for pattern, name := range g.names {
		absent[pattern] = strings.NewReplacer("theirs.", "missing.", lastPart(g.names["brands/*/domains/*/keys/*"]), "aaaaaaaa").Replace(name)
	}
	absent["brands/*/secrets/*"], absent["tokens/*"], absent["signers/*"] = "brands/other/secrets/aaaaaaaaaaaa", "tokens/aaaaaaaaaaaa", "signers/none"
	elsewhere := maps.Clone(absent) // in a brand that is not there
	for pattern, name := range elsewhere {
		elsewhere[pattern] = strings.Replace(name, "brands/other", "brands/nobody", 1)
	}
	for _, m := range methods(t) {
		t.Run(path.Base(m.name), func(t *testing.T) {
			g.unchanged(t, func() {
				req, url, body := m.request(t, g.names)
				checkStatus(t, nobody.call(t, m.name, req, dynamicpb.NewMessage(m.Output())), codes.Unauthenticated, "UNAUTHENTICATED")
				nobody.do(t, m.verb, url, body).refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
				for who, a := range attackers {
					var refusals []string
					for _, names := range []map[string]string{g.names, absent, elsewhere} {
						req, url, body := m.request(t, names)
						out := dynamicpb.NewMessage(m.Output())
						err := a.call(t, m.name, req, out)
						got := a.do(t, m.verb, url, body)
						if slices.Contains(ownOnly, string(m.Name())) {
							if seen := prototext.Format(out) + got.body; strings.Contains(seen, "brands/other") || strings.Contains(seen, "theirs") {
								t.Errorf("%s sees %s", who, seen)
							}
							if status.Code(err) != codes.PermissionDenied && (err != nil || got.status != http.StatusOK) {
								t.Errorf("%s: %v, %v", who, err, got)
							}
							continue
						}
						checkStatus(t, err, codes.PermissionDenied, "PERMISSION_DENIED")
						got.refused(t, http.StatusForbidden, "PERMISSION_DENIED")
						refusals = append(refusals, status.Convert(err).Message())
					}
					if len(slices.Compact(refusals)) > 1 {
						t.Errorf("%s learns what is there: %q", who, refusals)
					}
				}
			})
		})
	}
	t.Run("one name of several", func(t *testing.T) { attackMixed(t, g, attackers["token"]) })
}

// attackReadOnly calls each method with names that are there as somebody who may
// not change anything.
func attackReadOnly(t *testing.T, g *target) {
	t.Helper()
	auditor := g.attacker(t, "auditor")
	for _, m := range methods(t) {
		t.Run(path.Base(m.name), func(t *testing.T) {
			g.unchanged(t, func() {
				req, url, body := m.request(t, g.names)
				out := dynamicpb.NewMessage(m.Output())
				err := auditor.call(t, m.name, req, out)
				got := auditor.do(t, m.verb, url, body)
				if m.verb != http.MethodGet {
					checkStatus(t, err, codes.PermissionDenied, "PERMISSION_DENIED")
					got.refused(t, http.StatusForbidden, "PERMISSION_DENIED")
				}
				if seen := prototext.Format(out) + got.body; strings.Contains(seen, "PRIVATE KEY") || strings.Contains(seen, "dkz_") {
					t.Errorf("it sees %s", seen)
				}
			})
		})
	}
}
