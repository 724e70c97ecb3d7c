// Package authn tells who calls: by a client certificate, a bearer token, a JWT
// of an OpenID Connect issuer, or the secret of a brand. Credentials that are
// kept here are stored as hashes only; what is secret of them is in no log and no
// error.
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

type callKey struct{}

// call is what becomes known of a call, step by step: contexts that were derived
// before the caller was known know him afterwards.
type call struct {
	caller        Caller
	authenticated bool
}

// begin returns the context of a call whose caller is not known yet.
func begin(ctx context.Context, addr netip.Addr, requestID string) context.Context {
	return context.WithValue(ctx, callKey{}, &call{caller: Caller{Addr: addr, RequestID: requestID}})
}

// NewContext returns a context that carries caller. If ctx is of a call that
// [TagUnary] or [TagStream] has begun, ctx carries him too from now on, and he
// gets the request id of the call if he has none.
func NewContext(ctx context.Context, caller Caller) context.Context {
	if c, ok := ctx.Value(callKey{}).(*call); ok && !c.authenticated {
		if caller.RequestID == "" {
			caller.RequestID = c.caller.RequestID
		}
		c.caller, c.authenticated = caller, true
		return ctx
	}
	return context.WithValue(ctx, callKey{}, &call{caller, true})
}

// FromContext returns the caller that NewContext put into ctx. It returns false
// where there is none: the call is not, or not yet, authenticated. Then the
// address and the request id are there all the same, if the call was begun.
func FromContext(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return Caller{}, false
	}
	return c.caller, c.authenticated
}
