package keystore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// ErrNotDisclosable says that the brand's keys are not disclosed, or not yet, or the
// public half is published somewhere.
var ErrNotDisclosable = errors.New("private key may not be disclosed")

// Retained is the private half of a destroyed key that waits, sealed, for its
// disclosure.
type Retained struct {
	Brand       string
	Domain      dnsname.Domain
	KeyID       string
	Selector    dnsname.Selector
	Algorithm   keypair.Algorithm
	Fingerprint [schema.FingerprintLen]byte
	// From when until when it signed; both zero if it never did.
	ActivateTime, EndTime time.Time
	DestroyTime           time.Time
	Sealed                []byte // under the resource name that the key had
	Revision              int64
}

// Disclosed is a private key that everybody may read.
type Disclosed struct {
	KeyID        string
	Selector     dnsname.Selector
	Algorithm    keypair.Algorithm
	PrivateKey   []byte    // PKCS #8
	ActivateTime time.Time // see Retained
	EndTime      time.Time
	DestroyTime  time.Time
	DiscloseTime time.Time
}

// retain reads the private halves that a change is to keep and returns the
// operations that keep them. Without one, there is nothing to keep.
func (s *Store) retain(ctx context.Context, c Change, d Domain) ([]clientv3.Op, error) {
	var ops []clientv3.Op
	for _, pub := range c.Publish {
		if pub.Replaces == nil || !pub.Retain {
			continue
		}
		k := *pub.Replaces
		sealed, err := s.SealedKey(ctx, d.Brand, d.Name, k.ID)
		if errors.Is(err, ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		value, err := proto.Marshal(&schemapb.RetainedKey{
			Sealed: sealed, Selector: string(k.Selector), Algorithm: uint32(k.Algorithm), Fingerprint: k.Fingerprint[:],
			DestroyTimeMicros: schema.Micros(d.UpdateTime), ActivateTimeMicros: schema.Micros(k.ActivateTime), EndTimeMicros: schema.Micros(signedUntil(k)),
		})
		if err != nil {
			return nil, fmt.Errorf("retained key %s of %s: %w", k.ID, d.Name, err)
		}
		ops = append(ops, clientv3.OpPut(schema.RetainedKey(d.Brand, string(d.Name), k.ID), string(value)))
	}
	return ops, nil
}

// signedUntil is when a key ceased to sign: when another took over, or when it
// was revoked while it signed.
func signedUntil(k Key) time.Time {
	switch {
	case k.ActivateTime.IsZero():
		return time.Time{}
	case k.RetireTime.IsZero():
		return k.RevokeTime
	}
	return k.RetireTime
}

// RetainedKeys lists up to limit retained keys of a brand, or of all brands when
// brand is empty, that follow after, in order of brand, domain and id.
func (s *Store) RetainedKeys(ctx context.Context, brand string, after Retained, limit int) (retained []Retained, more bool, err error) {
	prefix, from := schema.RetainedPrefix(brand), ""
	if after.KeyID != "" {
		from = strings.TrimPrefix(schema.RetainedKey(after.Brand, string(after.Domain), after.KeyID), prefix)
	}
	kvs, more, err := s.page(ctx, prefix, from, limit)
	if err != nil {
		return nil, false, err
	}
	for _, kv := range kvs {
		r, err := retainedFrom(kv)
		if err != nil {
			return nil, false, err
		}
		retained = append(retained, r)
	}
	return retained, more, nil
}

// DropRetained deletes all retained keys of a brand: they will not be disclosed.
func (s *Store) DropRetained(ctx context.Context, brand string) error {
	if err := s.ready(); err != nil {
		return err
	}
	resp, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(schema.RetainedPrefix(brand), clientv3.WithPrefix())}, nil)
	w := Witnessed{Brand: brand, Events: []Event{{Action: "DROP_RETAINED"}}}
	if err == nil {
		w.Revision = resp.Header.Revision
	}
	s.tell(ctx, w, err)
	return err
}

// Disclose makes a retained key public: private is what r holds, opened, as
// PKCS #8. b is the brand as read. Nothing is written unless the brand still says
// what b does, discloses its keys, and the lag has passed since the key was
// destroyed; and unless its public half is published nowhere in the zone, which it
// never will be again. It returns ErrNotDisclosable, ErrKeyNotFound if r is no
// longer retained, ErrConflict if the brand has changed, and ErrFenced.
func (s *Store) Disclose(ctx context.Context, b Brand, r Retained, private []byte, now time.Time, fence *Fence) error {
	switch {
	case b.Name != r.Brand:
		return fmt.Errorf("%w: key %s is not of brand %s", ErrNotDisclosable, r.KeyID, b.Name)
	case !b.Disclosure.Enabled:
		return fmt.Errorf("%w: brand %s does not disclose keys", ErrNotDisclosable, b.Name)
	case now.Before(r.DestroyTime.Add(b.Disclosure.Lag)):
		return fmt.Errorf("%w: key %s was destroyed at %s", ErrNotDisclosable, r.KeyID, r.DestroyTime)
	}
	value, err := proto.Marshal(&schemapb.DisclosedKey{
		Selector: string(r.Selector), Algorithm: uint32(r.Algorithm), PrivateKey: private,
		ActivateTimeMicros: schema.Micros(r.ActivateTime), EndTimeMicros: schema.Micros(r.EndTime),
		DestroyTimeMicros: schema.Micros(r.DestroyTime), DiscloseTimeMicros: schema.Micros(now),
	})
	if err != nil {
		return fmt.Errorf("disclosed key %s of %s: %w", r.KeyID, r.Domain, err)
	}
	if err := s.ready(); err != nil {
		return err
	}
	retainedKey, brandKey := schema.RetainedKey(r.Brand, string(r.Domain), r.KeyID), schema.BrandKey(b.Name)
	fingerprintKey := schema.FingerprintKey(string(b.Zone), r.Fingerprint[:])
	resp, err := s.fencedTxn(ctx, fence,
		[]clientv3.Cmp{unchanged(retainedKey, r.Revision), present(retainedKey), unchanged(brandKey, b.Revision), absent(fingerprintKey)},
		[]clientv3.Op{
			clientv3.OpPut(schema.DisclosedKey(r.Brand, string(r.Domain), r.KeyID), string(value)),
			clientv3.OpPut(fingerprintKey, "disclosed"),
			clientv3.OpDelete(retainedKey),
		},
		[]clientv3.Op{clientv3.OpGet(retainedKey, clientv3.WithKeysOnly()), clientv3.OpGet(brandKey, clientv3.WithKeysOnly())})
	w := Witnessed{Brand: r.Brand, Domain: r.Domain, Events: []Event{{
		Action: "DISCLOSE", KeyID: r.KeyID, Selector: r.Selector, Algorithm: r.Algorithm,
	}}}
	if err != nil {
		s.tell(ctx, w, err)
		return err
	}
	if resp.Succeeded {
		w.Revision = resp.Header.Revision
		s.tell(ctx, w, nil)
		return nil
	}
	kept, brand := readAt(resp, 0), readAt(resp, 1)
	switch {
	case kept == nil || kept.ModRevision != r.Revision:
		return fmt.Errorf("%w: retained key %s of %s", ErrKeyNotFound, r.KeyID, r.Domain)
	case brand == nil || brand.ModRevision != b.Revision:
		return fmt.Errorf("%w: brand %s", ErrConflict, b.Name)
	}
	return fmt.Errorf("%w: the public half of key %s is published", ErrNotDisclosable, r.KeyID)
}

// Disclosed reads the disclosed keys of a domain, in order of id.
func (s *Store) Disclosed(ctx context.Context, brand string, domain dnsname.Domain) ([]Disclosed, error) {
	prefix := schema.DisclosedPrefix(brand, string(domain))
	var disclosed []Disclosed
	_, err := s.snapshot(ctx, prefix, 0, func(kv *mvccpb.KeyValue) error {
		var v schemapb.DisclosedKey
		if err := proto.Unmarshal(kv.Value, &v); err != nil {
			return fmt.Errorf("%w: disclosed key %q: %w", schema.ErrCorrupt, kv.Key, err)
		}
		a, err := algorithmFrom(v.GetAlgorithm())
		if err != nil {
			return fmt.Errorf("disclosed key %q: %w", kv.Key, err)
		}
		disclosed = append(disclosed, Disclosed{
			KeyID: strings.TrimPrefix(string(kv.Key), prefix), Selector: dnsname.Selector(v.GetSelector()), Algorithm: a,
			PrivateKey:   v.GetPrivateKey(),
			ActivateTime: schema.FromMicros(v.GetActivateTimeMicros()), EndTime: schema.FromMicros(v.GetEndTimeMicros()),
			DestroyTime: schema.FromMicros(v.GetDestroyTimeMicros()), DiscloseTime: schema.FromMicros(v.GetDiscloseTimeMicros()),
		})
		return nil
	})
	return disclosed, err
}

func retainedFrom(kv *mvccpb.KeyValue) (Retained, error) {
	brand, domain, id, ok := schema.ParseRetainedKey(string(kv.Key))
	if !ok {
		return Retained{}, fmt.Errorf("%w: %q is no retained key's key", schema.ErrCorrupt, kv.Key)
	}
	var v schemapb.RetainedKey
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return Retained{}, fmt.Errorf("%w: retained key %s of %s: %w", schema.ErrCorrupt, id, domain, err)
	}
	a, err := algorithmFrom(v.GetAlgorithm())
	if err != nil || len(v.GetFingerprint()) != schema.FingerprintLen {
		return Retained{}, fmt.Errorf("%w: retained key %s of %s", schema.ErrCorrupt, id, domain)
	}
	return Retained{
		Brand: brand, Domain: dnsname.Domain(domain), KeyID: id, Selector: dnsname.Selector(v.GetSelector()), Algorithm: a,
		Fingerprint: [schema.FingerprintLen]byte(v.GetFingerprint()), DestroyTime: schema.FromMicros(v.GetDestroyTimeMicros()),
		ActivateTime: schema.FromMicros(v.GetActivateTimeMicros()), EndTime: schema.FromMicros(v.GetEndTimeMicros()),
		Sealed: v.GetSealed(), Revision: kv.ModRevision,
	}, nil
}
