package takeover

import (
	"errors"
	"fmt"
	"strings"
)

// What rspamd takes where the configuration says nothing.
const (
	rspamdPath     = "/var/lib/rspamd/dkim/$domain.$selector.key"
	rspamdSelector = "dkim"
)

// rspamdDirs are the variables that stand for directories in rspamd's configuration.
var rspamdDirs = strings.NewReplacer(
	"${LOCAL_CONFDIR}", "/etc/rspamd", "$LOCAL_CONFDIR", "/etc/rspamd", "${CONFDIR}", "/etc/rspamd", "$CONFDIR", "/etc/rspamd",
	"${DBDIR}", "/var/lib/rspamd", "$DBDIR", "/var/lib/rspamd",
)

// Rspamd says where the configuration of rspamd's module dkim_signing is. What is set beside Config replaces what is in it.
type Rspamd struct {
	Files

	Config      string // local.d/dkim_signing.conf, or the output of rspamadm configdump dkim_signing
	Path        string // of key files, with $domain and $selector
	Selector    string
	SelectorMap string
	PathMap     string
	// Domains are those to take over where nothing names any.
	Domains []string
}

// List reads the sections and maps of dkim_signing, and lists the key files that its path may mean. The key of a domain's
// own section or map is in use, and for other domains that of the selector for all. It returns ErrNothing, or the error of
// reading the configuration.
func (r Rspamd) List() (Inventory, error) {
	c := rspamdRun{Rspamd: r, seen: make(map[string]int), named: make(map[string]bool)}
	if err := c.read(); err != nil {
		return Inventory{}, err
	}
	c.sections()
	if err := c.maps(); err != nil {
		return Inventory{}, err
	}
	if err := c.tables(); err != nil {
		return Inventory{}, err
	}
	for _, domain := range c.Domains {
		c.key(domain, c.selector, c.path, c.at(c.config))
	}
	c.files()
	if len(c.inv.Keys) == 0 && len(c.inv.Problems) == 0 {
		return Inventory{}, ErrNothing
	}
	return c.inv, nil
}

type rspamdRun struct {
	Rspamd

	config         node
	path, selector string
	inv            Inventory
	seen           map[string]int
	named          map[string]bool // domains that have a key of their own
}

func (c *rspamdRun) at(n node) Place { return Place{c.Config, n.line} }

// read reads the configuration and the settings for all domains.
func (c *rspamdRun) read() error {
	if c.Config != "" {
		text, err := c.Files.read(c.Config)
		if err != nil {
			return err
		}
		if c.config, err = parseUCL(text); err != nil {
			return fmt.Errorf("%s: %w", c.Config, err)
		}
		if inner, ok := c.config.last("dkim_signing"); ok && inner.section != nil {
			c.config = inner
		}
	}
	c.path, c.selector = c.setting("path", c.Path, rspamdPath), c.setting("selector", c.Selector, rspamdSelector)
	for _, name := range []string{"use_redis", "use_vault"} {
		if n, ok := c.config.last(name); ok && isTrue(n.text) {
			c.inv.problem(c.at(n), "%s: keys that are not in files cannot be read here", name)
		}
	}
	return nil
}

func isTrue(text string) bool {
	switch strings.ToLower(text) {
	case "true", "yes", "on", "1":
		return true
	}
	return false
}

// setting is one for all domains: as given, as configured, or as preset.
func (c *rspamdRun) setting(name, given, preset string) string {
	if given != "" {
		return given
	}
	if n, ok := c.config.last(name); ok && n.section == nil && n.text != "" {
		return n.text
	}
	return preset
}

// key lists a key that is in use, by its domain, selector and path.
func (c *rspamdRun) key(domain, selector, path string, at Place) {
	c.named[strings.ToLower(domain)] = true
	path = strings.NewReplacer("$domain", domain, "$selector", selector).Replace(rspamdDirs.Replace(path))
	c.inv.add(c.seen, domain, selector, Key{InUse: true, Place: at, File: c.Files.Path(path, c.Config)})
}

// sections reads domain { example.com { selector = …; path = …; } }.
func (c *rspamdRun) sections() {
	for _, domains := range c.config.find("domain") {
		for _, f := range domains.section {
			for _, own := range f.value.elements() {
				c.domain(f.name, own)
			}
		}
	}
}

func (c *rspamdRun) domain(name string, own node) {
	keys := own.find("selectors")
	if len(keys) == 0 {
		keys = []node{own}
	}
	for _, k := range keys {
		text := func(field, preset string) string {
			if n, ok := k.last(field); ok {
				return n.text
			}
			if n, ok := own.last(field); ok {
				return n.text
			}
			return preset
		}
		if k.section == nil {
			c.inv.problem(c.at(own), "domain %.100q: expected a section with selector and path", name)
			continue
		}
		c.key(text("domain", name), text("selector", c.selector), text("path", c.path), c.at(k))
	}
}

// errNotFile is for maps that come from elsewhere.
var errNotFile = errors.New("maps that are not files cannot be read here: save it in a file and name that")

// table reads a map that a setting names, or that stands in the configuration; given is a file in its place.
func (c *rspamdRun) table(name, given string) (dataset, error) {
	ref, at := given, Place{File: c.Config}
	if ref == "" {
		n, ok := c.config.last(name)
		if !ok {
			return dataset{}, nil
		}
		at = c.at(n)
		if n.section != nil {
			d := dataset{config: at}
			for _, f := range n.section {
				d.entries = append(d.entries, entry{key: f.name, value: f.value.text})
			}
			return d, nil
		}
		ref = n.text
	}
	file, err := mapFile(ref)
	if err != nil {
		return dataset{}, fmt.Errorf("%s: %s: %w", at, name, err)
	}
	file = c.Files.Path(file, c.Config)
	text, err := c.Files.read(file)
	if err != nil {
		return dataset{}, fmt.Errorf("%s: %w", name, err)
	}
	return dataset{file: file, entries: parseTable(text)}, nil
}

// mapFile is the file that a map is read from.
func mapFile(ref string) (string, error) {
	for _, kind := range []string{"glob;", "regexp;", "fallback+"} {
		ref = strings.TrimPrefix(ref, kind)
	}
	scheme, rest, found := strings.Cut(ref, "://")
	switch {
	case found && scheme == "file":
		ref = rest
	case found || ref == "":
		return "", errNotFile
	}
	return rspamdDirs.Replace(ref), nil
}

// maps reads selector_map and path_map: a domain that is in either has a key.
func (c *rspamdRun) maps() error {
	selectors, err := c.table("selector_map", c.SelectorMap)
	if err != nil {
		return err
	}
	paths, err := c.table("path_map", c.PathMap)
	if err != nil {
		return err
	}
	pathOf, listed := make(map[string]string), make(map[string]bool)
	for _, e := range paths.entries {
		pathOf[unquoted(e.key)] = unquoted(e.value)
	}
	one := func(d dataset, e entry, selector string) {
		domain := unquoted(e.key)
		switch {
		case listed[domain]:
		case strings.ContainsAny(domain, "*?/") || selector == "":
			c.inv.problem(d.place(e), "expected one DOMAIN and its value, not a pattern")
		default:
			path := c.path
			if own := pathOf[domain]; own != "" {
				path = own
			}
			c.key(domain, selector, path, d.place(e))
		}
		listed[domain] = true
	}
	for _, e := range selectors.entries {
		one(selectors, e, unquoted(e.value))
	}
	for _, e := range paths.entries {
		one(paths, e, c.selector)
	}
	return nil
}

// unquoted takes the quotes off that a map may have.
func unquoted(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// tables reads signing_table and key_table, which are as OpenDKIM's.
func (c *rspamdRun) tables() error {
	keys, err := c.table("key_table", "")
	if err != nil || len(keys.entries) == 0 {
		return err
	}
	signs, err := c.table("signing_table", "")
	if err != nil {
		return err
	}
	o := opendkimRun{OpenDKIM: OpenDKIM{Files: c.Files, Config: c.Config, Domains: c.Domains}, inv: c.inv, seen: c.seen}
	o.join(keys, o.signing(signs))
	c.inv = o.inv
	for _, k := range c.inv.Keys {
		c.named[string(k.Domain)] = true
	}
	return nil
}

// files lists the keys that are where the path for all domains says, whether anything names them or not.
func (c *rspamdRun) files() {
	path := rspamdDirs.Replace(c.path)
	if !strings.Contains(path, "$domain") {
		return // one key for all
	}
	path = strings.NewReplacer("$domain", "{domain}", "$selector", "{selector}").Replace(path)
	t, err := parseTemplate(c.Files.Path(path, c.Config))
	if err != nil {
		c.inv.problem(Place{File: path}, "%w", err)
		return
	}
	fallback := true
	if n, ok := c.config.last("try_fallback"); ok {
		fallback = isTrue(n.text)
	}
	err = t.walk(func(path, domain, selector string) {
		if selector == "" {
			selector = c.selector
		}
		if _, known := c.seen[seenKey(domain, selector)]; known {
			return
		}
		c.inv.add(c.seen, domain, selector, Key{
			InUse: fallback && selector == c.selector && !c.named[strings.ToLower(domain)],
			Place: Place{File: path}, File: path,
		})
	})
	if err != nil && len(c.inv.Keys) == 0 {
		c.inv.problem(Place{File: t.base}, "look for key files: %w", err)
	}
}
