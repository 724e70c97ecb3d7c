package audit

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/dkimzone/dkimzone/internal/auditlog"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

// find returns the field at a path, in the message that holds it. ok is false if
// there is no such field or a message on the way is not set.
func find(m proto.Message, path string) (in protoreflect.Message, fd protoreflect.FieldDescriptor, ok bool) {
	in = m.ProtoReflect()
	for {
		name, rest, deeper := strings.Cut(path, ".")
		fd = in.Descriptor().Fields().ByName(protoreflect.Name(name))
		switch {
		case fd == nil, !in.Has(fd):
			return nil, nil, false
		case !deeper:
			return in, fd, true
		case fd.Message() == nil || fd.IsList() || fd.IsMap():
			return nil, nil, false
		}
		in, path = in.Get(fd).Message(), rest
	}
}

// text is the string at a path.
func text(m proto.Message, path string) string {
	in, fd, ok := find(m, path)
	if !ok || fd.Kind() != protoreflect.StringKind || fd.IsList() {
		return ""
	}
	return in.Get(fd).String()
}

// revision is the number at a path, or 0.
func revision(m proto.Message, path string) int64 {
	if path == "" {
		return 0
	}
	in, fd, ok := find(m, path)
	if !ok || fd.Kind() != protoreflect.Int64Kind {
		return 0
	}
	return in.Get(fd).Int()
}

// pick renders the fields at paths that are set.
func pick(m proto.Message, paths []string) map[string]string {
	picked := make(map[string]string)
	for _, path := range paths {
		if in, fd, ok := find(m, path); ok {
			picked[path] = render(fd, in.Get(fd))
		}
	}
	return picked
}

// plain are the messages that may be shown with all their fields. The test of the
// table knows those fields, so that a new one has to be looked at first.
var plain = []protoreflect.FullName{"dkim.v1.NameServer", "dkim.v1.RotationPolicy", "dkim.v1.FreezeWindow", "dkim.v1.KeyDisclosure"}

// maxText bounds a value, in octets.
const maxText = 1000

// render writes a value for people. Octets are never shown.
func render(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if fd.IsMap() {
		return ""
	}
	if !fd.IsList() {
		return cut(renderOne(fd, v))
	}
	var parts []string
	for i := range v.List().Len() {
		parts = append(parts, renderOne(fd, v.List().Get(i)))
	}
	return cut(strings.Join(parts, ", "))
}

func renderOne(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return strconv.FormatBool(v.Bool())
	case protoreflect.EnumKind:
		if e := fd.Enum().Values().ByNumber(v.Enum()); e != nil {
			return string(e.Name())
		}
		return strconv.Itoa(int(v.Enum()))
	case protoreflect.StringKind:
		return v.String()
	case protoreflect.BytesKind, protoreflect.GroupKind:
		return ""
	case protoreflect.MessageKind:
		return renderMessage(v.Message())
	}
	return fmt.Sprint(v.Interface()) // a number
}

func renderMessage(m protoreflect.Message) string {
	d := m.Descriptor()
	switch d.FullName() {
	case "google.protobuf.Timestamp":
		seconds, nanos := secondsOf(m)
		return time.Unix(seconds, nanos).UTC().Format(time.RFC3339)
	case "google.protobuf.Duration":
		seconds, nanos := secondsOf(m)
		return (time.Duration(seconds)*time.Second + time.Duration(nanos)).String()
	}
	if !slices.Contains(plain, d.FullName()) {
		return ""
	}
	var parts []string
	for i := range d.Fields().Len() {
		if fd := d.Fields().Get(i); m.Has(fd) {
			parts = append(parts, string(fd.Name())+"="+render(fd, m.Get(fd)))
		}
	}
	return "{" + strings.Join(parts, " ") + "}"
}

// secondsOf reads a Timestamp or a Duration.
func secondsOf(m protoreflect.Message) (seconds, nanos int64) {
	fields := m.Descriptor().Fields()
	return m.Get(fields.ByNumber(1)).Int(), m.Get(fields.ByNumber(2)).Int()
}

func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return s[:maxText] + "…"
}

// ids say which ids the collections of resource names have. Whatever else a caller
// put into a name, a secret by mistake, is not shown.
var ids = map[string]func(string) (string, bool){
	"zones": func(s string) (string, bool) {
		z, err := dnsname.ParseZone(s)
		return string(z), err == nil
	},
	"brands": func(s string) (string, bool) {
		return s, s == "-" || len(s) <= 40 && onlyOf(s, "abcdefghijklmnopqrstuvwxyz0123456789-")
	},
	"domains": func(s string) (string, bool) {
		d, err := dnsname.ParseDomain(s)
		return string(d), err == nil || s == "-"
	},
	"keys": func(s string) (string, bool) {
		return s, s == "-" || len(s) == 16 && onlyOf(s, "abcdefghijklmnopqrstuvwxyz234567")
	},
	"tokens":  credential,
	"secrets": credential,
	// There is one of each.
	"keyEncryption": nothing,
	"backup":        nothing,
	"signers": func(s string) (string, bool) {
		return s, len(s) <= 63 && onlyOf(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.")
	},
}

func nothing(string) (string, bool) { return "", false }

// credential is the form of the ids of tokens and secrets, which are no secret:
// shorter than what is.
func credential(s string) (string, bool) {
	return s, len(s) <= 20 && onlyOf(s, "abcdefghijklmnopqrstuvwxyz0123456789")
}

func onlyOf(s, letters string) bool { return s != "" && strings.Trim(s, letters) == "" }

// cleanName is a resource name with "?" in the place of each part that is not of
// the right form.
func cleanName(name string) string {
	if name == "" {
		return ""
	}
	parts := strings.Split(name, "/")
	if len(parts) > 8 {
		return "?"
	}
	for i := 0; i < len(parts); i += 2 {
		form := ids[parts[i]]
		if form == nil {
			parts[i] = "?"
		}
		if i+1 == len(parts) {
			break
		}
		clean, ok := "", false
		if form != nil {
			clean, ok = form(parts[i+1])
		}
		if !ok {
			clean = "?"
		}
		parts[i+1] = clean
	}
	return strings.Join(parts, "/")
}

// batchResults counts the results of a batch: those without an error, and the
// others by their reasons.
func batchResults(resp proto.Message) map[string]string {
	m := resp.ProtoReflect()
	results := m.Descriptor().Fields().ByName("results")
	if results == nil || !results.IsList() {
		return nil
	}
	counts := make(map[string]int)
	list := m.Get(results).List()
	for i := range list.Len() {
		counts[resultOf(list.Get(i).Message())]++
	}
	values := make(map[string]string)
	for what, n := range counts {
		values[what] = strconv.Itoa(n)
	}
	return values
}

// fetchedKeys are the keys whose private halves were handed out.
func fetchedKeys(resp proto.Message) []auditlog.Step {
	m := resp.ProtoReflect()
	results := m.Descriptor().Fields().ByName("results")
	if results == nil || !results.IsList() {
		return nil
	}
	var steps []auditlog.Step
	list := m.Get(results).List()
	for i := range list.Len() {
		r := list.Get(i).Message()
		if fd := r.Descriptor().Fields().ByName("error"); fd == nil || !r.Has(fd) {
			steps = append(steps, auditlog.Step{Action: "READ_PRIVATE_KEY", Resource: cleanName(text(r.Interface(), "key"))})
		}
	}
	return steps
}

// resultOf is "done", or the reason why not.
func resultOf(m protoreflect.Message) string {
	fd := m.Descriptor().Fields().ByName("error")
	if fd == nil || !m.Has(fd) {
		return "done"
	}
	st, ok := m.Get(fd).Message().Interface().(*spb.Status)
	if !ok {
		return "refused"
	}
	if why := refusal.Reason(status.FromProto(st).Err()); why != "" {
		return why
	}
	return "refused"
}
