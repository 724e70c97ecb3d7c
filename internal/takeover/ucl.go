package takeover

import (
	"fmt"
	"strings"
)

const (
	// maxNesting bounds how deep sections may stand in one another.
	maxNesting = 32
	// heredoc begins a value of several lines.
	heredoc = "<<"
)

// node is a value of rspamd's configuration (UCL): text, or a section of named values, or a list. A name may be there
// several times.
type node struct {
	text    string
	line    int
	section []field // nil if it is no section
	list    []node  // nil if it is no list
}

// field is a named value of a section.
type field struct {
	name  string
	value node
}

// find returns the values of a name, in order. The elements of lists count each.
func (n node) find(name string) []node {
	var found []node
	for _, f := range n.section {
		if f.name == name {
			found = append(found, f.value.elements()...)
		}
	}
	return found
}

// elements are those of a list, or the value itself.
func (n node) elements() []node {
	if n.list != nil {
		return n.list
	}
	return []node{n}
}

// last is the value of a name that counts, if it is there.
func (n node) last(name string) (node, bool) {
	found := n.find(name)
	if len(found) == 0 {
		return node{}, false
	}
	return found[len(found)-1], true
}

// uclError says where something cannot be read.
type uclError struct {
	line int
	text string
}

func (e *uclError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.text) }

// parseUCL reads the part of UCL that rspamd's configuration uses, JSON included: sections, also named ones as in
// domain "example.com" { … }, lists, text with or without quotes, comments. Macros such as .include are fields of that
// name.
func parseUCL(text string) (node, error) {
	p := uclParser{text: text, line: 1}
	p.space()
	closing := byte(0)
	if p.peek() == '{' { // JSON
		p.at++
		closing = '}'
	}
	n, err := p.section(closing, 0)
	if err != nil {
		return node{}, err
	}
	if p.space(); p.at < len(p.text) {
		return node{}, p.fail("something follows the end")
	}
	return n, nil
}

type uclParser struct {
	text string
	at   int
	line int
}

func (p *uclParser) fail(text string) error { return &uclError{p.line, text} }

// peek is the next octet, 0 at the end.
func (p *uclParser) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

// space skips white space and comments.
func (p *uclParser) space() {
	for p.at < len(p.text) {
		switch rest := p.text[p.at:]; {
		case rest[0] == '\n':
			p.line++
			p.at++
		case rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\r':
			p.at++
		case rest[0] == '#':
			p.skip(strings.IndexByte(rest, '\n'), 0)
		case strings.HasPrefix(rest, "/*"):
			p.skip(strings.Index(rest, "*/"), len("*/"))
		default:
			return
		}
	}
}

// skip goes to an index of the rest and some octets on, or to the end if there is none.
func (p *uclParser) skip(index, more int) {
	end := len(p.text)
	if index >= 0 {
		end = p.at + index + more
	}
	p.line += strings.Count(p.text[p.at:end], "\n")
	p.at = end
}

// section reads fields up to closing, or to the end if that is 0.
func (p *uclParser) section(closing byte, depth int) (node, error) {
	n := node{line: p.line, section: []field{}}
	for {
		for p.space(); p.peek() == ',' || p.peek() == ';'; p.space() {
			p.at++
		}
		switch c := p.peek(); {
		case c == 0 && closing == 0:
			return n, nil
		case c == 0:
			return node{}, p.fail("the section has no end")
		case c == closing:
			p.at++
			return n, nil
		}
		f, err := p.field(depth)
		if err != nil {
			return node{}, err
		}
		n.section = append(n.section, f)
	}
}

// field reads a name and its value. Further names before a section make sections around it.
func (p *uclParser) field(depth int) (field, error) {
	if depth > maxNesting {
		return field{}, p.fail("sections stand in one another too deep")
	}
	name, err := p.name()
	if err != nil {
		return field{}, err
	}
	p.blank()
	switch c := p.peek(); {
	case c == '=' || c == ':':
		p.at++
		p.space()
		v, err := p.value(depth)
		return field{name, v}, err
	case c == '{' || c == '[' || c == '\n' || c == '\r':
		if p.space(); p.peek() != '{' && p.peek() != '[' {
			return field{}, p.fail(fmt.Sprintf("%.60q has no value", name))
		}
		v, err := p.value(depth)
		return field{name, v}, err
	case c == '#' || c == 0 || strings.HasPrefix(name, "."):
		v, err := p.value(depth)
		return field{name, v}, err
	}
	line := p.line
	inner, err := p.field(depth + 1)
	if err != nil {
		return field{}, err
	}
	if inner.value.section == nil {
		return field{}, p.fail(fmt.Sprintf("%.60q has more than one value", name))
	}
	return field{name, node{line: line, section: []field{inner}}}, nil
}

// blank skips what may stand between a name and its value.
func (p *uclParser) blank() {
	for p.peek() == ' ' || p.peek() == '\t' {
		p.at++
	}
}

func (p *uclParser) name() (string, error) {
	if p.peek() == '"' {
		return p.quoted('"')
	}
	begin := p.at
	for p.at < len(p.text) && !strings.ContainsRune(" \t\r\n=:{}[],;\"#", rune(p.text[p.at])) {
		p.at++
	}
	if p.at == begin {
		return "", p.fail(fmt.Sprintf("a name is expected, not %.10q", p.text[begin:]))
	}
	return p.text[begin:p.at], nil
}

func (p *uclParser) value(depth int) (node, error) {
	line := p.line
	switch c := p.peek(); c {
	case '{':
		p.at++
		return p.section('}', depth+1)
	case '[':
		p.at++
		return p.list(depth + 1)
	case '"', '\'':
		text, err := p.quoted(c)
		return node{text: text, line: line}, err
	}
	if strings.HasPrefix(p.text[p.at:], heredoc) {
		if text, ok := p.several(); ok {
			return node{text: text, line: line}, nil
		}
	}
	begin := p.at
	for p.at < len(p.text) && !strings.ContainsRune("\n;,}]", rune(p.text[p.at])) {
		if p.text[p.at] == '#' && p.at > begin && (p.text[p.at-1] == ' ' || p.text[p.at-1] == '\t') {
			break
		}
		p.at++
	}
	return node{text: strings.TrimSpace(p.text[begin:p.at]), line: line}, nil
}

func (p *uclParser) list(depth int) (node, error) {
	if depth > maxNesting {
		return node{}, p.fail("lists stand in one another too deep")
	}
	n := node{line: p.line, list: []node{}}
	for {
		for p.space(); p.peek() == ',' || p.peek() == ';'; p.space() {
			p.at++
		}
		switch p.peek() {
		case 0, '}':
			return node{}, p.fail("the list has no end")
		case ']':
			p.at++
			return n, nil
		}
		v, err := p.value(depth)
		if err != nil {
			return node{}, err
		}
		n.list = append(n.list, v)
	}
}

// quoted reads text in quotes, with the escapes of JSON that occur in paths and keys.
func (p *uclParser) quoted(quote byte) (string, error) {
	var b strings.Builder
	for i := p.at + 1; i < len(p.text); i++ {
		switch c := p.text[i]; {
		case c == quote:
			p.line += strings.Count(p.text[p.at:i], "\n")
			p.at = i + 1
			return b.String(), nil
		case c == '\\' && i+1 < len(p.text):
			i++
			switch e := p.text[i]; e {
			case 'n':
				b.WriteByte('\n')
			case 't':
				b.WriteByte('\t')
			case 'r':
				b.WriteByte('\r')
			default:
				b.WriteByte(e)
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", p.fail("the text in quotes has no end")
}

// several reads a value of several lines: <<END, the lines, and END on a line of its own.
func (p *uclParser) several() (string, bool) {
	first, body, ok := strings.Cut(p.text[p.at+len(heredoc):], "\n")
	end := strings.TrimRight(first, "\r")
	if !ok || end == "" || strings.Trim(end, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "", false
	}
	length := 0
	for line := range strings.Lines(body) {
		if strings.TrimRight(line, "\r\n;") == end {
			p.skip(len(heredoc)+len(first)+1+length+len(end), 0)
			return strings.TrimSuffix(body[:length], "\n"), true
		}
		length += len(line)
	}
	return "", false
}
