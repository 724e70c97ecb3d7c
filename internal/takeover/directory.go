package takeover

import (
	"path/filepath"
	"strings"
)

// DefaultPattern is how Directory takes the names of files apart unless told otherwise.
const DefaultPattern = "{domain}.{selector}.key"

// Directory lists the files below a directory whose names have the form of pattern: {domain} and {selector} stand for
// these, and a slash for a directory, as in "{domain}/{selector}.private". Nothing in a directory says which keys are in
// use. It returns ErrNothing if no file is like that, and what reading the directory fails with.
func Directory(dir, pattern string) (Inventory, error) {
	if pattern == "" {
		pattern = DefaultPattern
	}
	if strings.Count(pattern, "{selector}") != 1 {
		return Inventory{}, errTemplate
	}
	t, err := parseTemplate(filepath.Join(dir, filepath.FromSlash(pattern)))
	if err != nil {
		return Inventory{}, err
	}
	var inv Inventory
	seen := make(map[string]int)
	err = t.walk(func(path, domain, selector string) {
		inv.add(seen, domain, selector, Key{Place: Place{File: path}, File: path})
	})
	if err != nil {
		return Inventory{}, err
	}
	if len(inv.Keys) == 0 && len(inv.Problems) == 0 {
		return Inventory{}, ErrNothing
	}
	return inv, nil
}
