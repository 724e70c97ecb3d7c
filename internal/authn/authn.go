// Package authn tells who calls: the identity that a verified client
// certificate carries.
package authn

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// uriPrefix begins the URI SAN of a client certificate:
// spiffe://dkimzone/role/<role>/<name>.
const uriPrefix = "spiffe://dkimzone/role/"

// ErrNoIdentity is wrapped by the errors of callers that cannot be told.
var ErrNoIdentity = errors.New("no identity")

// FromPeer returns the identity of the gRPC caller of ctx, taken from the leaf
// of its verified certificate chain. Its errors wrap ErrNoIdentity.
func FromPeer(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, fmt.Errorf("%w: no peer", ErrNoIdentity)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return Identity{}, fmt.Errorf("%w: no verified client certificate", ErrNoIdentity)
	}
	return FromCertificate(info.State.VerifiedChains[0][0])
}

// FromCertificate returns the identity in a certificate that the caller has
// verified. A certificate must carry exactly one identity. Its errors wrap
// ErrNoIdentity.
func FromCertificate(cert *x509.Certificate) (Identity, error) {
	var found []Identity
	for _, uri := range cert.URIs {
		rest, ok := strings.CutPrefix(uri.String(), uriPrefix)
		if !ok {
			continue
		}
		role, name, ok := strings.Cut(rest, "/")
		if !ok || name == "" || strings.ContainsAny(name, "/?#%") || Role(role) != Admin && Role(role) != Signer {
			return Identity{}, fmt.Errorf("%w: certificate names %q, which is no role of this service", ErrNoIdentity, uri)
		}
		found = append(found, Identity{Role: Role(role), Name: name})
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("%w: certificate of %q has %d URI SANs that begin with %s, want one", ErrNoIdentity, cert.Subject.CommonName, len(found), uriPrefix)
	}
	return found[0], nil
}
