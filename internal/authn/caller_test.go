package authn_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/dkimzone/dkimzone/internal/authn"
)

func TestCallerInContext(t *testing.T) {
	if caller, ok := authn.FromContext(context.Background()); ok || caller != (authn.Caller{}) {
		t.Errorf("got %v, %t from an empty context", caller, ok)
	}
	want := authn.Caller{
		Identity: authn.Identity{Role: authn.Brand, Name: "shop", Brand: "acme"}, Method: authn.Secret,
		Addr: netip.MustParseAddr("192.0.2.1"), RequestID: "r1", CredentialID: "c1",
	}
	if got, ok := authn.FromContext(authn.NewContext(context.Background(), want)); !ok || got != want {
		t.Errorf("got %v, %t; want %v", got, ok, want)
	}
	if got := want.String(); got != "brand/acme/shop" {
		t.Errorf("String() = %q", got)
	}
}
