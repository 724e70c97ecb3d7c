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
		// Display names are often not what RFC 5322 wants, while the address is.
		if strings.Count(from, "<") != 1 || strings.Count(from, ">") != 1 || strings.Count(from, "@") != 1 {
			return "", fmt.Errorf("its From field cannot be read: %w", err)
		}
		_, inner, _ := strings.Cut(from, "<")
		inner, rest, _ := strings.Cut(inner, ">")
		if !strings.Contains(inner, "@") || strings.Trim(rest, " \t\r\n") != "" {
			return "", fmt.Errorf("its From field cannot be read: %w", err)
		}
		list = []*mail.Address{{Address: strings.TrimSpace(inner)}}
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
