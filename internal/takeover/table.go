package takeover

import (
	"fmt"
	"strings"
)

// entry is a line of a table: a key, and the values that belong to it.
type entry struct {
	line  int
	key   string
	value string
}

// parseTable reads a table as OpenDKIM's file: and refile: data sets and rspamd's maps are: a key and, after white space,
// its value on each line; "#" begins a comment.
func parseTable(text string) []entry {
	var entries []entry
	line := 0
	for raw := range strings.Lines(text) {
		line++
		raw, _, _ = strings.Cut(raw, "#")
		raw = strings.TrimSpace(raw)
		if raw == "" {
			continue
		}
		e := entry{line: line, key: raw}
		if i := strings.IndexAny(raw, " \t"); i >= 0 {
			e.key, e.value = raw[:i], strings.TrimSpace(raw[i:])
		}
		entries = append(entries, e)
	}
	return entries
}

// parseList reads a data set that stands in the configuration itself: key=value, with commas between them.
func parseList(text string) []entry {
	var entries []entry
	for item := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(item), "=")
		if key = strings.TrimSpace(key); key != "" {
			entries = append(entries, entry{key: key, value: strings.TrimSpace(value)})
		}
	}
	return entries
}

// dataset is a table with the place where it stands.
type dataset struct {
	file    string // "" if it stands in the configuration
	config  Place
	entries []entry
}

func (d dataset) place(e entry) Place {
	if d.file == "" {
		return d.config
	}
	return Place{d.file, e.line}
}

// dataset reads what a parameter of OpenDKIM refers to. The kinds that are programs or databases are refused.
func (f Files) dataset(ref string, at Place) (dataset, error) {
	kind, rest, found := strings.Cut(ref, ":")
	switch kind = strings.ToLower(kind); {
	case found && (kind == "file" || kind == "refile"):
		ref = rest
	case found && kind == "csl":
		return dataset{config: at, entries: parseList(rest)}, nil
	case found && isIdentifier(kind):
		return dataset{}, fmt.Errorf("data sets of the kind %q cannot be read here: write the table to a file and name that", kind)
	case !strings.HasPrefix(ref, "/"):
		return dataset{config: at, entries: parseList(ref)}, nil
	}
	name := f.Path(ref, at.File)
	text, err := f.read(name)
	if err != nil {
		return dataset{}, err
	}
	return dataset{file: name, config: at, entries: parseTable(text)}, nil
}

// isIdentifier tells the name of a kind from what may stand before a colon in a list.
func isIdentifier(s string) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
