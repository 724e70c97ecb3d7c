package audit

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/dkimzone/dkimzone/api/dkim/v1" // registers the services
)

// methods are those of the API, by the names that interceptors get.
func methods(t testing.TB) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	all := make(map[string]protoreflect.MethodDescriptor)
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for k := range s.Methods().Len() {
				m := s.Methods().Get(k)
				all[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = m
			}
		}
		return true
	})
	if len(all) < 30 {
		t.Fatalf("found %d methods only", len(all))
	}
	return all
}

// A new method cannot be forgotten.
func TestRowsAreOfMethods(t *testing.T) {
	all := methods(t)
	for name := range all {
		if _, ok := table[name]; !ok {
			t.Errorf("%s has no row in the table", name)
		}
	}
	for name := range table {
		if strings.HasPrefix(name, "/dkim.v1.") && all[name] == nil {
			t.Errorf("%s has a row and is no method", name)
		}
	}
}

// readers are the methods that change nothing although their names do not say so.
var readers = []string{"CheckDomain", "PlanRotation", "ExportZone", "ResolveSigningKeys", "Sign"}

func TestOnlyReadersAreWithoutLines(t *testing.T) {
	for name, m := range methods(t) {
		method := string(m.Name())
		reads := slices.Contains(readers, method)
		for _, prefix := range []string{"Get", "List", "Watch"} {
			reads = reads || strings.HasPrefix(method, prefix)
		}
		if r, ok := table[name]; ok && (r.kind == read) != reads {
			t.Errorf("%s: its calls have lines: %t, want %t", name, r.kind != read, !reads)
		}
	}
}

// field finds a field by its path in a message's type.
func field(m protoreflect.MessageDescriptor, path string) protoreflect.FieldDescriptor {
	name, rest, deeper := strings.Cut(path, ".")
	fd := m.Fields().ByName(protoreflect.Name(name))
	if fd == nil || !deeper {
		return fd
	}
	if fd.Message() == nil {
		return nil
	}
	return field(fd.Message(), rest)
}

// The fields that rows name are there, and of a kind that may be shown: nothing
// that a caller wrote, and no octets.
func TestFieldsMayBeShown(t *testing.T) {
	known := []protoreflect.FullName{"google.protobuf.Timestamp", "google.protobuf.Duration"}
	known = append(known, plain...)
	for name, m := range methods(t) {
		r := table[name]
		for _, path := range r.asked {
			fd := field(m.Input(), path)
			if fd == nil || fd.Kind() == protoreflect.StringKind || fd.Kind() == protoreflect.BytesKind || fd.Kind() == protoreflect.MessageKind {
				t.Errorf("%s: %q is no number, enum or bool of the request", name, path)
			}
		}
		output := m.Output()
		after := r.after
		if output.FullName() == "google.protobuf.Empty" { // they are those of Before
			after = nil
		}
		for _, path := range after {
			fd := field(output, path)
			switch {
			case fd == nil, fd.Kind() == protoreflect.BytesKind, fd.IsMap():
				t.Errorf("%s: %q may not be shown of the response", name, path)
			case fd.Message() != nil && !slices.Contains(known, fd.Message().FullName()):
				t.Errorf("%s: %q is a %s, whose fields nobody has looked at", name, path, fd.Message().FullName())
			}
		}
		if r.revision != "" {
			if fd := field(output, r.revision); fd == nil || fd.Kind() != protoreflect.Int64Kind {
				t.Errorf("%s: %q is no revision", name, r.revision)
			}
		}
		for template, of := range map[string]protoreflect.MessageDescriptor{r.resource: m.Input(), r.created: output} {
			for _, part := range strings.Split(template, "{")[1:] {
				path, _, ok := strings.Cut(part, "}")
				if fd := field(of, path); !ok || fd == nil || fd.Kind() != protoreflect.StringKind {
					t.Errorf("%s: %q is no text of %s", name, path, of.FullName())
				}
			}
		}
		if r.kind != read && r.resource == "" && r.created == "" {
			t.Errorf("%s: its lines name no resource", name)
		}
	}
}

// Messages that are shown whole: whoever adds a field looks whether it may be
// shown, and adds it here.
func TestPlainMessages(t *testing.T) {
	want := map[string][]string{
		"dkim.v1.NameServer": {"host", "addresses"},
		"dkim.v1.RotationPolicy": {
			"interval", "jitter_percent", "drain", "gap", "publish_lead", "check_interval", "paused", "max_switches_per_hour", "freeze_windows",
		},
		"dkim.v1.FreezeWindow":  {"start_time", "end_time"},
		"dkim.v1.KeyDisclosure": {"enabled", "lag"},
	}
	got := make(map[string][]string)
	for _, name := range plain {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		fields := d.(protoreflect.MessageDescriptor).Fields()
		for i := range fields.Len() {
			got[string(name)] = append(got[string(name)], string(fields.Get(i).Name()))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-looked at +there):\n%s", diff)
	}
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"":                                      "",
		"brands/acme":                           "brands/acme",
		"brands/-":                              "brands/-",
		"brands/acme/domains/spamtrap.dk":       "brands/acme/domains/spamtrap.dk",
		"brands/acme/domains/BÜCHER.example":    "brands/acme/domains/xn--bcher-kva.example",
		"brands/acme/domains/acme.keys.example": "brands/acme/domains/acme.keys.example",
		"brands/acme/domains/spamtrap.dk/keys/abcdefghijklmnop": "brands/acme/domains/spamtrap.dk/keys/abcdefghijklmnop",
		"brands/acme/domains/spamtrap.dk/keys/-----BEGIN":       "brands/acme/domains/spamtrap.dk/keys/?",
		"brands/../../etc/passwd":                               "brands/?/?/?/?",
		"brands/MC4CAQAwBQYDK2VwBCIEIA":                         "brands/?",
		"zones/keys.example.net":                                "zones/keys.example.net",
		"backup":                                                "backup",
		"signers/mx1":                                           "signers/mx1",
		"brands":                                                "brands",
		"dkz_abcdefg":                                           "?",
		"brands/acme\n":                                         "brands/?",
		"brands/acme/domains/a b":                               "brands/acme/domains/?",
		strings.Repeat("brands/a/", 5):                          "?",
	} {
		if got := cleanName(name); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
}

// Nothing that a caller writes into a request, in whatever field of whatever
// method, gets into its line, and nothing secret of a response.
func TestNoSecretsInLines(t *testing.T) {
	secrets := []string{
		"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n",
		"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "dkz_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "correct horse battery staple",
	}
	for name, m := range methods(t) {
		for _, secret := range secrets {
			req, resp := filled(t, m.Input(), secret), filled(t, m.Output(), secret)
			for _, path := range table[name].after { // what is shown of a response
				if fd := field(m.Output(), path); fd != nil {
					resp.ProtoReflect().Clear(fd)
				}
			}
			s := &sink{}
			_, _ = do(t, New(s, clock, discard), name, req, resp, nil)
			_, _ = do(t, New(s, clock, discard), name, req, nil, denied)
			if len(s.entries) == 0 {
				t.Fatalf("%s has no line although it was refused", name)
			}
			for _, e := range s.entries {
				line, _ := e.Append(nil)
				for _, form := range []string{secret, strings.ToLower(secret), secret[:20], strings.TrimSpace(strings.Split(secret, "\n")[len(strings.Split(secret, "\n"))/2])} {
					if strings.Contains(string(line), form) {
						t.Errorf("%s: %q is in %s", name, form, line)
					}
				}
			}
		}
	}
}
