package dkimrecord

import (
	"encoding/base64"
	"strings"
)

// MaxText is how many octets of text the data of one TXT record can hold: 65 535 octets less the length octet of each
// character-string.
const MaxText = 65535 - 256

// whitespace is what folding white space is made of (RFC 6376 §2.8).
const whitespace = " \t\r\n"

// Parse reads the text of a key record, the character-strings of one TXT record joined without anything between them.
// It is strict: the tag-list must be well formed (RFC 6376 §3.2), no tag may stand twice, v= if there must come first
// and be "DKIM1", k= must be known, p= must be there and be base64. Folding white space may stand wherever the RFC lets
// it, and also behind the last semicolon; tags and t= flags that the RFC does not know are ignored. Every error is an
// *InvalidError.
func Parse(txt string) (Record, error) {
	switch {
	case strings.Trim(txt, whitespace) == "":
		return Record{}, &InvalidError{Reason: ReasonEmpty}
	case len(txt) > MaxText:
		return Record{}, &InvalidError{Reason: ReasonTooLong}
	}
	if i := badOctet(txt); i >= 0 {
		return Record{}, &InvalidError{Reason: ReasonBadCharacter, Offset: i}
	}

	var p parser
	for offset := 0; offset < len(txt); {
		spec, _, ended := strings.Cut(txt[offset:], ";")
		if !ended && offset > 0 && strings.Trim(spec, whitespace) == "" {
			break // white space behind the last semicolon
		}
		if reason, tag := p.tag(spec, offset == 0); reason != "" {
			return Record{}, &InvalidError{Reason: reason, Tag: tag, Offset: offset}
		}
		offset += len(spec) + len(";")
	}
	if !p.hasKey {
		return Record{}, &InvalidError{Reason: ReasonMissingPublicKey, Tag: "p"}
	}
	return p.record, nil
}

// badOctet returns where txt has an octet that no tag-list has, or -1.
func badOctet(txt string) int {
	for i := range len(txt) {
		switch c := txt[i]; {
		case '!' <= c && c <= '~', c == ' ', c == '\t':
		case c == '\r' && i+1 < len(txt) && txt[i+1] == '\n':
		case c == '\n' && i > 0 && txt[i-1] == '\r' && i+1 < len(txt) && (txt[i+1] == ' ' || txt[i+1] == '\t'):
		default:
			return i
		}
	}
	return -1
}

// parser collects the tags of one record.
type parser struct {
	record Record
	hasKey bool
	seen   map[string]bool
}

// tag takes one tag-spec. On failure it returns the reason and, if it is one of the known tags, its name.
func (p *parser) tag(spec string, first bool) (Reason, string) {
	name, value, found := strings.Cut(spec, "=")
	name, value = strings.Trim(name, whitespace), strings.Trim(value, whitespace)
	if !found || !isTagName(name) {
		return ReasonBadTag, ""
	}
	known := len(name) == 1 && strings.Contains("vkhsntp", name)
	if p.seen == nil {
		p.seen = make(map[string]bool)
	}
	if p.seen[name] {
		if !known {
			name = ""
		}
		return ReasonDuplicateTag, name
	}
	p.seen[name] = true
	if !known {
		return "", ""
	}
	return p.known(name, value, first), name
}

// known takes the value of one of the tags of RFC 6376 §3.6.1.
func (p *parser) known(name, value string, first bool) Reason {
	ok := true
	switch name {
	case "v":
		switch {
		case !first:
			return ReasonVersionNotFirst
		case value != "DKIM1":
			return ReasonBadVersion
		}
	case "k":
		switch value {
		case RSA.String():
			p.record.KeyType = RSA
		case Ed25519.String():
			p.record.KeyType = Ed25519
		default:
			return ReasonUnknownKeyType
		}
	case "h":
		p.record.HashAlgorithms, ok = parseList(value, false)
	case "s":
		p.record.ServiceTypes, ok = parseList(value, true)
	case "n":
		p.record.Notes, ok = parseQuotedPrintable(value)
	case "t":
		var flags []string
		flags, ok = parseList(value, false)
		for _, flag := range flags {
			p.record.Testing = p.record.Testing || flag == "y"
			p.record.SameDomain = p.record.SameDomain || flag == "s"
		}
	case "p":
		p.hasKey = true
		p.record.PublicKey, ok = parseBase64(value)
		if !ok {
			return ReasonBadBase64
		}
	}
	if !ok {
		return ReasonBadValue
	}
	return ""
}

// parseList returns the elements of a colon-separated list of hyphenated-words, with star also of "*".
func parseList(value string, star bool) ([]string, bool) {
	var list []string
	for element := range strings.SplitSeq(value, ":") {
		element = strings.Trim(element, whitespace)
		if !isHyphenatedWord(element) && !(star && element == "*") {
			return nil, false
		}
		list = append(list, element)
	}
	return list, true
}

func parseBase64(value string) ([]byte, bool) {
	if value == "" {
		return nil, true
	}
	encoded := make([]byte, 0, len(value))
	for i := range len(value) {
		if strings.IndexByte(whitespace, value[i]) < 0 {
			encoded = append(encoded, value[i])
		}
	}
	n, err := base64.StdEncoding.Strict().Decode(encoded, encoded)
	return encoded[:n:n], err == nil
}

// isTagName checks RFC 6376 §3.2: a letter, then letters, digits and underscores.
func isTagName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (i == 0 || !isDigit(c) && c != '_') {
			return false
		}
	}
	return s != ""
}

// isHyphenatedWord checks RFC 6376 §2.10: a letter, then letters, digits and dashes, no dash at the end.
func isHyphenatedWord(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (i == 0 || !isDigit(c) && (c != '-' || i == len(s)-1)) {
			return false
		}
	}
	return s != ""
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
