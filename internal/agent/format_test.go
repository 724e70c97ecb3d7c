package agent_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/agent"
	"github.com/dkimzone/dkimzone/signer"
)

// ref is a key of a domain as d= that signs mail.
func ref(domain, selector, id string) agent.Ref {
	k := info(domain, selector, id)
	return agent.Ref{Domain: domain, Selector: selector, Algorithm: k.Algorithm, Key: k.Name}
}

// sample has a domain with two keys, one that is signed with a default key, one whose
// key has just been replaced by one with the same selector, and a key that stands by.
func sample() agent.View {
	rsa, ed := ref("a.dk", "s1", "k1"), ref("a.dk", "ed1", "k2")
	def := ref("acme.keys.example.net", "default1", "k3")
	now, before := ref("c.dk", "s1", "k5"), ref("c.dk", "s1", "k4")
	return agent.View{
		Dir: "/var/lib/agent",
		Entries: []agent.Entry{
			{Sender: "a.dk", Refs: []agent.Ref{rsa, ed}},
			{Sender: "b.dk", Refs: []agent.Ref{def}},
			{Sender: "c.dk", Refs: []agent.Ref{now}},
		},
		Default: agent.Entry{Refs: []agent.Ref{def}},
		Refs:    []agent.Ref{ed, rsa, ref("a.dk", "s2", "k6"), def, before, now},
	}
}

// TestRender compares with the files in testdata.
func TestRender(t *testing.T) {
	for _, f := range formats(t) {
		t.Run(f.Name, func(t *testing.T) {
			got, err := agent.Render(f, sample())
			if err != nil {
				t.Fatal(err)
			}
			for i, name := range agent.Tables(f) {
				want, err := os.ReadFile(filepath.Join("testdata", f.Name, name))
				if err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(string(want), string(got[i])); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
}

// table reads lines of a key, a separator and a value.
func table(data []byte, separator string) (map[string][]string, error) {
	rows := make(map[string][]string)
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), separator)
		if !ok || key == "" || value == "" || strings.TrimSpace(key+value) != key+value {
			return nil, fmt.Errorf("line %q", line)
		}
		rows[key] = append(rows[key], value)
	}
	return rows, nil
}

// keyAndSigningTable reads two tables as OpenDKIM and rspamd do.
func keyAndSigningTable(tables [][]byte, sender string) ([]string, error) {
	keys, err := table(tables[0], " ")
	if err != nil {
		return nil, err
	}
	signing, err := table(tables[1], " ")
	var found []string
	for _, name := range signing["*@"+sender] {
		found = append(found, keys[name]...)
	}
	return found, err
}

// readers say by the tables of a format with which selectors, d= and files mail of a
// domain is signed.
var readers = map[string]func(tables [][]byte, sender string) ([]string, error){
	"opendkim": keyAndSigningTable,
	"rspamd": func(tables [][]byte, sender string) ([]string, error) {
		signs := regexp.MustCompile(`(?m)^/@(.*)\$/i `).ReplaceAllFunc(tables[1], func(m []byte) []byte {
			return []byte("*@" + strings.ReplaceAll(string(m[2:len(m)-4]), `\.`, ".") + " ")
		})
		return keyAndSigningTable([][]byte{tables[0], signs}, sender)
	},
	"kumomta": func(tables [][]byte, sender string) ([]string, error) {
		_, block, ok := strings.Cut(string(tables[0]), "\n[domain.\""+sender+"\"]\n")
		if !ok {
			return nil, nil
		}
		block, _, _ = strings.Cut(block, "\n\n")
		rows, err := table([]byte(block), " = ")
		if err != nil || len(rows["selector"]) != 1 || len(rows["filename"]) != 1 {
			return nil, fmt.Errorf("%v: %w", rows, err)
		}
		return []string{sender + ":" + strings.Trim(rows["selector"][0], `"`) + ":" + strings.Trim(rows["filename"][0], `"`)}, nil
	},
	"template": func(tables [][]byte, sender string) ([]string, error) {
		_, line, ok := strings.Cut("\n"+string(tables[0]), "\nsender "+sender+" ")
		if !ok {
			return nil, nil
		}
		line, _, _ = strings.Cut(line, "\n")
		return strings.Fields(line), nil
	},
	"exim": func(tables [][]byte, sender string) ([]string, error) {
		var t [3]map[string][]string
		for i := range t {
			var err error
			if t[i], err = table(tables[i], ": "); err != nil {
				return nil, err
			}
			for key, values := range t[i] {
				if len(values) != 1 {
					return nil, fmt.Errorf("%s is there %d times", key, len(values))
				}
			}
		}
		if t[2][sender] == nil {
			return nil, nil
		}
		d := t[2][sender][0]
		var found []string
		for selector := range strings.SplitSeq(t[1][d][0], " : ") {
			found = append(found, d+":"+selector+":"+t[0][selector+"._domainkey."+d][0])
		}
		return found, nil
	},
}

// oneKey says that a format has one key for each domain.
func oneKey(format string) bool { return format == "rspamd" || format == "kumomta" }

// What a table says is what went in, for any names.
func TestTablesReadBack(t *testing.T) {
	label := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?`)
	for format, read := range readers {
		t.Run(format, func(t *testing.T) {
			f := newWorld(t, format).format
			rapid.Check(t, func(t *rapid.T) {
				v := agent.View{Dir: "/d"}
				for i, name := range rapid.SliceOfNDistinct(label, 0, 8, rapid.ID[string]).Draw(t, "domains") {
					domain := name + "." + label.Draw(t, "parent") + ".dk"
					e := agent.Entry{Sender: domain}
					selectors := rapid.SliceOfNDistinct(label, 1, 3, rapid.ID[string]).Draw(t, "selectors")
					for j, s := range selectors {
						e.Refs = append(e.Refs, ref(domain, s, fmt.Sprintf("k%dx%d", i, j)))
					}
					v.Entries = append(v.Entries, e)
					v.Refs = append(v.Refs, e.Refs...)
				}
				tables, err := agent.Render(f, v)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range v.Entries {
					var want []string
					for _, r := range e.Refs {
						if (format == "opendkim" || format == "rspamd") && r.Algorithm == "ed25519-sha256" || oneKey(format) && len(want) > 0 {
							continue
						}
						want = append(want, r.Domain+":"+r.Selector+":"+agent.KeyPath(v.Dir, r))
					}
					got, err := read(tables, e.Sender)
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s (-want +got):\n%s", e.Sender, diff)
					}
				}
				if got, err := read(tables, "nobody.example"); err != nil || len(got) > 0 {
					t.Errorf("%v, %v", got, err)
				}
			})
		})
	}
}

// Each format's files can be written, and read again by the next agent.
func TestFormats(t *testing.T) {
	for _, f := range formats(t) {
		t.Run(f.Name, func(t *testing.T) {
			w := newWorld(t, f.Name)
			w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1")}
			for range 2 {
				a := w.open(t)
				agent.Step(t.Context(), a, w)
				if s := a.Stats(); !s.Synced || s.Domains != 1 || s.Keys != 1 {
					t.Errorf("%+v: %s", s, w.log.b.String())
				}
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The template in docs/signers.md is the one that is tested.
func TestTemplateDocumented(t *testing.T) {
	text, err := os.ReadFile("testdata/template/keys.conf.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/signers.md")
	if err != nil || !strings.Contains(string(doc), "\n```\n"+string(text)+"```\n") {
		t.Errorf("docs/signers.md does not have it: %v", err)
	}
}

// A template that cannot be used is refused before there is anything to write.
func TestTemplateRefused(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"keys.conf", "", "NAME.tmpl"},
		{"keys.tmpl", "", "NAME.tmpl"},
		{"manifest.json.tmpl", "", "NAME.tmpl"},
		{"a.tmp.tmpl", "", "NAME.tmpl"},
		{".tmpl", "", "NAME.tmpl"},
		{"a b.tmpl", "", "NAME.tmpl"},
		{"a.tmpl", "{{range .Domains}}", "a.tmpl:1: unexpected EOF"},
		{"a.tmpl", "{{nothing}}", `a.tmpl:1: function "nothing" not defined`},
		{"a.tmpl", "{{.Domain}}", "tried with 0 domains: template: a.tmpl:1:2"},
		{"a.tmpl", "{{(index .Domains 0).Domain}}", "tried with 0 domains"},
		{"a.tmpl", "{{range .Domains}}{{range .Keys}}{{.Path}}{{end}}{{end}}", "tried with 2 domains: template: a.tmpl:1:35"},
	} {
		file := filepath.Join(t.TempDir(), c.name)
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.Template(file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %s", c.name, c.text, err, c.want)
		}
	}
	if _, err := agent.Template(filepath.Join(t.TempDir(), "a.tmpl")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A template may make another file, or other content, after a restart.
func TestTemplateChanges(t *testing.T) {
	w := newWorld(t, agent.TemplateName)
	w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1")}
	for _, c := range []struct{ name, text, want string }{
		{"a", "{{len .Keys}}", "1"},
		{"a", "{{len .Domains}} {{(index .Keys 0).Domain}}", ""},
		{"a", "{{range .Keys}}{{.Domain}}{{end}}", "a.dk"},
		{"b", "{{range .Keys}}{{.Signs}}{{end}}", "true"},
	} {
		file := filepath.Join(t.TempDir(), c.name+".tmpl")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := agent.Template(file)
		if c.want == "" {
			if err == nil {
				t.Errorf("%q is taken", c.text)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		w.format = f
		a := w.open(t)
		agent.Step(t.Context(), a, w)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(w.dir, c.name)); err != nil || string(got) != c.want {
			t.Errorf("%q, %v, want %q", got, err, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(w.dir, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of the template before is still there: %v", err)
	}
}
