package authn_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/schema"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// store is a keystore in memory, with the brands acme and other, and a clock.
type store struct {
	*keystore.Store

	fake *keystoretest.Fake
	log  *bytes.Buffer

	mu      sync.Mutex
	now     time.Time
	secrets []string // that were given out
	reads   int      // of tokens and secrets
}

func newStore(t *testing.T) *store {
	t.Helper()
	fake := keystoretest.NewFake()
	s := &store{Store: keystore.New(fake, time.Minute), fake: fake, log: &bytes.Buffer{}, now: now}
	if _, err := s.CreateZone(t.Context(), keystore.Zone{Name: "keys.example.net", Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.example.org"}}, Mailbox: "hostmaster.keys.example.net",
		ApexTTL: 86400, Refresh: 3600, Retry: 600, Expire: 1209600, NegativeTTL: 300, RecordTTL: 3600, CreateTime: now,
	}}); err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"acme", "other"} {
		s.createBrand(t, b)
	}
	return s
}

func (s *store) createBrand(t *testing.T, name string) {
	t.Helper()
	if _, err := s.CreateBrand(t.Context(), keystore.Brand{Name: name, Zone: dnsname.Zone("keys.example.net"), CreateTime: s.clock()}); err != nil {
		t.Fatal(err)
	}
}

func (s *store) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *store) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// Token and BrandSecrets count.

func (s *store) Token(ctx context.Context, id string) (keystore.Token, error) {
	s.count()
	return s.Store.Token(ctx, id)
}

func (s *store) BrandSecrets(ctx context.Context, brand string) ([]keystore.BrandSecret, error) {
	s.count()
	return s.Store.BrandSecrets(ctx, brand)
}

func (s *store) count() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
}

func (s *store) authenticator(issuer *authn.Issuer) *authn.Authenticator {
	return authn.New(authn.Options{Credentials: s, Issuer: issuer, Now: s.clock, Logger: slog.New(slog.NewTextHandler(s.log, nil))})
}

// token stores a token and returns it.
func (s *store) token(t *testing.T, v keystore.Token) string {
	t.Helper()
	id, token, hash := authn.NewToken()
	v.ID, v.Hash, v.CreateTime = id, hash, s.clock()
	if v.ExpireTime.IsZero() {
		v.ExpireTime = s.clock().Add(24 * time.Hour)
	}
	if err := s.CreateToken(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	s.secrets = append(s.secrets, token)
	return token
}

// secret stores a secret of a brand and returns it with its id.
func (s *store) secret(t *testing.T, brand string, life time.Duration) (id, secret string) {
	t.Helper()
	secret, v := authn.NewBrandSecret(brand)
	v.CreateTime = s.clock()
	if life != 0 {
		v.ExpireTime = v.CreateTime.Add(life)
	}
	if err := s.CreateBrandSecret(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	s.secrets = append(s.secrets, secret)
	return v.ID, secret
}

// checkSecrets fails the test if something that was given out stands in the store
// or in the log.
func (s *store) checkSecrets(t *testing.T) {
	t.Helper()
	places := map[string]string{"log": s.log.String()}
	for key, value := range s.fake.Dump() {
		places[key] = key + value
	}
	for _, secret := range s.secrets {
		random := secret[len(secret)-32:]
		raw, err := base64.RawURLEncoding.DecodeString(random)
		if err != nil {
			t.Fatal(err)
		}
		for place, text := range places {
			for _, form := range []string{random, string(raw), fmt.Sprintf("%x", raw), base64.StdEncoding.EncodeToString([]byte(secret))} {
				if strings.Contains(text, form) {
					t.Errorf("%s holds a credential in the clear", place)
				}
			}
		}
	}
}

// from is the context of a call from an address with authorization headers.
func from(t *testing.T, addr string, authorization ...string) context.Context {
	t.Helper()
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(addr), Port: 1234}})
	return metadata.NewIncomingContext(ctx, metadata.MD{"authorization": authorization})
}

// flipped is a credential with another last character.
func flipped(credential string) string {
	last := "A"
	if strings.HasSuffix(credential, last) {
		last = "B"
	}
	return credential[:len(credential)-1] + last
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// wantRefused checks the code and reason of a refusal.
func wantRefused(t *testing.T, caller authn.Caller, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	got := ""
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			got = info.GetReason()
		}
	}
	if st.Code() != code || got != reason || caller != (authn.Caller{}) {
		t.Errorf("got %v, %v %s; want %v %s", caller, err, got, code, reason)
	}
}

func TestHeaders(t *testing.T) {
	s := newStore(t)
	a := s.authenticator(nil)
	token := s.token(t, keystore.Token{Role: "signer", Name: "mx1"})
	mine := s.token(t, keystore.Token{Role: "brand", Name: "shop", Brand: "acme"})
	exporter := s.token(t, keystore.Token{Role: "admin", Name: "root", ExportKeys: true})
	id, secret := s.secret(t, "acme", 0)
	otherID, otherSecret := s.secret(t, "other", 0)
	tests := []struct {
		name          string
		authorization string
		want          authn.Identity // zero: refused
		method        authn.Method
		credential    string
	}{
		{"token", "Bearer " + token, authn.Identity{Role: authn.Signer, Name: "mx1"}, authn.Token, token[4:16]},
		{"scheme in another case", "bearer  " + token, authn.Identity{Role: authn.Signer, Name: "mx1"}, authn.Token, token[4:16]},
		{"token of a brand", "Bearer " + mine, authn.Identity{Role: authn.Brand, Name: "shop", Brand: "acme"}, authn.Token, mine[4:16]},
		{"token of an exporter", "Bearer " + exporter, authn.Identity{Role: authn.Admin, Name: "root", ExportKeys: true}, authn.Token, exporter[4:16]},
		{"secret", basic("acme", secret), authn.Identity{Role: authn.Brand, Name: id, Brand: "acme"}, authn.Secret, id},
		{"secret of another", basic("other", otherSecret), authn.Identity{Role: authn.Brand, Name: otherID, Brand: "other"}, authn.Secret, otherID},

		{name: "secret for a foreign brand", authorization: basic("other", secret)},
		{name: "brand in upper case", authorization: basic("ACME", secret)},
		{name: "brand that is not there", authorization: basic("nobody", secret)},
		{name: "brand that is a path", authorization: basic("acme/../other", otherSecret)},
		{name: "no brand", authorization: basic("", secret)},
		{name: "no secret", authorization: basic("acme", "")},
		{name: "secret cut short", authorization: basic("acme", secret[:len(secret)-1])},
		{name: "secret with a changed end", authorization: basic("acme", flipped(secret))},
		{name: "secret with another id", authorization: basic("acme", "dks_aaaaaaaaaaaa"+secret[16:])},
		{name: "secret with more", authorization: basic("acme", secret+"x")},
		{name: "secret with a space", authorization: basic("acme", secret+" ")},
		{name: "token as a secret", authorization: basic("acme", token)},
		{name: "secret as a token", authorization: "Bearer " + secret},
		{name: "token without a scheme", authorization: token},
		{name: "another scheme", authorization: "Token " + token},
		{name: "basic without a colon", authorization: "Basic " + base64.StdEncoding.EncodeToString([]byte("acme"))},
		{name: "basic that is no base64", authorization: "Basic acme:" + secret},
		{name: "basic in the alphabet of URLs", authorization: "Basic " + strings.TrimRight(base64.URLEncoding.EncodeToString([]byte("acme:"+secret+"??>>")), "=")},
		{name: "empty", authorization: ""},
		{name: "scheme only", authorization: "Bearer"},
		{name: "token of nobody", authorization: "Bearer dkz_aaaaaaaaaaaa_" + strings.Repeat("A", 32)},
		{name: "token with a foreign end", authorization: "Bearer " + token[:17] + mine[17:]},
		{name: "token with a slash", authorization: "Bearer dkz_../brands/acme_" + strings.Repeat("A", 30)},
		{name: "JWT, none are accepted", authorization: "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."},
		{name: "very long", authorization: "Bearer " + strings.Repeat("A", 20<<10)},
		{name: "not ASCII", authorization: "Bearer dkz_\xff\xfe"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := fmt.Sprintf("192.0.2.%d", i)
			caller, err := a.Authenticate(from(t, addr, tt.authorization))
			if tt.want == (authn.Identity{}) {
				wantRefused(t, caller, err, codes.Unauthenticated, authn.ReasonUnauthenticated)
				if got := status.Convert(err).Message(); got != "the credentials are not valid" {
					t.Errorf("message %q", got)
				}
				return
			}
			if err != nil || caller.Identity != tt.want || caller.Method != tt.method || caller.CredentialID != tt.credential || caller.Addr.String() != addr {
				t.Errorf("got %+v, %v; want %+v", caller, err, tt.want)
			}
		})
	}
	if !strings.Contains(s.log.String(), "credentials refused") {
		t.Error("refusals are not in the log")
	}
	s.checkSecrets(t)
}

func TestTokenLife(t *testing.T) {
	s := newStore(t)
	a, second := s.authenticator(nil), s.authenticator(nil)
	token := s.token(t, keystore.Token{Role: "admin", Name: "alice", ExpireTime: now.Add(time.Hour)})
	id := token[4:16]
	ctx := from(t, "192.0.2.1", "Bearer "+token)
	good := func(a *authn.Authenticator, what string) {
		t.Helper()
		if _, err := a.Authenticate(ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	good(a, "new")
	reads := s.reads
	good(a, "again")
	if s.reads != reads {
		t.Error("the store was asked again at once")
	}

	// While the store is away, what it said is good for a while.
	s.fake.SetError(status.Error(codes.Unavailable, "etcd is away"))
	s.pass(9 * time.Minute)
	good(a, "with the store away")
	caller, err := second.Authenticate(ctx)
	wantRefused(t, caller, err, codes.Unavailable, authn.ReasonUnavailable)
	s.pass(2 * time.Minute)
	caller, err = a.Authenticate(ctx)
	wantRefused(t, caller, err, codes.Unavailable, authn.ReasonUnavailable)
	s.fake.SetError(nil)
	good(a, "with the store back")
	good(second, "with the store back")

	// Revoked: at once where it was done, within seconds elsewhere.
	if err := s.DeleteToken(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	a.Forget(id)
	caller, err = a.Authenticate(ctx)
	wantRefused(t, caller, err, codes.Unauthenticated, authn.ReasonUnauthenticated)
	s.pass(11 * time.Second)
	caller, err = second.Authenticate(ctx)
	wantRefused(t, caller, err, codes.Unauthenticated, authn.ReasonUnauthenticated)

	// Expired, to the second, also if it was good a moment ago.
	ctx = from(t, "192.0.2.1", "Bearer "+s.token(t, keystore.Token{Role: "admin", Name: "alice", ExpireTime: s.clock().Add(5 * time.Second)}))
	good(a, "about to expire")
	s.pass(5 * time.Second)
	caller, err = a.Authenticate(ctx)
	wantRefused(t, caller, err, codes.Unauthenticated, authn.ReasonUnauthenticated)
	if got := status.Convert(err).Message(); got != "the token has expired" {
		t.Errorf("message %q", got)
	}
	s.checkSecrets(t)
}

// A brand that is deleted and made anew has none of the credentials of the first.
func TestCredentialsOfADeletedBrand(t *testing.T) {
	s := newStore(t)
	token := s.token(t, keystore.Token{Role: "brand", Name: "shop", Brand: "acme"})
	_, secret := s.secret(t, "acme", 0)
	for _, header := range []string{"Bearer " + token, basic("acme", secret)} {
		if _, err := s.authenticator(nil).Authenticate(from(t, "192.0.2.1", header)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := s.Brand(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteBrand(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{false, true} {
		for _, header := range []string{"Bearer " + token, basic("acme", secret)} {
			caller, err := s.authenticator(nil).Authenticate(from(t, "192.0.2.1", header))
			wantRefused(t, caller, err, codes.Unauthenticated, authn.ReasonUnauthenticated)
		}
		if !again {
			s.pass(time.Second)
			s.createBrand(t, "acme")
		}
	}
}

// Two secrets are valid at once, and each for itself.
func TestSecretRollover(t *testing.T) {
	s := newStore(t)
	a := s.authenticator(nil)
	firstID, first := s.secret(t, "acme", 0)
	_, second := s.secret(t, "acme", time.Hour)
	if err := s.CreateBrandSecret(t.Context(), keystore.BrandSecret{
		ID: "third", Brand: "acme", Hash: []byte{1}, Salt: []byte{1}, Passes: 1, MemoryKiB: 8, Threads: 1, CreateTime: s.clock(),
	}); !errors.Is(err, keystore.ErrTooManySecrets) {
		t.Errorf("a third secret: %v, want %v", err, keystore.ErrTooManySecrets)
	}
	check := func(secret string, good bool) {
		t.Helper()
		if _, err := a.Authenticate(from(t, "192.0.2.1", basic("acme", secret))); (err == nil) != good {
			t.Errorf("%v, want it to be good: %t", err, good)
		}
	}
	check(first, true)
	check(second, true)
	if err := s.DeleteBrandSecret(t.Context(), "acme", firstID); err != nil {
		t.Fatal(err)
	}
	a.Forget(firstID)
	check(first, false)
	check(second, true)
	s.pass(time.Hour)
	check(second, false)
	// The one that has expired makes room.
	s.secret(t, "acme", 0)
	s.secret(t, "acme", 0)
	s.checkSecrets(t)
}

// Who tries is slowed down: by address, and by the name he tries. Others, and who
// is known, are not.
func TestThrottle(t *testing.T) {
	s := newStore(t)
	a := s.authenticator(nil)
	id, secret := s.secret(t, "acme", 0)
	_, successor := s.secret(t, "acme", 0)
	known := basic("acme", secret)
	attacker, friend := "192.0.2.66", "198.51.100.1"
	if _, err := a.Authenticate(from(t, attacker, known)); err != nil { // behind the same address
		t.Fatal(err)
	}
	refused, limited := 0, 0
	for i := range 60 {
		_, err := a.Authenticate(from(t, attacker, "Bearer dkz_"+strings.Repeat(string(rune('a'+i%26)), 12)+"_"+strings.Repeat("A", 32)))
		switch status.Code(err) {
		case codes.Unauthenticated:
			refused++
		case codes.ResourceExhausted:
			limited++
			retry := false
			for _, d := range status.Convert(err).Details() {
				if r, ok := d.(*errdetails.RetryInfo); ok {
					retry = r.GetRetryDelay().AsDuration() >= time.Second
				}
			}
			if !retry {
				t.Fatalf("no RetryInfo in %v", err)
			}
		default:
			t.Fatal(err)
		}
	}
	if refused != 20 || limited != 40 {
		t.Errorf("%d attempts were refused and %d held off, want 20 and 40", refused, limited)
	}
	// A right credential that is new is held off with them; one that is known is not.
	if _, err := a.Authenticate(from(t, attacker, basic("acme", successor))); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v, want %v", err, codes.ResourceExhausted)
	}
	if _, err := a.Authenticate(from(t, attacker, known)); err != nil {
		t.Errorf("a known caller: %v", err)
	}
	if _, err := a.Authenticate(from(t, friend, basic("acme", successor))); err != nil {
		t.Errorf("from elsewhere: %v", err)
	}
	s.pass(time.Minute)
	if _, err := a.Authenticate(from(t, attacker, basic("acme", successor))); err != nil {
		t.Errorf("a minute later: %v", err)
	}

	// Attempts from many addresses at one brand, and at a secret whose id is known.
	for _, wrong := range []string{"guess", "dks_" + id + "_" + strings.Repeat("A", 32)} {
		limited = 0
		for i := range 30 {
			if _, err := a.Authenticate(from(t, fmt.Sprintf("203.0.113.%d", i), basic("acme", wrong))); status.Code(err) == codes.ResourceExhausted {
				limited++
			}
		}
		if limited != 10 {
			t.Errorf("%q: %d attempts were held off, want 10", wrong, limited)
		}
	}
	// They lock nobody out: the secrets have attempts of their own.
	fresh := s.authenticator(nil)
	for i := range 30 {
		_, _ = fresh.Authenticate(from(t, fmt.Sprintf("203.0.113.%d", i), basic("acme", "guess")))
	}
	if _, err := fresh.Authenticate(from(t, friend, known)); err != nil {
		t.Errorf("the brand was locked out: %v", err)
	}
	// One customer's IPv6 addresses count as one.
	limited = 0
	for i := range 30 {
		if _, err := a.Authenticate(from(t, fmt.Sprintf("2001:db8::%x", i+1), "Bearer x")); status.Code(err) == codes.ResourceExhausted {
			limited++
		}
	}
	if limited != 10 {
		t.Errorf("%d attempts from one /64 were held off, want 10", limited)
	}
	s.checkSecrets(t)
}

// Many calls at once with a credential that is new are no attempts to guess it.
func TestManyFirstCalls(t *testing.T) {
	s := newStore(t)
	a := s.authenticator(nil)
	_, secret := s.secret(t, "acme", 0)
	errs := make([]error, 200)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = a.Authenticate(from(t, "192.0.2.1", basic("acme", secret))) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

// A caller who leaves gets no answer, and leaves the others theirs.
func TestCallerLeaves(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(from(t, "192.0.2.1", "Bearer "+s.token(t, keystore.Token{Role: "admin", Name: "alice"})))
	cancel()
	a := s.authenticator(nil)
	if _, err := a.Authenticate(ctx); err != nil && status.Code(err) != codes.Canceled {
		t.Errorf("got %v, want %v", err, codes.Canceled)
	}
	if _, err := a.Authenticate(from(t, "192.0.2.1", "Bearer "+s.secrets[0])); err != nil {
		t.Error(err)
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	for _, kind := range []string{"token known", "secret known", "secret new"} {
		b.Run(kind, func(b *testing.B) {
			secret, stored := authn.NewBrandSecret("acme")
			id, token, hash := authn.NewToken()
			creds := fixed{token: keystore.Token{ID: id, Hash: hash, Role: "admin", Name: "a", ExpireTime: now.Add(time.Hour)}, secret: stored}
			a := authn.New(authn.Options{Credentials: creds, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)})
			header := basic("acme", secret)
			if kind == "token known" {
				header = "Bearer " + token
			}
			ctx := peer.NewContext(b.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}})
			ctx = metadata.NewIncomingContext(ctx, metadata.MD{"authorization": {header}})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Authenticate(ctx); err != nil {
					b.Fatal(err)
				}
				if kind == "secret new" {
					a.Forget(stored.ID)
				}
			}
		})
	}
}

// fixed has one token and one secret.
type fixed struct {
	token  keystore.Token
	secret keystore.BrandSecret
}

func (f fixed) Token(context.Context, string) (keystore.Token, error) { return f.token, nil }

func (f fixed) BrandSecrets(context.Context, string) ([]keystore.BrandSecret, error) {
	return []keystore.BrandSecret{f.secret}, nil
}
