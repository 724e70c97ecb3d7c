package auditlog

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// timeForm has always as many digits, so that lines sort.
const timeForm = "2006-01-02T15:04:05.000000Z"

// hashKey comes between what a line's hash is of and the hash.
const hashKey = `,"hash":"`

// tail is how many octets of a line are not hashed.
const tail = len(hashKey) + 2*sha256.Size + len(`"}`)

// Append appends the line of e, without a newline, to dst. e.Hash does not
// count; the hash of the line is returned.
func (e *Entry) Append(dst []byte) ([]byte, Hash) {
	start := len(dst)
	w := writer{b: append(dst, `{"chain":`...)}
	w.text(e.Chain)
	w.b = append(w.b, `,"seq":`...)
	w.b = strconv.AppendUint(w.b, e.Seq, 10)
	w.b = append(w.b, `,"prev":"`...)
	w.b = hex.AppendEncode(w.b, e.Prev[:])
	w.b = append(w.b, `","time":"`...)
	w.b = e.Time.UTC().Truncate(time.Microsecond).AppendFormat(w.b, timeForm)
	w.b = append(w.b, '"')
	if e.Who != (Who{}) {
		w.b = append(w.b, `,"who":{`...)
		w.fields(
			field{"role", e.Who.Role}, field{"name", e.Who.Name}, field{"brand", e.Who.Brand}, field{"method", e.Who.Method},
			field{"credential", e.Who.Credential}, field{"address", e.Who.Address})
		w.b = append(w.b, '}')
	}
	w.field("request", e.Request)
	w.key("call")
	w.text(e.Call)
	w.field("resource", e.Resource)
	w.key("outcome")
	w.text(e.Outcome)
	w.field("reason", e.Reason)
	if e.Revision != 0 {
		w.key("revision")
		w.b = strconv.AppendInt(w.b, e.Revision, 10)
	}
	w.object("asked", e.Asked)
	w.object("before", e.Before)
	w.object("after", e.After)
	w.steps(e.Steps)
	if e.Repeated != 0 {
		w.key("repeated")
		w.b = strconv.AppendUint(w.b, e.Repeated, 10)
	}
	h := Hash(sha256.Sum256(w.b[start:]))
	w.b = append(w.b, hashKey...)
	w.b = hex.AppendEncode(w.b, h[:])
	return append(w.b, '"', '}'), h
}

type field struct{ name, value string }

// writer appends JSON. Names are of ours and need no escapes.
type writer struct{ b []byte }

// key begins a member after another one.
func (w *writer) key(name string) {
	w.b = append(w.b, ',', '"')
	w.b = append(w.b, name...)
	w.b = append(w.b, '"', ':')
}

// field writes a member after another one, unless it is empty.
func (w *writer) field(name, value string) {
	if value != "" {
		w.key(name)
		w.text(value)
	}
}

// fields writes the members of an object, without those that are empty.
func (w *writer) fields(fields ...field) {
	start := len(w.b)
	for _, f := range fields {
		w.field(f.name, f.value)
	}
	if len(w.b) > start { // the first one has a comma before it
		w.b = slices.Delete(w.b, start, start+1)
	}
}

func (w *writer) object(name string, values map[string]string) {
	if len(values) == 0 {
		return
	}
	w.key(name)
	for i, k := range slices.Sorted(maps.Keys(values)) {
		w.b = append(w.b, "{,"[min(i, 1)])
		w.text(k)
		w.b = append(w.b, ':')
		w.text(values[k])
	}
	w.b = append(w.b, '}')
}

func (w *writer) steps(steps []Step) {
	if len(steps) == 0 {
		return
	}
	w.key("steps")
	for i, s := range steps {
		w.b = append(w.b, "[,"[min(i, 1)], '{')
		w.fields(
			field{"action", s.Action}, field{"resource", s.Resource}, field{"selector", s.Selector}, field{"algorithm", s.Algorithm},
			field{"from", s.From}, field{"to", s.To}, field{"reason", s.Reason})
		w.b = append(w.b, '}')
	}
	w.b = append(w.b, ']')
}

// text writes a string in the one form that Parse takes.
func (w *writer) text(s string) {
	const digits = "0123456789abcdef"
	w.b = append(w.b, '"')
	for len(s) > 0 {
		c := s[0]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			w.b = append(w.b, c)
			s = s[1:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case c == '"' || c == '\\':
			w.b = append(w.b, '\\', c)
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029': // would break lines and terminals
			w.b = append(w.b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
		default: // of what is no UTF-8, U+FFFD
			w.b = utf8.AppendRune(w.b, r)
		}
	}
	w.b = append(w.b, '"')
}
