package authn

import (
	"context"
	"net/netip"
)

// Role is what a caller may do, by kind.
type Role string

// The roles.
const (
	Admin   Role = "admin"   // may do everything
	Brand   Role = "brand"   // manages the domains of one brand
	Signer  Role = "signer"  // signs mail: asks with which keys, and reports their use
	Auditor Role = "auditor" // reads everything but private keys, and changes nothing
)

// Identity is who a caller is and what it was given to do.
type Identity struct {
	Role Role
	Name string
	// Brand is the id of the only brand that the caller may have to do with;
	// empty: all. Role Brand always has one, Admin never; a Signer and an
	// Auditor may have one.
	Brand string
	// ExportKeys is the permission to read private keys out. Only an Admin may
	// have it.
	ExportKeys bool
}

// String is the identity for people and logs: "admin/alice", "brand/acme/shop".
func (id Identity) String() string {
	if id.Brand == "" {
		return string(id.Role) + "/" + id.Name
	}
	return string(id.Role) + "/" + id.Brand + "/" + id.Name
}

// Method is how a caller was authenticated.
type Method string

// The methods.
const (
	Certificate Method = "certificate" // a verified client certificate
	Token       Method = "token"       // an opaque bearer token of this service
	JWT         Method = "jwt"         // a token of the OpenID Connect issuer
	Secret      Method = "secret"      // the secret of a brand
)

// Caller is an authenticated caller in one call.
type Caller struct {
	Identity
	Method Method
	// Addr is where the call came from; invalid where that has no IP address.
	Addr netip.Addr
	// RequestID is for finding the call in logs. The caller may have chosen it,
	// and may have used it before; it gives no idempotence.
	RequestID string
	// CredentialID is the id of the token or secret, never what is secret of it;
	// empty for other methods.
	CredentialID string
}

type callerKey struct{}

// NewContext returns a context that carries caller.
func NewContext(ctx context.Context, caller Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// FromContext returns the caller that NewContext put into ctx, or false where
// there is none: the call was not authenticated.
func FromContext(ctx context.Context) (Caller, bool) {
	caller, ok := ctx.Value(callerKey{}).(Caller)
	return caller, ok
}
