package service_test

import (
	"bytes"
	"context"
	"crypto"
	stded25519 "crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keyring"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/service"
	"github.com/dkimzone/dkimzone/internal/signview"
)

// signingFixture is a fixture whose service answers from a view, and signs.
type signingFixture struct {
	*fixture

	view *signview.View
	ring *keyring.Ring
}

func newSigningFixture(t testing.TB, o service.SigningOptions) *signingFixture {
	t.Helper()
	f := &signingFixture{fixture: newFixture(t)}
	now := func() time.Time { return (*f.now.Load())() }
	f.view = signview.New(signview.Options{Source: f.store, Now: now, Logger: slog.New(slog.DiscardHandler), Interval: 10 * time.Millisecond})
	f.ring = keyring.New(keyring.Options{Store: f.store, Opener: f.sealer, Now: now})
	o.View, o.Ring = f.view, f.ring
	f.service.UseSigning(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.view.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

// await waits until the view has come by something.
func (f *signingFixture) await(t testing.TB, what string, there func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		c, err := f.view.Snapshot(ctx, "", func(signview.Entry) error { return nil })
		if err == nil && there() {
			return
		}
		tick := time.NewTimer(5 * time.Millisecond) // before it is loaded there is nothing to wait for
		if err == nil {
			_, _, _ = f.view.Changes(ctx, c, "", 1, tick.C)
		} else {
			<-tick.C
		}
		if ctx.Err() != nil {
			t.Fatalf("%s does not come", what)
		}
	}
}

func (f *signingFixture) signs(brand, domain, key string) func() bool {
	return func() bool {
		a, err := f.view.Resolve(brand, dnsname.Domain(domain))
		return err == nil && len(a.Keys) == 1 && acme+domain+"/keys/"+a.Keys[0].KeyID == key
	}
}

// active provisions a domain and lets its first key sign.
func (f *signingFixture) active(t testing.TB, domain string) (signing, standby string) {
	t.Helper()
	f.provision(t, acme+domain)
	d := f.rotate(t, acme+domain)
	signing, standby = d.GetSelectors()[0].GetKey(), d.GetSelectors()[1].GetKey()
	f.await(t, domain, f.signs("acme", domain, signing))
	return signing, standby
}

func digestOf(s string) []byte {
	d := sha256.Sum256([]byte(s))
	return d[:]
}

func (f *signingFixture) sign(t testing.TB, key string, digest []byte) *dkimv1.SignResponse_Result {
	t.Helper()
	resp := must(f.signer.Sign(context.Background(), &dkimv1.SignRequest{Digests: []*dkimv1.SignRequest_Digest{{Key: key, Digest: digest}}}))(t)
	return resp.GetResults()[0]
}

func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func TestSign(t *testing.T) {
	f := newSigningFixture(t, service.SigningOptions{})
	ctx := t.Context()
	key, standby := f.active(t, "spamtrap.dk")
	digest := digestOf("a message")
	r := f.sign(t, key, digest)
	public, err := x509.ParsePKIXPublicKey(r.GetPublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if !stded25519.Verify(public.(stded25519.PublicKey), digest, r.GetSignature()) {
		t.Error("the signature does not verify")
	}
	record := must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: key}))(t).GetPublicKey()
	if !bytes.Equal(record, public.(stded25519.PublicKey)) {
		t.Error("it is not the key that is published")
	}
	if r = f.sign(t, key, nil); r.GetSignature() != nil || r.GetPublicKey() == nil || r.GetError() != nil {
		t.Errorf("asked for the public half: %v", r)
	}

	theirs := f.publish(t, spamtrap, "theirs").GetName()
	gone, _ := f.active(t, "gone.dk")
	must(f.api.RevokeKey(ctx, &dkimv1.RevokeKeyRequest{Name: gone, Compromised: true}))(t)
	f.await(t, "the revocation", func() bool { return !f.signs("acme", "gone.dk", gone)() })
	f.await(t, "the published key", func() bool {
		_, err := f.view.SigningKey("acme", "spamtrap.dk", theirs[len(spamtrap)+len("/keys/"):])
		_, known := errors.AsType[*signview.NotSigningError](err)
		return known
	})
	for _, tt := range []struct {
		name   string
		key    string
		digest []byte
		code   codes.Code
		reason string
	}{
		{"a standby", standby, digest, codes.FailedPrecondition, "KEY_NOT_SIGNING"},
		{"a revoked key", gone, digest, codes.FailedPrecondition, "KEY_NOT_SIGNING"},
		{"a key made elsewhere", theirs, digest, codes.FailedPrecondition, "KEY_NOT_SIGNING"},
		{"no key", spamtrap + "/keys/no", digest, codes.NotFound, "KEY_NOT_FOUND"},
		{"no domain", acme + "no.example/keys/no", digest, codes.NotFound, "DOMAIN_NOT_FOUND"},
		{"no brand", "brands/nobody/domains/no.example/keys/no", digest, codes.NotFound, "BRAND_NOT_FOUND"},
		{"no name", "spamtrap.dk", digest, codes.InvalidArgument, "INVALID_NAME"},
		{"SHA-1", key, digest[:20], codes.InvalidArgument, "INVALID_DIGEST"},
		{"SHA-512", key, append(digest, digest...), codes.InvalidArgument, "INVALID_DIGEST"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := f.sign(t, tt.key, tt.digest)
			got := status.FromProto(r.GetError())
			if got.Code() != tt.code || reason(got.Err()) != tt.reason || r.GetSignature() != nil || r.GetPublicKey() != nil {
				t.Errorf("%v, want %v %s", r, tt.code, tt.reason)
			}
		})
	}
	if n := f.ring.Len(); n != 1 {
		t.Errorf("%d keys are open, want 1", n)
	}

	// In a batch each stands for itself.
	req := &dkimv1.SignRequest{}
	for i := range 10 {
		req.Digests = append(req.Digests, &dkimv1.SignRequest_Digest{Key: []string{key, standby}[i%2], Digest: digestOf(fmt.Sprint(i))})
	}
	for i, r := range must(f.signer.Sign(ctx, req))(t).GetResults() {
		if i%2 == 0 && !stded25519.Verify(public.(stded25519.PublicKey), digestOf(fmt.Sprint(i)), r.GetSignature()) || i%2 == 1 && r.GetError() == nil {
			t.Errorf("result %d of a batch: %v", i, r)
		}
	}

	foreign := dkimv1.NewSignerClient(f.as(t, "signer", "mx", "other"))
	f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, func() error { _, err := foreign.Sign(ctx, req); return err })
	type client = dkimv1.SignerClient
	f.refuse(t, []refusal{
		{"none", badArgument("INVALID_DIGEST", "digests"), asSigner(f.fixture, client.Sign, &dkimv1.SignRequest{})},
		{"too many", badArgument("BATCH_TOO_LARGE", "digests"), asSigner(f.fixture, client.Sign, &dkimv1.SignRequest{Digests: make([]*dkimv1.SignRequest_Digest, 101)})},
	})

	// A key that is open signs while the store is away, others do not.
	other, _ := f.active(t, "other.example")
	f.fake.SetError(status.Error(codes.Unavailable, "away"))
	defer f.fake.SetError(nil)
	if r := f.sign(t, key, digest); r.GetError() != nil {
		t.Errorf("an open key: %v", r)
	}
	if r := f.sign(t, other, digest); reason(status.FromProto(r.GetError()).Err()) != "STORE_UNAVAILABLE" {
		t.Errorf("a key that is not open: %v", r)
	}
}

func TestSignRate(t *testing.T) {
	f := newSigningFixture(t, service.SigningOptions{Rate: 50})
	key, _ := f.active(t, "spamtrap.dk")
	batch := &dkimv1.SignRequest{}
	for range 100 {
		batch.Digests = append(batch.Digests, &dkimv1.SignRequest_Digest{Key: key, Digest: digestOf("x")})
	}
	must(f.signer.Sign(t.Context(), batch))(t)
	one := &dkimv1.SignRequest{Digests: batch.GetDigests()[:1]}
	_, err := f.signer.Sign(t.Context(), one)
	if status.Code(err) != codes.ResourceExhausted || reason(err) != "RATE_LIMITED" {
		t.Fatalf("after a whole batch: %v", err)
	}
	for _, d := range status.Convert(err).Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok && retry.GetRetryDelay().AsDuration() != 20*time.Millisecond {
			t.Errorf("try again after %s, want 20ms", retry.GetRetryDelay().AsDuration())
		}
	}
	must(dkimv1.NewSignerClient(f.as(t, "signer", "mx2")).Sign(t.Context(), one))(t)
	f.setTime((*f.now.Load())().Add(20 * time.Millisecond))
	must(f.signer.Sign(t.Context(), one))(t)
}

func TestNotReady(t *testing.T) {
	f := newFixture(t)
	_, err := f.signer.Sign(t.Context(), &dkimv1.SignRequest{})
	if status.Code(err) != codes.Unavailable || reason(err) != "NOT_READY" {
		t.Errorf("Sign: %v", err)
	}
	stream := must(f.signer.WatchSigningKeys(t.Context(), &dkimv1.WatchSigningKeysRequest{Parent: "brands/-"}))(t)
	if _, err := stream.Recv(); reason(err) != "NOT_READY" {
		t.Errorf("WatchSigningKeys: %v", err)
	}
}

func TestFetchPrivateKeys(t *testing.T) {
	f := newSigningFixture(t, service.SigningOptions{KeyFetchers: []string{"mx", "other.mx"}})
	ctx := t.Context()
	key, standby := f.active(t, "spamtrap.dk")
	req := &dkimv1.FetchPrivateKeysRequest{Keys: []string{key, standby, spamtrap + "/keys/no"}}
	calling := func(c dkimv1.SignerClient, req *dkimv1.FetchPrivateKeysRequest) func() error {
		return func() error { _, err := c.FetchPrivateKeys(ctx, req); return err }
	}
	f.refused(t, rejection{codes.FailedPrecondition, "SIGNER_NOT_FOUND", ""}, calling(f.signer, req))
	must(f.signer.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{}))(t)
	results := must(f.signer.FetchPrivateKeys(ctx, req))(t).GetResults()
	for i, r := range results[:2] {
		private, err := x509.ParsePKCS8PrivateKey(r.GetPrivateKey())
		if err != nil {
			t.Fatal(err)
		}
		want := must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: req.GetKeys()[i]}))(t).GetPublicKey()
		if got := private.(crypto.Signer).Public().(stded25519.PublicKey); !bytes.Equal(got, want) {
			t.Errorf("key %d is not the one that is published", i)
		}
		if r.GetSigning() != (i == 0) || r.GetAlgorithm() != ed25519 {
			t.Errorf("key %d: %v", i, r.GetSigning())
		}
	}
	if reason(status.FromProto(results[2].GetError()).Err()) != "KEY_NOT_FOUND" {
		t.Errorf("of no key: %v", results[2].GetError())
	}

	denied := rejection{codes.PermissionDenied, "KEY_FETCH_NOT_ALLOWED", ""}
	f.refused(t, denied, calling(dkimv1.NewSignerClient(f.as(t, "signer", "mx2")), req))
	f.refused(t, denied, calling(dkimv1.NewSignerClient(f.as(t, "admin", "mx")), req))
	f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, calling(dkimv1.NewSignerClient(f.as(t, "signer", "mx", "other")), req))
	f.refused(t, badArgument("BATCH_TOO_LARGE", "keys"), calling(f.signer, &dkimv1.FetchPrivateKeysRequest{}))
}

// watching receives from a watch.
type watching struct {
	t      *testing.T
	stream interface {
		Recv() (*dkimv1.WatchSigningKeysResponse, error)
	}
	token string
}

func (f *signingFixture) watch(t *testing.T, c dkimv1.SignerClient, req *dkimv1.WatchSigningKeysRequest) *watching {
	t.Helper()
	return &watching{t: t, stream: must(c.WatchSigningKeys(t.Context(), req))(t)}
}

func (w *watching) next() *dkimv1.WatchSigningKeysResponse {
	w.t.Helper()
	resp := must(w.stream.Recv())(w.t)
	w.token = resp.GetResumeToken()
	return resp
}

func TestWatchSigningKeys(t *testing.T) {
	f := newSigningFixture(t, service.SigningOptions{})
	ctx := t.Context()
	key, standby := f.active(t, "spamtrap.dk")
	w := f.watch(t, f.signer, &dkimv1.WatchSigningKeysRequest{Parent: "brands/-", IncludeStandby: true})
	first := w.next()
	if !first.GetSnapshot() || !first.GetSynced() || len(first.GetBrands()) != 2 || len(first.GetDomains()) != 1 {
		t.Fatalf("first %v", first)
	}
	d := first.GetDomains()[0]
	if d.GetName() != spamtrap || len(d.GetKeys()) != 1 || d.GetKeys()[0].GetKey() != key || d.GetReason() != rotation.ReasonOwnKey || d.GetHoldDuration().AsDuration() != 84*time.Hour {
		t.Errorf("domain %v", d)
	}
	if len(d.GetStandbyKeys()) != 1 || d.GetStandbyKeys()[0].GetKey() != standby {
		t.Errorf("standby %v", d.GetStandbyKeys())
	}

	must(f.api.RevokeKey(ctx, &dkimv1.RevokeKeyRequest{Name: key, Compromised: true}))(t)
	changed := w.next()
	if changed.GetSnapshot() || len(changed.GetDomains()) != 1 || changed.GetDomains()[0].GetKeys()[0].GetKey() != standby {
		t.Errorf("after a revocation %v", changed)
	}

	// Another call goes on where this one was.
	must(f.api.DeleteDomain(ctx, &dkimv1.DeleteDomainRequest{Name: spamtrap}))(t)
	again := f.watch(t, f.signer, &dkimv1.WatchSigningKeysRequest{Parent: "brands/-", IncludeStandby: true, ResumeToken: w.token})
	if resp := again.next(); resp.GetSnapshot() || len(resp.GetDomains()) != 1 || !resp.GetDomains()[0].GetDeleted() || resp.GetDomains()[0].GetName() != spamtrap {
		t.Errorf("resumed with %v", resp)
	}

	// One who is bound to a brand learns of no other.
	bound := dkimv1.NewSignerClient(f.as(t, "signer", "mx", "other"))
	w = f.watch(t, bound, &dkimv1.WatchSigningKeysRequest{Parent: "brands/-"})
	if resp := w.next(); !resp.GetSynced() || len(resp.GetBrands()) != 1 || resp.GetBrands()[0].GetName() != "brands/other" || resp.GetDomains() != nil {
		t.Errorf("bound to other: %v", resp)
	}
	for _, tt := range []struct {
		name   string
		client dkimv1.SignerClient
		req    *dkimv1.WatchSigningKeysRequest
		code   codes.Code
		reason string
	}{
		{"another brand", bound, &dkimv1.WatchSigningKeysRequest{Parent: "brands/acme"}, codes.PermissionDenied, "PERMISSION_DENIED"},
		{"no brand", f.signer, &dkimv1.WatchSigningKeysRequest{Parent: "brands/nobody"}, codes.NotFound, "BRAND_NOT_FOUND"},
		{"of another watch", f.signer, &dkimv1.WatchSigningKeysRequest{Parent: "brands/acme", ResumeToken: w.token}, codes.InvalidArgument, "INVALID_RESUME_TOKEN"},
		{"no token", f.signer, &dkimv1.WatchSigningKeysRequest{Parent: "brands/-", ResumeToken: "x"}, codes.InvalidArgument, "INVALID_RESUME_TOKEN"},
	} {
		stream := must(tt.client.WatchSigningKeys(ctx, tt.req))(t)
		if _, err := stream.Recv(); status.Code(err) != tt.code || reason(err) != tt.reason {
			t.Errorf("%s: %v, want %v %s", tt.name, err, tt.code, tt.reason)
		}
	}
}

// What a signer is told comes from the view, and is what the store would say.
func TestResolveFromView(t *testing.T) {
	f := newSigningFixture(t, service.SigningOptions{})
	ctx := t.Context()
	key, _ := f.active(t, "spamtrap.dk")
	bound := dkimv1.NewSignerClient(f.as(t, "signer", "mx", "other"))
	f.refused(t, rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}, func() error {
		_, err := bound.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/spamtrap.dk"})
		return err
	})
	f.fake.SetError(status.Error(codes.Unavailable, "away"))
	resp := must(f.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/spamtrap.dk"}))(t)
	if len(resp.GetKeys()) != 1 || resp.GetKeys()[0].GetKey() != key || resp.GetRefreshDuration().AsDuration() != 5*time.Minute || resp.GetHoldDuration().AsDuration() <= 50*time.Hour {
		t.Errorf("while the store is away: %v", resp)
	}
	f.setTime((*f.now.Load())().Add(85 * time.Hour))
	_, err := f.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/spamtrap.dk"})
	if reason(err) != "STORE_UNAVAILABLE" {
		t.Errorf("when it was away for too long: %v", err)
	}
	f.fake.SetError(nil)
}
