package takeover

import (
	"fmt"
	"testing"
)

func FuzzTables(f *testing.F) {
	f.Add("a a.example:s:/k\nb %:s:./%", "*@a.example a\n* b")
	f.Add("# x\na=b csl:x", "joe@b.example %\n.c.example %:x")
	f.Add("x %:s:MC4CAQ", "x@a.example x")
	f.Fuzz(func(t *testing.T, keys, signs string) {
		for _, parse := range []func(string) []entry{parseTable, parseList} {
			c := opendkimRun{OpenDKIM: OpenDKIM{Files: Files{Root: t.TempDir()}, Domains: []string{"d.example"}}, seen: make(map[string]int)}
			c.join(dataset{file: "/KeyTable", entries: parse(keys)}, c.signing(dataset{file: "/SigningTable", entries: parse(signs)}))
			checkSound(t, c.inv)
		}
	})
}

func FuzzRspamd(f *testing.F) {
	f.Add("domain { a.example { selector = s; path = /k } }", "a.example s")
	f.Add("selector_map { a.example: b } a \"b\" c { d [ { e: f }, g ] }", "# x\n\"a.example\" \"s\"")
	f.Add("a = <<EOD\nx\nEOD\n/* c */ .include \"x\"", "")
	f.Add("{\"domain\": {\"a.example\": {\"selectors\": [{\"selector\": \"a\\n\"}]}}}", "")
	f.Fuzz(func(t *testing.T, config, table string) {
		n, err := parseUCL(config)
		if err != nil {
			if n.section != nil || err.Error() == "" {
				t.Errorf("%v, %v", n, err)
			}
			return
		}
		c := rspamdRun{Rspamd: Rspamd{Files: Files{Root: t.TempDir()}}, config: n, path: rspamdPath, selector: rspamdSelector, seen: make(map[string]int), named: make(map[string]bool)}
		c.sections()
		for _, e := range parseTable(table) {
			c.key(unquoted(e.key), unquoted(e.value), c.path, Place{})
		}
		checkSound(t, c.inv)
	})
}

func FuzzTemplate(f *testing.F) {
	f.Add("/x/{domain}.{selector}.key", "/x/a.example.s.key")
	f.Add("{domain}/{selector}", "a/b")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		m, err := parseTemplate(pattern)
		if err != nil {
			return
		}
		if domain, _, ok := m.match(path); ok && domain == "" {
			t.Errorf("%q matches %q without a domain", pattern, path)
		}
	})
}

// checkSound checks what every inventory promises.
func checkSound(t *testing.T, inv Inventory) {
	t.Helper()
	seen := make(map[string]bool)
	for _, k := range inv.Keys {
		name := fmt.Sprint(k)
		if k.Domain == "" || k.Selector == "" || seen[name] {
			t.Errorf("key %q is without a name, or there twice", name)
		}
		seen[name] = true
	}
	for _, p := range inv.Problems {
		if p.Err == nil || p.Error() == "" {
			t.Error("a problem that says nothing")
		}
	}
}
