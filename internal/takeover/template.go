package takeover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// template is the path of key files with places for domain and selector.
type template struct {
	base    string // the directory above the first place
	pattern *regexp.Regexp
	depth   int // directories between base and file
}

var errTemplate = errors.New("the path of key files must name {domain} and {selector} in at most one directory level above the file")

// parseTemplate compiles a path with {domain} and {selector} in it, each at most once. selector is what it means where the path
// does not say.
func parseTemplate(path string) (template, error) {
	if strings.Count(path, "{domain}") != 1 || strings.Count(path, "{selector}") > 1 {
		return template{}, errTemplate
	}
	path = filepath.Clean(path)
	first := strings.IndexByte(path, '{')
	at := strings.LastIndexByte(path[:first], filepath.Separator) + 1
	base, rest := path[:at], path[at:]
	expr := regexp.QuoteMeta(rest)
	// The last dot before the selector ends the domain, since selectors with dots are rare.
	expr = strings.Replace(expr, `\{domain\}`, `(?P<domain>[^/]+)`, 1)
	expr = strings.Replace(expr, `\{selector\}`, `(?P<selector>[^/.]+)`, 1)
	pattern, err := regexp.Compile("^" + expr + "$")
	if err != nil {
		return template{}, errTemplate
	}
	if base == "" {
		base = "."
	}
	depth := strings.Count(rest, string(filepath.Separator))
	if depth > maxDepth {
		return template{}, errTemplate
	}
	return template{base, pattern, depth}, nil
}

// maxDepth is how many directories a template may have places in.
const maxDepth = 2

// match takes the path of a file apart. A part that the template does not name is "".
func (t template) match(path string) (domain, selector string, ok bool) {
	rest, err := filepath.Rel(t.base, path)
	if err != nil {
		return "", "", false
	}
	found := t.pattern.FindStringSubmatch(filepath.ToSlash(rest))
	if found == nil {
		return "", "", false
	}
	for i, name := range t.pattern.SubexpNames() {
		switch name {
		case "domain":
			domain = found[i]
		case "selector":
			selector = found[i]
		}
	}
	return domain, selector, true
}

// walk calls each with the files that match, in order of name.
func (t template) walk(each func(path, domain, selector string)) error {
	return filepath.WalkDir(t.base, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if entry == nil || path == t.base {
				return err
			}
			return fs.SkipDir
		}
		rest, err := filepath.Rel(t.base, path)
		if err != nil {
			return err
		}
		level := strings.Count(rest, string(filepath.Separator))
		if entry.IsDir() {
			if rest != "." && level >= t.depth {
				return fs.SkipDir
			}
			return nil
		}
		if domain, selector, ok := t.match(path); ok && isFile(path, entry) {
			each(path, domain, selector)
		}
		return nil
	})
}

// isFile reports whether something is a file, or a link to one.
func isFile(path string, entry fs.DirEntry) bool {
	if entry.Type()&fs.ModeSymlink == 0 {
		return entry.Type().IsRegular()
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
