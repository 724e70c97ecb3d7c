package keystoretest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

func secret(brand, id string, expires time.Time) keystore.BrandSecret {
	return keystore.BrandSecret{
		ID: id, Brand: brand, Hash: []byte("hash of " + id), Salt: []byte("salt"), Passes: 2, MemoryKiB: 19456, Threads: 1,
		Description: "of " + brand, CreateTime: now, ExpireTime: expires, Creator: "admin/alice",
	}
}

var accessTests = map[string]func(*testing.T, *env){
	"access: life of a token": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		_, err := e.Token(ctx, "a")
		wantErr(t, err, keystore.ErrTokenNotFound)
		everything := keystore.Token{
			ID: "b", Hash: []byte("hash"), Role: "admin", Name: "alice", ExportKeys: true, Description: "d",
			CreateTime: now, ExpireTime: now.Add(time.Hour), Creator: "admin/bob",
		}
		bound := keystore.Token{ID: "a", Hash: []byte("hash"), Role: "brand", Name: "shop", Brand: "acme", CreateTime: now, ExpireTime: now}
		private := cmpopts.IgnoreUnexported(keystore.Token{})
		for _, want := range []keystore.Token{everything, bound} {
			if err := e.CreateToken(ctx, want); err != nil {
				t.Fatal(err)
			}
			wantEqual(t, "token", must(e.Token(ctx, want.ID))(t), want, private)
		}
		wantErr(t, e.unchanged(t, func() error { return e.CreateToken(ctx, everything) }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { return e.CreateToken(ctx, keystore.Token{ID: "c", Brand: "nobody"}) }), keystore.ErrBrandNotFound)
		tokens, more, err := e.Tokens(ctx, "", 1)
		wantEqual(t, "first page", tokens, []keystore.Token{bound}, private)
		wantEqual(t, "more", more, true)
		wantEqual(t, "error", err, nil)
		tokens, more, err = e.Tokens(ctx, "a", 1)
		wantEqual(t, "second page", tokens, []keystore.Token{everything}, private)
		wantEqual(t, "more", more, false)
		wantEqual(t, "error", err, nil)
		if err := e.DeleteToken(ctx, "b"); err != nil {
			t.Fatal(err)
		}
		wantErr(t, e.unchanged(t, func() error { return e.DeleteToken(ctx, "b") }), keystore.ErrTokenNotFound)
	},

	"access: a brand takes its credentials with it": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme", "acme2")
		if err := e.CreateToken(ctx, keystore.Token{ID: "a", Hash: []byte("hash"), Brand: "acme"}); err != nil {
			t.Fatal(err)
		}
		for _, brand := range []string{"acme", "acme2"} {
			if err := e.CreateBrandSecret(ctx, secret(brand, "s", time.Time{})); err != nil {
				t.Fatal(err)
			}
		}
		b := must(e.Brand(ctx, "acme"))(t)
		if err := e.DeleteBrand(ctx, b); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err := e.Token(ctx, "a")
			wantErr(t, err, keystore.ErrTokenNotFound)
			wantEqual(t, "secrets", len(must(e.BrandSecrets(ctx, "acme"))(t)), 0)
			wantEqual(t, "other secrets", len(must(e.BrandSecrets(ctx, "acme2"))(t)), 1)
			if _, err := e.CreateBrand(ctx, keystore.Brand{Name: "acme", Zone: zoneName, CreateTime: now.Add(time.Second)}); err != nil {
				wantErr(t, err, keystore.ErrBrandExists)
			}
		}
	},

	"access: life of a secret": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		first, second := secret("acme", "b", time.Time{}), secret("acme", "a", now.Add(time.Hour))
		for _, s := range []keystore.BrandSecret{first, second} {
			if err := e.CreateBrandSecret(ctx, s); err != nil {
				t.Fatal(err)
			}
		}
		wantEqual(t, "secrets", must(e.BrandSecrets(ctx, "acme"))(t), []keystore.BrandSecret{second, first})
		wantErr(t, e.unchanged(t, func() error { return e.CreateBrandSecret(ctx, secret("acme", "c", time.Time{})) }), keystore.ErrTooManySecrets)
		wantErr(t, e.unchanged(t, func() error { return e.CreateBrandSecret(ctx, secret("nobody", "c", time.Time{})) }), keystore.ErrBrandNotFound)
		// One that has expired makes room, and goes.
		third := secret("acme", "c", time.Time{})
		third.CreateTime = now.Add(time.Hour)
		if err := e.CreateBrandSecret(ctx, third); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "secrets", must(e.BrandSecrets(ctx, "acme"))(t), []keystore.BrandSecret{first, third})
		if err := e.DeleteBrandSecret(ctx, "acme", "b"); err != nil {
			t.Fatal(err)
		}
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrandSecret(ctx, "acme", "b") }), keystore.ErrSecretNotFound)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrandSecret(ctx, "other", "c") }), keystore.ErrSecretNotFound)
	},

	"access: secrets made at the same time": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				_ = e.CreateBrandSecret(t.Context(), secret("acme", fmt.Sprint("s", i), time.Time{})) // some are refused
			})
		}
		wg.Wait()
		if n := len(must(e.BrandSecrets(t.Context(), "acme"))(t)); n < 1 || n > keystore.MaxBrandSecrets {
			t.Errorf("%d secrets", n)
		}
	},

	"access: damaged values": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		for _, key := range []string{schema.TokenKey("a"), schema.SecretKey("acme", "a")} {
			must(e.client.Put(ctx, key, "\xff"))(t)
		}
		_, err := e.Token(ctx, "a")
		wantErr(t, err, schema.ErrCorrupt)
		_, _, err = e.Tokens(ctx, "", 10)
		wantErr(t, err, schema.ErrCorrupt)
		_, err = e.BrandSecrets(ctx, "acme")
		wantErr(t, err, schema.ErrCorrupt)
		wantErr(t, e.unchanged(t, func() error { return e.CreateBrandSecret(ctx, secret("acme", "b", time.Time{})) }), schema.ErrCorrupt)
		must(e.client.Put(ctx, schema.SecretKey("acme", "a"), ""))(t) // without parameters
		_, err = e.BrandSecrets(ctx, "acme")
		wantErr(t, err, schema.ErrCorrupt)
	},
}
