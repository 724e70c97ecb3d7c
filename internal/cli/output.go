package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v2"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// format is the value of --output.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// print writes one message. table is how people get it.
func (r *run) print(m proto.Message, table func(io.Writer) error) error {
	var text []byte
	var err error
	switch r.format {
	case formatJSON:
		text, err = jsonText(m, "", "  ")
	case formatYAML:
		text, err = yamlText(m)
	default:
		return table(r.Stdout)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.Stdout, "%s\n", text)
	return err
}

// document is m as one of many that follow each other: a line of JSON, or a document
// of YAML.
func (r *run) document(m proto.Message) ([]byte, error) {
	if r.format == formatJSON {
		return jsonText(m, "", "")
	}
	text, err := yamlText(m)
	return append([]byte("---\n"), text...), err
}

// jsonText is m in the JSON form of protobuf, without the spaces that protojson
// varies from build to build.
func jsonText(m proto.Message, prefix, indent string) ([]byte, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	var text bytes.Buffer
	if indent == "" {
		err = json.Compact(&text, raw)
	} else {
		err = json.Indent(&text, raw, prefix, indent)
	}
	if err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	return text.Bytes(), nil
}

// longLines lets a DKIM record stay on its line. It is a global switch of
// package yaml.
var longLines = sync.OnceFunc(yaml.FutureLineWrap)

// yamlText is the JSON form in YAML, fields in the same order.
func yamlText(m proto.Message) ([]byte, error) {
	raw, err := jsonText(m, "", "")
	if err != nil {
		return nil, err
	}
	return yamlOf(raw)
}

// yamlOf is JSON in YAML.
func yamlOf(raw []byte) ([]byte, error) {
	longLines()
	var fields yaml.MapSlice
	if err := yaml.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("print as YAML: %w", err)
	}
	text, err := yaml.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("print as YAML: %w", err)
	}
	return bytes.TrimSuffix(text, []byte("\n")), nil
}

// list prints the items of a list as they come: a table, or the List response
// with all pages as one.
type list struct {
	format format
	out    io.Writer
	field  string // of the List response
	rows   *tabwriter.Writer
	any    bool
	err    error // the first one; nothing is printed after it
}

// newList begins a list, without a table if it names no columns. Nothing is
// printed before the first page is complete.
func (r *run) newList(field string, columns ...string) *list {
	l := &list{format: r.format, out: r.Stdout, field: field, rows: newTable(r.Stdout)}
	if l.format == formatTable && len(columns) > 0 {
		row(l.rows, columns...)
	}
	return l
}

// add takes an item, of which cells are the row of the table. Errors show at
// the end of the page.
func (l *list) add(m proto.Message, cells ...string) {
	var text []byte
	first, next := "{\n  \""+l.field+"\": [\n    ", ",\n    "
	switch {
	case l.err != nil:
		return
	case l.format == formatTable:
		row(l.rows, cells...)
		return
	case l.format == formatJSON:
		text, l.err = jsonText(m, "    ", "  ")
	default:
		first, next = l.field+":\n- ", "\n- "
		text, l.err = yamlText(m)
		text = bytes.ReplaceAll(text, []byte("\n"), []byte("\n  "))
	}
	if l.err != nil {
		return
	}
	if l.any {
		first = next
	}
	l.any = true
	_, l.err = fmt.Fprintf(l.out, "%s%s", first, text)
}

// pageDone prints what the table has kept back to align it.
func (l *list) pageDone() error {
	if l.err == nil {
		l.err = l.rows.Flush()
	}
	return l.err
}

// end completes the list.
func (l *list) end() error {
	if err := l.pageDone(); err != nil || l.format == formatTable {
		return err
	}
	end := "\n"
	switch {
	case !l.any:
		end = "{}\n"
	case l.format == formatJSON:
		end = "\n  ]\n}\n"
	}
	_, err := io.WriteString(l.out, end)
	return err
}

// pages fetches page after page, each by the token that the one before
// returned, and completes the list.
func (l *list) pages(fetch func(token string) (next string, err error)) error {
	for token := ""; ; {
		next, err := fetch(token)
		if err == nil {
			err = l.pageDone()
		}
		if err != nil {
			return err
		}
		if next == "" {
			return l.end()
		}
		token = next
	}
}

// details prints pairs of a name and a value, one on each line; those without a
// value are left out.
func details(w io.Writer, pairs ...string) error {
	t := newTable(w)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			row(t, pairs[i]+":", pairs[i+1])
		}
	}
	return t.Flush()
}

func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// row adds a line to a table. Errors show when it is flushed.
func row(t *tabwriter.Writer, cells ...string) {
	line := make([]string, len(cells))
	for i, cell := range cells {
		line[i] = cmp.Or(oneLine(cell), "-")
	}
	_, _ = fmt.Fprintln(t, strings.Join(line, "\t"))
}

func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// lastPart is the value of the last collection of a resource name.
func lastPart(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }
