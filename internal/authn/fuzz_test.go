package authn_test

import (
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// FuzzHeader: only the token that there is lets anybody in, and nothing makes it
// panic.
func FuzzHeader(f *testing.F) {
	id, token, hash := authn.NewToken()
	secret, stored := authn.NewBrandSecret("acme")
	// Cheap, as it is computed often; so the secret is not the one that was hashed.
	stored.MemoryKiB, stored.Passes = 8, 1
	creds := fixed{token: keystore.Token{ID: id, Hash: hash, Role: "admin", Name: "a", ExpireTime: now.Add(time.Hour)}, secret: stored}
	for _, seed := range []string{
		"", "Bearer", "Bearer " + token, "bearer  " + token, "Bearer " + secret, basic("acme", secret), basic("", ""), "Basic :", "Basic OjpB",
		"Bearer a.b.c", "Basic " + strings.Repeat("A", 100), "Bearer dkz_aaaaaaaaaaaa_" + strings.Repeat("A", 32),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		a := authn.New(authn.Options{Credentials: creds, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)})
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}})
		caller, err := a.Authenticate(metadata.NewIncomingContext(ctx, metadata.MD{"authorization": {header}}))
		if err == nil && !strings.HasSuffix(header, token) {
			t.Errorf("%q is %v", header, caller)
		}
		if err != nil && (caller != authn.Caller{} || strings.Contains(err.Error(), token)) {
			t.Errorf("%q: %v, %v", header, caller, err)
		}
	})
}

// FuzzParseIdentity: what is parsed is well formed, and is written in one way only.
func FuzzParseIdentity(f *testing.F) {
	for _, seed := range []string{"admin/a", "admin/a/export-keys", "brand/acme/shop", "signer/mx1", "signer/acme/mx1", "auditor/a", "a", "//", "brand/-/a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := authn.ParseIdentity(text)
		if err != nil {
			if id != (authn.Identity{}) {
				t.Errorf("%q: %v with %v", text, id, err)
			}
			return
		}
		again := id.String()
		if id.ExportKeys {
			again += "/export-keys"
		}
		if again != text || id.Check() != nil {
			t.Errorf("%q is %+v, which is %q", text, id, again)
		}
	})
}
