package agent

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// Format says how a signer reads keys.
type Format struct {
	// Name is what it is called on the command line.
	Name string
	// MustReload says that the signer does not look by itself whether they changed.
	MustReload bool
	// tables are the names of its files, in the order in which they are written:
	// those that say where keys are before those that say which of them sign.
	tables []string
	// render makes them, in the same order. It is pure.
	render func(View) ([][]byte, error)
}

// View is what a Format shows.
type View struct {
	// Dir is the directory of the files, absolute.
	Dir string
	// Entries are sorted by their Sender, each is there once.
	Entries []Entry
	// Default signs mail of all other domains, if there are Refs.
	Default Entry
	// Refs are all keys that are in files: those of Entries, keys that may come to
	// sign, and keys that signed until lately.
	Refs []Ref
}

// Formats are those that need nothing to be made; the other one is Template.
func Formats() []Format {
	return []Format{openDKIM, exim, rspamd, kumoMTA}
}

// FormatNamed is the one of Formats with that name.
func FormatNamed(name string) (Format, bool) {
	i := slices.IndexFunc(Formats(), func(f Format) bool { return f.Name == name })
	if i < 0 {
		return Format{}, false
	}
	return Formats()[i], true
}

func compareRefs(a, b Ref) int {
	if c := cmp.Compare(a.Domain, b.Domain); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Selector, b.Selector); c != 0 {
		return c
	}
	return cmp.Compare(a.Key, b.Key)
}

// openDKIM is a KeyTable, and a SigningTable to be read as refile. A domain with
// several keys has several lines, which OpenDKIM takes with MultipleSignatures. It
// has one algorithm for all its signatures, rsa-sha256 by default, and replies 451 to
// the message when a key is for another one: Ed25519 keys are in no SigningTable.
var openDKIM = Format{Name: "opendkim", MustReload: true, tables: []string{"KeyTable", "SigningTable"}, render: func(v View) ([][]byte, error) {
	signs := make([]byte, 0, lineSize*len(v.Entries))
	for _, e := range v.Entries {
		for _, r := range e.Refs {
			if r.Algorithm != ed25519SHA256 {
				signs = append(signs, "*@"...)
				signs = append(signs, e.Sender...)
				signs = append(signs, ' ')
				signs = append(r.appendLabel(signs, id(r.Key)), '\n')
			}
		}
	}
	return [][]byte{keyTable(v), signs}, nil
}}

// lineSize is about that of a line.
const lineSize = 160

// keyTable says of each key where it is, in the form that OpenDKIM reads.
func keyTable(v View) []byte {
	keys := make([]byte, 0, lineSize*len(v.Refs))
	for _, r := range v.Refs {
		id := id(r.Key)
		keys = append(r.appendLabel(keys, id), ' ')
		keys = append(keys, r.Domain...)
		keys = append(keys, ':')
		keys = append(keys, r.Selector...)
		keys = append(keys, ':')
		keys = append(keys, v.Dir...)
		keys = append(keys, "/"+keysName+"/"...)
		keys = append(appendKeyFile(keys, r.Key, id), '\n')
	}
	return keys
}

// exim is three files for lsearch: where each key is, which selectors sign for a
// d=, and which d= for the domain of a sender.
var exim = Format{Name: "exim", tables: []string{"paths", "selectors", "domains"}, render: func(v View) ([][]byte, error) {
	var keys, selectors, domains bytes.Buffer
	// Keys are looked up by their selector. While the key before is still there, the
	// one that signs is meant.
	signing := make(map[string][]Ref)
	path := make(map[string]string)
	entries := v.Entries
	if len(v.Default.Refs) > 0 {
		entries = append(slices.Clone(entries), Entry{Sender: "*", Refs: v.Default.Refs})
	}
	for _, e := range entries {
		d := e.Refs[0].Domain
		fmt.Fprintf(&domains, "%s: %s\n", e.Sender, d)
		for _, r := range e.Refs {
			// All Refs of an entry have the same d=, and two entries with the same d=
			// have the same Refs, but for a moment at most: then either will do.
			path[r.Selector+"._domainkey."+r.Domain] = r.path(v.Dir)
		}
		signing[d] = e.Refs
	}
	for _, r := range v.Refs {
		name := r.Selector + "._domainkey." + r.Domain
		if path[name] == "" {
			path[name] = r.path(v.Dir)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(path)) {
		fmt.Fprintf(&keys, "%s: %s\n", name, path[name])
	}
	for _, d := range slices.Sorted(maps.Keys(signing)) {
		fmt.Fprintf(&selectors, "%s:", d)
		for i, r := range signing[d] {
			if i > 0 {
				selectors.WriteString(" :")
			}
			fmt.Fprintf(&selectors, " %s", r.Selector)
		}
		selectors.WriteByte('\n')
	}
	return [][]byte{keys.Bytes(), selectors.Bytes(), domains.Bytes()}, nil
}}

// rspamd is a key_table and a signing_table of its module dkim_signing, which looks at
// both by itself now and then. It signs with one key for each domain, and reads no
// Ed25519 keys in PEM: the first RSA key is taken. The signing_table is to be read as
// regexp, since others tell capitals apart.
var rspamd = Format{Name: "rspamd", tables: []string{"key_table", "signing_table"}, render: func(v View) ([][]byte, error) {
	signs := make([]byte, 0, lineSize*len(v.Entries))
	for _, e := range v.Entries {
		if r := e.Refs[0]; r.Algorithm == rsaSHA256 { // RSA keys are first
			signs = append(append(append(signs, "/@"...), regexp.QuoteMeta(e.Sender)...), "$/i "...)
			signs = append(r.appendLabel(signs, id(r.Key)), '\n')
		}
	}
	return [][]byte{keyTable(v), signs}, nil
}}

// kumoMTA is a file for KumoMTA's helper dkim_sign: a block with one key for each
// domain, whose name is also d=, and a signature for mail of all others.
var kumoMTA = Format{Name: "kumomta", tables: []string{"dkim_data.toml"}, render: func(v View) ([][]byte, error) {
	var out bytes.Buffer
	key := func(r Ref) {
		algo := "sha256"
		if r.Algorithm == ed25519SHA256 {
			algo = "ed25519"
		}
		fmt.Fprintf(&out, "selector = %q\nalgo = %q\nfilename = %q\n", r.Selector, algo, r.path(v.Dir))
	}
	if len(v.Default.Refs) > 0 {
		r := v.Default.Refs[0]
		fmt.Fprintf(&out, "[base]\nadditional_signatures = [\"default\"]\n\n[signature.\"default\"]\npolicy = \"OnlyIfMissingDomainBlock\"\ndomain = %q\n", r.Domain)
		key(r)
	}
	for _, e := range v.Entries {
		if r := e.Refs[0]; r.Domain == e.Sender { // a default key signs what has no block
			fmt.Fprintf(&out, "\n[domain.%q]\n", e.Sender)
			key(r)
		}
	}
	return [][]byte{out.Bytes()}, nil
}}
