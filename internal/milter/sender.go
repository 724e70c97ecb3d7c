package milter

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"strings"

	"golang.org/x/net/idna"
)

// addresses reads a From field. The charset of a display name does not matter.
var addresses = mail.AddressParser{WordDecoder: &mime.WordDecoder{
	CharsetReader: func(_ string, in io.Reader) (io.Reader, error) { return in, nil },
}}

// senderDomain is the domain of the From field. A message that has none, or more
// than one, is signed for nobody: a receiver could show another than is signed for.
func senderDomain(fields []field) (string, error) {
	from, found := "", false
	for _, f := range fields {
		if f.name != "from" {
			continue
		}
		if found {
			return "", errors.New("it has several From fields")
		}
		from, found = f.value, true
	}
	if !found {
		return "", errors.New("it has no From field")
	}
	list, err := addresses.ParseList(relaxed(from))
	if err != nil {
		address, ok := angleAddress(from)
		if !ok {
			return "", fmt.Errorf("its From field cannot be read: %w", err)
		}
		list = []*mail.Address{{Address: address}}
	}
	domain := ""
	for _, a := range list {
		d := a.Address[strings.LastIndexByte(a.Address, '@')+1:]
		if d, err = idna.Lookup.ToASCII(d); err != nil || d == "" {
			return "", errors.New("its From address has no domain name")
		}
		if domain != "" && !strings.EqualFold(d, domain) {
			return "", errors.New("it is from several domains")
		}
		domain = d
	}
	return strings.ToLower(domain), nil
}

// angleAddress is the address in angle brackets at the end of a From field whose
// display name is not what RFC 5322 wants, as is common. A name that looks like
// an address of another domain makes it none.
func angleAddress(from string) (string, bool) {
	name, rest, _ := strings.Cut(from, "<")
	address, rest, found := strings.Cut(rest, ">")
	address = strings.TrimSpace(address)
	_, domain, has := strings.Cut(address, "@")
	if !found || !has || strings.ContainsAny(domain, "<>@") || strings.ContainsAny(name, ">") || strings.TrimSpace(rest) != "" {
		return "", false
	}
	for word := range strings.FieldsSeq(name) {
		if _, other, looks := strings.Cut(word, "@"); looks && !strings.EqualFold(strings.Trim(other, `"',;:()[]`), domain) {
			return "", false
		}
	}
	return address, true
}
