package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestArchitecture applies every rule to the module as it is.
func TestArchitecture(t *testing.T) {
	g := load(t)
	if len(g.own()) < 2 {
		t.Fatalf("the graph has %d packages of this module", len(g.own()))
	}
	for _, name := range checkOrder {
		t.Run(name, func(t *testing.T) {
			for _, v := range checks[name](g) {
				t.Error(v)
			}
		})
	}
}

// TestRulesFind breaks each rule in a made-up graph. Each case is found by its own check and by no other.
func TestRulesFind(t *testing.T) {
	tests := []struct {
		name  string
		graph graph
		check string
		want  string // part of the only message; "" for none
	}{
		{
			name: "the whole design",
			graph: made(
				"cmd/dkimd: internal/app", "cmd/dkimctl: internal/cli", "cmd/coredns: plugin/dkim github.com/coredns/coredns/coremain",
				"internal/app: internal/embedetcd internal/service internal/keystore internal/config plugin/dkim api/dkim/v1 github.com/coredns/caddy",
				"internal/embedetcd: go.etcd.io/etcd/server/v3/embed go.etcd.io/etcd/client/v3",
				"internal/cli: api/dkim/v1 google.golang.org/grpc",
				"internal/service: internal/keystore internal/envelope internal/keygen internal/dnsname api/dkim/v1",
				"internal/keystore: internal/schema internal/etcdclient go.etcd.io/etcd/client/v3",
				"internal/replica: internal/schema go.etcd.io/bbolt",
				"internal/envelope: gocloud.dev/secrets", "gocloud.dev/secrets: context",
				"internal/schema: internal/schema/schemapb internal/dnsname context",
				"plugin/dkim: internal/replica internal/dnsname github.com/coredns/coredns/plugin",
				"internal/dnsname: strings",
				"test/e2e: api/dkim/v1 test/harness", "internal/keystore/keystoretest: internal/keystore",
			),
		},
		{"up a tier", made("internal/service: internal/cli"), "tiers", "internal/service (tier 2) imports internal/cli (tier 3)"},
		{"within a tier", made("internal/keygen: internal/pki"), "tiers", "internal/keygen imports internal/pki, both of tier 1"},
		{"within the pure tier", made("internal/rotation: internal/keypair"), "", ""},
		{"no tier", made("internal/novelty:"), "tiers", "internal/novelty has no tier"},
		{"pure package with a context", made("internal/dnsname: context"), "pure", "internal/dnsname imports context"},
		{"pure package that may", made("internal/keypair: log/slog"), "", ""},
		{"pure package that may another import", made("internal/keypair: context"), "pure", "internal/keypair imports context"},
		{"tool with a context", made("internal/keygen: context"), "", ""},
		{"import of a command", made("internal/app: cmd/dkimd"), "roots", "internal/app imports cmd/dkimd"},
		{"import of the tests", made("internal/app: test/harness"), "roots", "internal/app imports test/harness"},
		{"import of a package for tests", made("internal/service: internal/keystore/keystoretest"), "roots", "for tests is imported by tests only"},
		{"folder name", made("internal/schema/util:"), "names", `"util"`},
		{"etcd client", made("internal/service: go.etcd.io/etcd/client/v3"), "owners", "internal/service imports go.etcd.io/etcd/client/v3"},
		{"etcd client in the app", made("internal/app: go.etcd.io/etcd/client/v3"), "owners", "sees the store and the replica"},
		{"etcd server", made("internal/app: go.etcd.io/etcd/server/v3/embed"), "owners", "only internal/embedetcd may"},
		{"bbolt", made("internal/keystore: go.etcd.io/bbolt"), "owners", "the only database that this code opens"},
		{"CoreDNS", made("internal/service: github.com/coredns/coredns/plugin"), "owners", "CoreDNS is the frame"},
		{"key wrapping", made("internal/service: gocloud.dev/secrets"), "owners", "only internal/envelope may"},
		{"API messages inside", made("internal/keystore: api/dkim/v1"), "owners", "generated messages stay at the edges"},
		{"stored messages outside", made("internal/service: internal/schema/schemapb"), "owners", "only internal/schema, internal/keystore may"},
		{"plugin to a key package", made("plugin/dkim: internal/replica", "internal/replica: internal/schema", "internal/schema: internal/keypair"),
			"reaches", "plugin/dkim must not reach " + module + "/internal/keypair"},
		{"plugin to a KMS through others", made("plugin/dkim: example.org/a", "example.org/a: example.org/b", "example.org/b: gocloud.dev/secrets"),
			"reaches", "example.org/a\n\t-> example.org/b\n\t-> gocloud.dev/secrets"},
		{"coredns to an etcd member", made("cmd/coredns: example.org/a", "example.org/a: go.etcd.io/etcd/server/v3/embed"),
			"reaches", "cmd/coredns must not reach go.etcd.io/etcd/server"},
		{"dkimctl to etcd", made("cmd/dkimctl: example.org/a", "example.org/a: go.etcd.io/etcd/client/v3"),
			"reaches", "dkimctl is a client of the API"},
		{"API to our packages", made("api/dkim/v1: internal/dnsname"), "reaches", "users of the API"},
		{"no comment", changed("internal/schema", func(p *pkg) { p.comment = "" }), "comments", `"Package schema "`},
		{"other comment", changed("internal/schema", func(p *pkg) { p.comment = "Schema is good." }), "comments", `"Package schema "`},
		{"command comment", changed("cmd/dkimd", func(p *pkg) { p.comment = "Package main is good." }), "comments", `"Command dkimd "`},
		{"long main", changed("cmd/dkimd", func(p *pkg) { p.mainLines = maxMainLines + 1 }), "mains", "61 lines"},
		{"full main", changed("cmd/dkimd", func(p *pkg) { p.mainLines = maxMainLines }), "", ""},
	}
	proven := map[string]bool{}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range checkOrder {
				got := checks[name](tt.graph)
				switch {
				case name != tt.check && len(got) > 0:
					t.Errorf("%s found %q, want nothing", name, got)
				case name == tt.check && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
					t.Errorf("%s found %q, want one message with %q", name, got, tt.want)
				}
			}
		})
		proven[tt.check] = true
	}
	for _, name := range checkOrder {
		if !proven[name] {
			t.Errorf("no case proves that the check %q can fail", name)
		}
	}
}

// made returns a graph of lines "package: import import…". Every package in it, imported ones too, is well documented.
func made(lines ...string) graph {
	g := graph{}
	full := func(p string) string {
		switch top, _, _ := strings.Cut(p, "/"); top {
		case "api", "cmd", "internal", "plugin", "test":
			return module + "/" + p
		}
		return p
	}
	add := func(p string, imports []string) {
		name := p[strings.LastIndex(p, "/")+1:]
		comment := "Package " + name + " is made up."
		if strings.HasPrefix(p, "cmd/") {
			name, comment = "main", "Command "+name+" is made up."
		}
		g[full(p)] = pkg{name: name, comment: comment, imports: imports}
	}
	for _, line := range lines {
		p, rest, _ := strings.Cut(line, ":")
		var imports []string
		for imp := range strings.FieldsSeq(rest) {
			imports = append(imports, full(imp))
			if _, ok := g[full(imp)]; !ok {
				add(imp, nil)
			}
		}
		add(p, imports)
	}
	return g
}

// changed returns a graph of one package that is well but for the change.
func changed(p string, change func(*pkg)) graph {
	g := made(p + ":")
	v := g[module+"/"+p]
	change(&v)
	g[module+"/"+p] = v
	return g
}

// load asks the go command for the packages of the module and all that they depend on.
func load(t *testing.T) graph {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Name,Dir,Imports,GoFiles", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.Bytes())
	}
	g := graph{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Name, Dir string
			Imports, GoFiles      []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return g
		} else if err != nil {
			t.Fatal(err)
		}
		v := pkg{name: p.Name, imports: p.Imports}
		if rel(p.ImportPath) != "" {
			v.comment = comment(t, p.Dir)
			if src, err := os.ReadFile(filepath.Join(p.Dir, "main.go")); err == nil && p.Name == "main" {
				v.mainLines = bytes.Count(src, []byte("\n"))
			}
		}
		g[p.ImportPath] = v
	}
}

// comment returns the first package comment among the files of dir. Files of tests count only where there are no others.
func comment(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var inTest string
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case f.Doc.Text() == "":
		case !strings.HasSuffix(name, "_test.go"):
			return f.Doc.Text()
		default:
			inTest = f.Doc.Text()
		}
	}
	return inTest
}
