package takeover

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// OpenDKIM says where the configuration of an OpenDKIM is. What is not set is taken from Config; KeyTable and
// SigningTable together need none.
type OpenDKIM struct {
	Files

	Config       string // opendkim.conf
	KeyTable     string // the file of the parameter of that name; Root is not put in front
	SigningTable string
	// Domains are those to take over where the tables do not name any: "%" for the sender's.
	Domains []string
}

// maxIncludes bounds how deep files may include others.
const maxIncludes = 8

// List reads opendkim.conf(5): KeyTable and SigningTable, or Domain, Selector and KeyFile. A key is in use if the
// SigningTable refers to it. Where the tables have "%" for the domain of the sender, the domains are those of the
// SigningTable, those of o.Domains and, if the path of the key has the "%", those for which there is a file. It returns
// ErrNothing, or the error of reading opendkim.conf or a table.
func (o OpenDKIM) List() (Inventory, error) {
	c := opendkimRun{OpenDKIM: o, params: make(map[string]parameter), seen: make(map[string]int)}
	if o.Config != "" {
		if err := c.readConfig(o.Config, 0); err != nil {
			return Inventory{}, err
		}
	}
	for name, value := range map[string]string{"keytable": o.KeyTable, "signingtable": o.SigningTable} {
		if value != "" {
			c.params[name] = parameter{value: value, given: true}
		}
	}
	var err error
	if c.params["keytable"].value != "" {
		err = c.tables()
	} else {
		err = c.single()
	}
	if err == nil && len(c.inv.Keys) == 0 && len(c.inv.Problems) == 0 {
		err = ErrNothing
	}
	return c.inv, err
}

// parameter is a line of opendkim.conf.
type parameter struct {
	value string
	place Place
	given bool // not from there: value is a file
}

type opendkimRun struct {
	OpenDKIM

	params map[string]parameter // by name in lower case
	inv    Inventory
	seen   map[string]int
}

func (c *opendkimRun) readConfig(name string, depth int) error {
	text, err := c.read(name)
	if err != nil {
		return err
	}
	for _, e := range parseTable(text) {
		at := Place{name, e.line}
		switch key := strings.ToLower(e.key); {
		case key == "include" && depth < maxIncludes:
			if err := c.readConfig(c.Path(e.value, name), depth+1); err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
		case key == "include":
			return fmt.Errorf("%s: files include one another too often", at)
		default:
			c.params[key] = parameter{value: e.value, place: at}
		}
	}
	return nil
}

// table reads the data set of a parameter.
func (c *opendkimRun) table(p parameter) (dataset, error) {
	if !p.given {
		return c.dataset(p.value, p.place)
	}
	text, err := c.read(p.value)
	return dataset{file: p.value, entries: parseTable(text)}, err
}

// single is for one key for all domains: Domain, Selector, KeyFile.
func (c *opendkimRun) single() error {
	domain, selector, file := c.params["domain"], c.params["selector"], c.params["keyfile"]
	if domain.value == "" || selector.value == "" || file.value == "" {
		return nil
	}
	set, err := c.table(domain)
	if err != nil {
		return fmt.Errorf("%s: %w", domain.place, err)
	}
	for _, e := range set.entries {
		k := Key{InUse: true, Place: set.place(e), File: c.Path(file.value, file.place.File)}
		c.inv.add(c.seen, e.key, selector.value, k)
	}
	return nil
}

// tables is for KeyTable and SigningTable.
func (c *opendkimRun) tables() error {
	at := c.params["keytable"]
	keys, err := c.table(at)
	if err != nil {
		return fmt.Errorf("KeyTable: %w", err)
	}
	var signs signing
	if at := c.params["signingtable"]; at.value != "" {
		table, err := c.table(at)
		if err != nil {
			return fmt.Errorf("SigningTable: %w", err)
		}
		signs = c.signing(table)
	}
	c.join(keys, signs)
	return nil
}

// join lists the keys of a KeyTable.
func (c *opendkimRun) join(keys dataset, signs signing) {
	names := make(map[string]bool)
	for _, e := range keys.entries {
		place := keys.place(e)
		domain, selector, key, ok := splitKey(e.value)
		switch {
		case names[e.key]:
			c.inv.problem(place, "key %.100q is there twice; the first one counts", e.key)
			continue
		case !ok:
			c.inv.problem(place, "expected NAME DOMAIN:SELECTOR:KEY")
			continue
		}
		names[e.key] = true
		c.expand(e.key, domain, selector, key, keys.file, place, signs)
	}
	for name, places := range signs.places {
		if !names[name] && !signs.senders {
			c.inv.problem(places, "key %.100q is not in the KeyTable", name)
		}
	}
	slices.SortStableFunc(c.inv.Problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Place.File, b.Place.File), cmp.Compare(a.Place.Line, b.Place.Line))
	})
}

// splitKey takes a value of the KeyTable apart: the key may have colons.
func splitKey(value string) (domain, selector, key string, ok bool) {
	parts := strings.SplitN(value, ":", 3)
	if len(parts) < 3 {
		return "", "", "", false
	}
	for i := range parts {
		if parts[i] = strings.TrimSpace(parts[i]); parts[i] == "" {
			return "", "", "", false
		}
	}
	return parts[0], parts[1], parts[2], true
}

// signing is what a SigningTable says.
type signing struct {
	places  map[string]Place    // of the names of keys that it refers to
	domains map[string][]string // the domains whose mail each of them signs, in order
	open    map[string]bool     // of those that sign for domains that are not named
	senders bool                // a name of a key may be the sender's domain
}

// signing reads a SigningTable: patterns of senders, with the name of a key and perhaps a signer.
func (c *opendkimRun) signing(table dataset) signing {
	s := signing{places: make(map[string]Place), domains: make(map[string][]string), open: make(map[string]bool)}
	for _, e := range table.entries {
		name, _, _ := strings.Cut(e.value, ":")
		name = strings.TrimSpace(name)
		domain, named := senderDomain(e.key)
		switch {
		case name == "":
			c.inv.problem(table.place(e), "expected PATTERN KEY")
			continue
		case name == "%" && !named:
			s.senders = true
			continue
		case name == "%":
			name = domain
		}
		if _, ok := s.places[name]; !ok {
			s.places[name] = table.place(e)
		}
		if named {
			s.domains[name] = append(s.domains[name], domain)
		} else {
			s.open[name] = true
		}
	}
	return s
}

// senderDomain is the one domain that a pattern of the SigningTable is for, if it is for one: *@example.com,
// joe@example.com, example.com.
func senderDomain(pattern string) (domain string, ok bool) {
	if at := strings.LastIndexByte(pattern, '@'); at >= 0 {
		pattern = pattern[at+1:]
	}
	pattern = strings.TrimSuffix(pattern, ".")
	return strings.ToLower(pattern), pattern != "" && pattern[0] != '.' && !strings.ContainsAny(pattern, "*?%")
}

// expand lists the keys that an entry of the KeyTable stands for.
func (c *opendkimRun) expand(name, domain, selector, key, table string, place Place, signs signing) {
	_, used := signs.places[name]
	used = used || signs.senders
	k := Key{InUse: used, Place: place}
	if domain != "%" && !strings.Contains(key, "%") {
		c.locate(&k, key, table)
		c.inv.add(c.seen, domain, selector, k)
		return
	}
	senders := slices.Concat(signs.domains[name], c.Domains)
	if domain != "%" {
		senders = append(senders, domain) // in the path of the key, "%" is the sender's
	}
	listed := len(c.inv.Keys) + len(c.inv.Problems)
	for _, sender := range senders {
		each := k
		c.locate(&each, strings.ReplaceAll(key, "%", sender), table)
		d := domain
		if d == "%" {
			d = sender
		}
		c.inv.add(c.seen, d, selector, each)
	}
	if isPath(key) && strings.Count(key, "%") == 1 && domain == "%" && (signs.open[name] || signs.senders) {
		c.files(selector, c.keyPath(key, table), k)
	}
	if len(c.inv.Keys)+len(c.inv.Problems) == listed && len(senders) == 0 {
		c.inv.problem(place, "key %.100q signs for domains that are named nowhere; name them with --domain", name)
	}
}

// files lists the keys for whose domain there is a file, where "%" is in its path.
func (c *opendkimRun) files(selector, path string, k Key) {
	t, err := parseTemplate(strings.Replace(path, "%", "{domain}", 1))
	if err == nil {
		err = t.walk(func(path, domain, _ string) {
			each := k
			each.File = path
			c.inv.add(c.seen, domain, selector, each)
		})
	}
	if err != nil {
		c.inv.problem(k.Place, "look for key files: %w", err)
	}
}

// isPath tells a path from a key that stands in the table itself, as OpenDKIM does.
func isPath(key string) bool {
	return strings.HasPrefix(key, "/") || strings.HasPrefix(key, "./") || strings.HasPrefix(key, "../")
}

func (c *opendkimRun) keyPath(key, table string) string {
	if table == "" {
		table = c.Config
	}
	return c.Path(key, table)
}

// locate says where the key is.
func (c *opendkimRun) locate(k *Key, key, table string) {
	if isPath(key) {
		k.File = c.keyPath(key, table)
		return
	}
	k.inline = []byte(strings.ReplaceAll(key, `\n`, "\n"))
}
