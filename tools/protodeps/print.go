package main

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// printer writes one proto3 file. It knows the constructs that google/api and google/rpc use and reports any other as an
// error, so that a new version of those files is never printed wrongly in silence.
type printer struct {
	b      strings.Builder
	indent int
	err    error
}

// printFile returns the source of fd. Compiling that source gives fd's descriptor again.
func printFile(fd protoreflect.FileDescriptor) ([]byte, error) {
	p := &printer{}
	if fd.Syntax() != protoreflect.Proto3 {
		return nil, fmt.Errorf("syntax %v is not supported", fd.Syntax())
	}
	p.line(`syntax = "proto3";`)
	p.line("package %s;", fd.Package())
	for i := range fd.Imports().Len() {
		imp := fd.Imports().Get(i)
		kind := ""
		if imp.IsPublic {
			kind = "public "
		}
		p.line("import %s%q;", kind, imp.Path())
	}
	p.optionLines(fd.Options())
	p.extensions(fd.Extensions())
	p.enums(fd.Enums())
	p.messages(fd.Messages())
	if n := fd.Services().Len(); n > 0 {
		p.fail("%d services", n)
	}
	return []byte(p.b.String()), p.err
}

func (p *printer) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("cannot print: "+format, args...)
	}
}

func (p *printer) line(format string, args ...any) {
	p.b.WriteString(strings.Repeat("  ", p.indent))
	fmt.Fprintf(&p.b, format, args...)
	p.b.WriteByte('\n')
}

func (p *printer) block(head string, body func()) {
	p.line("%s {", head)
	p.indent++
	body()
	p.indent--
	p.line("}")
}

func (p *printer) messages(ms protoreflect.MessageDescriptors) {
	for i := range ms.Len() {
		if m := ms.Get(i); !m.IsMapEntry() {
			p.block("message "+string(m.Name()), func() { p.message(m) })
		}
	}
}

func (p *printer) message(m protoreflect.MessageDescriptor) {
	if m.ExtensionRanges().Len() > 0 {
		p.fail("extension ranges of %s", m.FullName())
	}
	p.optionLines(m.Options())
	for i := range m.ReservedRanges().Len() {
		r := m.ReservedRanges().Get(i) // half open
		p.line("reserved %d to %d;", r[0], r[1]-1)
	}
	for i := range m.ReservedNames().Len() {
		p.line("reserved %q;", m.ReservedNames().Get(i))
	}
	p.enums(m.Enums())
	p.messages(m.Messages())
	p.extensions(m.Extensions())
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		one := f.ContainingOneof()
		switch {
		case one == nil || one.IsSynthetic():
			p.field(f)
		case one.Fields().Get(0) == f: // the whole oneof stands where its first field does
			p.block("oneof "+string(one.Name()), func() {
				p.optionLines(one.Options())
				for j := range one.Fields().Len() {
					p.field(one.Fields().Get(j))
				}
			})
		}
	}
}

func (p *printer) extensions(xs protoreflect.ExtensionDescriptors) {
	for i := range xs.Len() {
		x := xs.Get(i)
		p.block("extend ."+string(x.ContainingMessage().FullName()), func() { p.field(x) })
	}
}

func (p *printer) field(f protoreflect.FieldDescriptor) {
	label := ""
	switch {
	case f.IsMap():
	case f.IsList():
		label = "repeated "
	case f.HasOptionalKeyword():
		label = "optional "
	}
	typ := typeName(f)
	if f.IsMap() {
		typ = fmt.Sprintf("map<%s, %s>", typeName(f.MapKey()), typeName(f.MapValue()))
	}
	p.line("%s%s %s = %d%s;", label, typ, f.Name(), f.Number(), p.optionList(f.Options()))
}

func typeName(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return "." + string(f.Message().FullName())
	case protoreflect.EnumKind:
		return "." + string(f.Enum().FullName())
	default:
		return f.Kind().String()
	}
}

func (p *printer) enums(es protoreflect.EnumDescriptors) {
	for i := range es.Len() {
		e := es.Get(i)
		if e.ReservedRanges().Len() > 0 || e.ReservedNames().Len() > 0 {
			p.fail("reserved values of %s", e.FullName())
		}
		p.block("enum "+string(e.Name()), func() {
			p.optionLines(e.Options())
			for j := range e.Values().Len() {
				v := e.Values().Get(j)
				p.line("%s = %d%s;", v.Name(), v.Number(), p.optionList(v.Options()))
			}
		})
	}
}

func (p *printer) optionLines(opts protoreflect.ProtoMessage) {
	for _, o := range p.options(opts) {
		p.line("option %s;", o)
	}
}

func (p *printer) optionList(opts protoreflect.ProtoMessage) string {
	list := p.options(opts)
	if len(list) == 0 {
		return ""
	}
	return " [" + strings.Join(list, ", ") + "]"
}

// options returns "name = value" for every option set, one for each element of a repeated option.
func (p *printer) options(opts protoreflect.ProtoMessage) []string {
	var list []string
	opts.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		if f.IsExtension() {
			name = "(." + string(f.FullName()) + ")"
		}
		if f.IsMap() {
			p.fail("map option %s", f.FullName())
		}
		if !f.IsList() {
			list = append(list, name+" = "+optionValue(f, v))
			return true
		}
		for i := range v.List().Len() {
			list = append(list, name+" = "+optionValue(f, v.List().Get(i)))
		}
		return true
	})
	sort.Strings(list)
	return list
}

func optionValue(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.StringKind:
		return strconv.Quote(v.String())
	case protoreflect.BytesKind:
		return strconv.Quote(string(v.Bytes()))
	case protoreflect.EnumKind:
		if ev := f.Enum().Values().ByNumber(v.Enum()); ev != nil {
			return string(ev.Name())
		}
		return strconv.Itoa(int(v.Enum()))
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return "{ " + prototext.MarshalOptions{}.Format(v.Message().Interface()) + " }"
	default:
		return fmt.Sprint(v.Interface())
	}
}
