package authn

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// uriPrefix begins the URI SAN of a client certificate; an identity follows, in
// the form of ParseIdentity.
const uriPrefix = "spiffe://dkimzone/role/"

// ErrNoIdentity is wrapped by the errors of callers that cannot be told.
var ErrNoIdentity = errors.New("no identity")

// FromCertificate returns the identity in a certificate that the caller has
// verified: that of its URI SAN or, if no URI SAN is ours, that of a DNS SAN
// which dnsNames maps (in lower case). A certificate must carry exactly one
// identity. Its errors wrap ErrNoIdentity.
func FromCertificate(cert *x509.Certificate, dnsNames map[string]Identity) (Identity, error) {
	var found []Identity
	for _, uri := range cert.URIs {
		rest, ok := strings.CutPrefix(uri.String(), uriPrefix)
		if !ok {
			continue
		}
		id, err := ParseIdentity(rest)
		if err != nil {
			return Identity{}, fmt.Errorf("%w: certificate names %q, which is no role of this service: %w", ErrNoIdentity, uri, err)
		}
		found = append(found, id)
	}
	if len(found) == 0 {
		for _, name := range cert.DNSNames {
			if id, ok := dnsNames[strings.ToLower(name)]; ok {
				found = append(found, id)
			}
		}
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("%w: certificate of %q has %d identities (URI SANs that begin with %s), want one",
			ErrNoIdentity, cert.Subject.CommonName, len(found), uriPrefix)
	}
	return found[0], nil
}
