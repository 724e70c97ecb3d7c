package agent

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
)

const (
	// TemplateName is the name of the Format that Template makes.
	TemplateName = "template"
	templateEnd  = ".tmpl"
)

// templateNames are those that a file of a Template may have.
var templateNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// TemplateData is what a template shows.
type TemplateData struct {
	// Dir is the directory of the files, absolute.
	Dir string
	// Domains are those whose mail is signed, sorted, each with one key at least.
	Domains []TemplateDomain
	// Default are the keys that sign mail of all other domains, often none.
	Default []TemplateKey
	// Keys are all that are in files, sorted: those that sign, those that may come to,
	// and those that signed until lately.
	Keys []TemplateKey
}

// TemplateDomain is a domain of From addresses.
type TemplateDomain struct {
	Domain string
	// Keys sign its mail, RSA first.
	Keys []TemplateKey
}

// TemplateKey is a key with the d= and s= that it signs with.
type TemplateKey struct {
	Domain, Selector string
	// Algorithm is rsa-sha256 or ed25519-sha256.
	Algorithm string
	// File is its path: PKCS #8 in PEM.
	File string
	// ID is that of the private key. It is another one when a selector gets a new key.
	ID string
	// Signs says that it signs now.
	Signs bool
}

// Template is a Format with one file, made by a text/template, which is executed with a
// TemplateData. The file is called as that of the template, without .tmpl. It is an error
// if the template cannot be executed, with domains or without.
func Template(file string) (Format, error) {
	name, ok := strings.CutSuffix(filepath.Base(file), templateEnd)
	if !ok || !templateNames.MatchString(name) || name == keysName || name == manifestName || strings.HasSuffix(name, unfinished) {
		return Format{}, fmt.Errorf("%q: a template is called NAME%s, with letters, digits and ._- in the NAME of the file that it makes, which is not %s or %s and does not end in %s",
			file, templateEnd, keysName, manifestName, unfinished)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return Format{}, err
	}
	tmpl, err := template.New(filepath.Base(file)).Parse(string(text))
	if err != nil {
		return Format{}, err
	}
	for _, v := range []View{{}, example()} {
		if err := tmpl.Execute(io.Discard, templateData(v)); err != nil {
			return Format{}, fmt.Errorf("tried with %d domains: %w", len(v.Entries), err)
		}
	}
	return Format{Name: TemplateName, tables: []string{name}, render: func(v View) ([][]byte, error) {
		var out bytes.Buffer
		err := tmpl.Execute(&out, templateData(v))
		return [][]byte{out.Bytes()}, err
	}}, nil
}

// example is what templates are tried with.
func example() View {
	ref := func(domain, selector, algorithm string) Ref {
		return Ref{Domain: domain, Selector: selector, Algorithm: algorithm, Key: "brands/b/domains/" + domain + "/keys/" + selector}
	}
	v := View{Dir: "/", Refs: []Ref{ref("b.example", "ed1", ed25519SHA256), ref("b.example", "s1", rsaSHA256), ref("b.example", "s2", rsaSHA256)}}
	v.Entries = []Entry{{Sender: "a.example", Refs: v.Refs[1:2]}, {Sender: "b.example", Refs: []Ref{v.Refs[1], v.Refs[0]}}}
	v.Default.Refs = v.Refs[1:2]
	return v
}

func templateData(v View) TemplateData {
	signs := make(map[Ref]bool)
	for _, r := range v.Default.Refs {
		signs[r] = true
	}
	for _, e := range v.Entries {
		for _, r := range e.Refs {
			signs[r] = true
		}
	}
	keys := func(refs []Ref) (keys []TemplateKey) {
		for _, r := range refs {
			keys = append(keys, TemplateKey{Domain: r.Domain, Selector: r.Selector, Algorithm: r.Algorithm, File: r.path(v.Dir), ID: id(r.Key), Signs: signs[r]})
		}
		return keys
	}
	d := TemplateData{Dir: v.Dir, Default: keys(v.Default.Refs), Keys: keys(v.Refs)}
	for _, e := range v.Entries {
		d.Domains = append(d.Domains, TemplateDomain{Domain: e.Sender, Keys: keys(e.Refs)})
	}
	return d
}
