package service_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// newPublic is a public key as base64.
func newPublic(t testing.TB) string {
	t.Helper()
	return base64.StdEncoding.EncodeToString(must(keypair.Generate(keypair.Ed25519))(t).Public().Octets)
}

// publish publishes a key that was made elsewhere.
func (f *fixture) publish(t testing.TB, domain, selector string) *dkimv1.Key {
	t.Helper()
	return must(f.api.PublishKey(context.Background(), &dkimv1.PublishKeyRequest{Parent: domain, Selector: selector, PublicKey: newPublic(t)}))(t)
}

func TestPublishKey(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	rsa := must(rsaKey(keypair.RSA2048, 0))(t).Public()
	req := &dkimv1.PublishKeyRequest{
		Parent: "brands/acme/domains/Spamtrap.dk", Selector: "Their.Selector",
		PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: rsa.Octets})),
	}
	k := must(f.api.PublishKey(ctx, req))(t)
	at := timestamppb.New(start.Truncate(time.Microsecond))
	want := &dkimv1.Key{
		Name: k.GetName(), Selector: "their.selector", Algorithm: rsa2048, State: active, Custody: dkimv1.KeyCustody_KEY_CUSTODY_PUBLIC_ONLY,
		PublicKey: rsa.Octets, Fingerprint: k.GetFingerprint(), OwnerName: "their.selector-spamtrap-dk._domainkey.keys.example.net",
		Record:     "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(rsa.Octets),
		TtlSeconds: 3600, PrepareTime: at, ActivateTime: at, Revision: k.GetRevision(),
	}
	wantEqual(t, "published key", k, want)
	wantEqual(t, "key as read", must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: k.GetName()}))(t), want)
	wantEqual(t, "private keys", f.under("/dkim/v1/priv/"), nil)
	d := must(f.api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: "brands/acme/domains/spamtrap.dk"}))(t)
	s := selector("their.selector", rsa2048, active, "their.selector._domainkey.spamtrap.dk", want.GetOwnerName())
	s.Custody = dkimv1.KeyCustody_KEY_CUSTODY_PUBLIC_ONLY
	wantEqual(t, "selectors of the new domain", plain(d).GetSelectors(), []*dkimv1.Selector{s})

	// The same key in its other forms: nothing is done.
	for _, form := range []string{
		want.GetRecord(), base64.StdEncoding.EncodeToString(rsa.Octets), "  " + req.GetPublicKey() + "\n",
	} {
		err := f.unchanged(t, func() error {
			again, err := f.api.PublishKey(ctx, &dkimv1.PublishKeyRequest{Parent: req.GetParent(), Selector: req.GetSelector(), PublicKey: form})
			wantEqual(t, "same key again", again, want)
			return err
		})
		if err != nil {
			t.Errorf("the same key as %.40q: %v", form, err)
		}
	}
	// With another TTL, or in test: the record changes, and the key stays.
	for _, change := range []*dkimv1.PublishKeyRequest{{TtlSeconds: 60}, {TtlSeconds: 86400, Testing: true}, {Testing: true}, {}} {
		change.Parent, change.Selector, change.PublicKey = req.GetParent(), req.GetSelector(), req.GetPublicKey()
		got := must(f.api.PublishKey(ctx, change))(t)
		if ttl := change.GetTtlSeconds(); ttl != 0 {
			want.TtlSeconds = ttl
		}
		want.Testing, want.Revision = change.GetTesting(), got.GetRevision()
		want.Record = strings.Replace(strings.Replace(want.GetRecord(), " t=y;", "", 1), "k=rsa;", map[bool]string{false: "k=rsa;", true: "k=rsa; t=y;"}[change.GetTesting()], 1)
		wantEqual(t, "changed key", got, want)
		wantEqual(t, "key as read", must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: k.GetName()}))(t), want)
	}
}

func TestPublishKeyConcurrently(t *testing.T) {
	f := newFixture(t)
	public := newPublic(t)
	const clients = 8
	answers := make(chan *dkimv1.Key, clients)
	for range clients {
		go func() {
			k, err := f.api.PublishKey(t.Context(), &dkimv1.PublishKeyRequest{Parent: "brands/acme/domains/spamtrap.dk", Selector: "s", PublicKey: public})
			if err != nil {
				t.Error(err)
			}
			answers <- k
		}()
	}
	first := <-answers
	for range clients - 1 {
		wantEqual(t, "answer", <-answers, first)
	}
}

func TestDeleteKey(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	d := f.provision(t, "brands/acme/domains/spamtrap.dk")
	before := f.under("/dkim/")
	public := newPublic(t)
	publish := &dkimv1.PublishKeyRequest{Parent: d.GetName(), Selector: "theirs", PublicKey: public}
	k := must(f.api.PublishKey(ctx, publish))(t)
	present := must(f.api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: d.GetName()}))(t)
	got := must(f.api.DeleteKey(ctx, &dkimv1.DeleteKeyRequest{Name: k.GetName(), Etag: present.GetEtag()}))(t)
	wantEqual(t, "domain", plain(got), plain(d))
	wantEqual(t, "keys of the store", f.under("/dkim/"), before)

	// The key may stand elsewhere now, and the selector hold another.
	publish.Parent = "brands/other/domains/example.org"
	must(f.api.PublishKey(ctx, publish))(t)
	f.publish(t, d.GetName(), "theirs")
	// A domain may be without keys.
	list := must(f.api.ListKeys(ctx, &dkimv1.ListKeysRequest{Parent: publish.GetParent()}))(t)
	empty := must(f.api.DeleteKey(ctx, &dkimv1.DeleteKeyRequest{Name: list.GetKeys()[0].GetName()}))(t)
	wantEqual(t, "selectors", len(empty.GetSelectors()), 0)
	list = must(f.api.ListKeys(ctx, &dkimv1.ListKeysRequest{Parent: publish.GetParent()}))(t)
	wantEqual(t, "keys", len(list.GetKeys()), 0)
}

func TestListKeys(t *testing.T) {
	f := newFixture(t)
	d := f.provision(t, "brands/acme/domains/spamtrap.dk", "m", "b")
	for _, s := range []string{"z", "a", "a.b", "n1", "n-2"} {
		f.publish(t, d.GetName(), s)
	}
	want := []string{"a", "a.b", "b", "m", "n-2", "n1", "z"}
	var whole []*dkimv1.Key
	for _, size := range []int32{0, 1, 2, 3, 6, 7, 8, 5000} {
		req := &dkimv1.ListKeysRequest{Parent: d.GetName(), PageSize: size}
		var got []*dkimv1.Key
		for more := true; more; more = req.GetPageToken() != "" {
			resp := must(f.api.ListKeys(t.Context(), req))(t)
			if n := len(resp.GetKeys()); n == 0 || size > 0 && n > int(size) {
				t.Fatalf("page of %d keys for size %d", n, size)
			}
			got = append(got, resp.GetKeys()...)
			req.PageToken = resp.GetNextPageToken()
		}
		var selectors []string
		for _, k := range got {
			selectors = append(selectors, k.GetSelector())
		}
		wantEqual(t, fmt.Sprintf("selectors by %d", size), selectors, want)
		if whole == nil {
			whole = got
		}
		wantEqual(t, fmt.Sprintf("keys by %d", size), got, whole)
	}
	for _, k := range whole {
		wantEqual(t, "key", must(f.api.GetKey(t.Context(), &dkimv1.GetKeyRequest{Name: k.GetName()}))(t), proto.CloneOf(k))
	}
}
