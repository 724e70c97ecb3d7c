// Package mint carries out the steps of a rotation: it makes the key pairs,
// seals their private halves, and puts together the change that the store
// applies in one transaction, with a line of history for each step.
package mint

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// KeySource makes key pairs. Get waits when none is at hand; it fails only when
// ctx ends or keys cannot be made at all. It must be safe for concurrent use.
type KeySource interface {
	Get(ctx context.Context, a keypair.Algorithm) (*keypair.KeyPair, error)
}

// Sealer encrypts a private key under the brand's data key, bound to the name
// of the resource it belongs to. It must be safe for concurrent use.
type Sealer interface {
	Seal(ctx context.Context, brand, name string, plaintext []byte) ([]byte, error)
}

// Mint makes changes. It holds no state and is safe for concurrent use.
type Mint struct {
	keys   KeySource
	sealer Sealer
}

// New returns a Mint.
func New(keys KeySource, sealer Sealer) *Mint { return &Mint{keys: keys, sealer: sealer} }

// Pairs are key pairs that were made for selectors already. They are kept when
// a change is computed anew because somebody else was faster.
type Pairs map[keystore.Selector]*keypair.KeyPair

// Options is what a change needs besides the domain and the steps.
type Options struct {
	Now   time.Time
	Actor string // who or what makes the change, for the history
	// TTL in seconds and test flag of keys in selectors that are empty. A key
	// that follows another takes over both from it.
	TTL     uint32
	Testing bool
	// Disclosure keeps the sealed halves of destroyed keys, to be published
	// later. Not of those that were imported: what they verify stands at other
	// names, too, that nobody here withdraws.
	Disclosure bool
	// Pairs may be nil. Pairs that are made are put into it.
	Pairs Pairs
}

// Change returns the change of d that steps amount to. d is not changed. Errors
// are of ctx, of the KeySource or of the Sealer, or a *rotation.TransitionError
// for steps that d's keys do not allow.
func (m *Mint) Change(ctx context.Context, d keystore.Domain, steps []rotation.Step, o Options) (keystore.Change, error) {
	if o.Pairs == nil {
		o.Pairs = make(Pairs)
	}
	if err := m.makePairs(ctx, steps, o.Pairs); err != nil {
		return keystore.Change{}, err
	}
	c := keystore.Change{Domain: d, Actor: o.Actor}
	c.Domain.UpdateTime = o.Now
	c.Domain.Keys = slices.Clone(d.Keys)
	for _, step := range steps {
		event, err := m.apply(ctx, &c, step, o)
		if err != nil {
			return keystore.Change{}, err
		}
		c.Events = append(c.Events, event)
	}
	return c, nil
}

// makePairs gets a key pair for each selector that is filled, all at the same
// time.
func (m *Mint) makePairs(ctx context.Context, steps []rotation.Step, made Pairs) error {
	type result struct {
		selector keystore.Selector
		pair     *keypair.KeyPair
		err      error
	}
	results := make(chan result)
	waiting := 0
	for _, step := range steps {
		sel := keystore.Selector{Selector: step.Selector, Algorithm: step.Algorithm}
		if step.Kind != rotation.Refill || made[sel] != nil {
			continue
		}
		waiting++
		go func() {
			pair, err := m.keys.Get(ctx, sel.Algorithm)
			results <- result{sel, pair, err}
		}()
	}
	var failed error
	for range waiting {
		r := <-results
		if r.err != nil {
			failed = fmt.Errorf("generate %s key: %w", r.selector.Algorithm, r.err)
			continue
		}
		made[r.selector] = r.pair
	}
	return failed
}

func (m *Mint) apply(ctx context.Context, c *keystore.Change, step rotation.Step, o Options) (keystore.Event, error) {
	event := keystore.Event{
		Time: o.Now, Actor: o.Actor, Action: step.Kind.String(), KeyID: step.KeyID,
		Selector: step.Selector, Algorithm: step.Algorithm, Reason: step.Reason,
	}
	k := c.Domain.Key(step.KeyID)
	if fills := step.Kind == rotation.Refill && step.KeyID == ""; k == nil && !fills {
		return event, fmt.Errorf("%s of %s: there is no key %s", step.Kind, c.Domain.Name, step.KeyID)
	}
	if step.Kind == rotation.Refill {
		made, err := m.refill(ctx, c, k, step, o)
		event.KeyID, event.To = made.ID, rotation.Prepared
		return event, err
	}
	event.From = k.State
	if err := k.Take(step, o.Now); err != nil {
		return event, err
	}
	event.To = k.State
	if k.State == rotation.Revoked {
		c.Publish = append(c.Publish, keystore.Publication{Key: *k, Record: revokedRecord(*k, o.Now)})
	}
	return event, nil
}

// revokedRecord has an empty p= (RFC 6376 §3.6.1).
func revokedRecord(k keystore.Key, now time.Time) schema.PublicRecord {
	return schema.PublicRecord{KeyType: k.Algorithm.KeyType(), Testing: k.Testing, TTL: k.TTL, UpdateTime: now}
}

// refill puts a new key into a selector, in the place of old, which is destroyed;
// nil: the selector is empty.
func (m *Mint) refill(ctx context.Context, c *keystore.Change, old *keystore.Key, step rotation.Step, o Options) (keystore.Key, error) {
	d := &c.Domain
	pair := o.Pairs[keystore.Selector{Selector: step.Selector, Algorithm: step.Algorithm}]
	k := keystore.Key{
		Key: rotation.Key{
			ID: NewKeyID(), Selector: step.Selector, Algorithm: step.Algorithm,
			State: rotation.Prepared, Custody: rotation.Service, PrepareTime: o.Now, TTL: o.TTL,
		},
		Testing: o.Testing, Fingerprint: Fingerprint(pair.Public()),
	}
	pub := keystore.Publication{New: true}
	if old != nil {
		replaced := *old
		if err := old.Take(step, o.Now); err != nil {
			return k, err
		}
		k.TTL, k.Testing = old.TTL, old.Testing
		pub.Replaces, pub.Retain = &replaced, o.Disclosure && old.Custody == rotation.Service && !old.Imported
		d.Keys = slices.DeleteFunc(d.Keys, func(k keystore.Key) bool { return k.ID == replaced.ID })
	}
	sealed, err := m.seal(ctx, d.Brand, KeyName(d.Brand, string(d.Name), k.ID), pair)
	if err != nil {
		return k, err
	}
	pub.Key, pub.Sealed = k, sealed
	pub.Record = schema.PublicRecord{
		KeyType: k.Algorithm.KeyType(), PublicKey: pair.Public().Octets, Testing: k.Testing, TTL: k.TTL, UpdateTime: o.Now,
	}
	d.Keys = append(d.Keys, k)
	c.Publish = append(c.Publish, pub)
	return k, nil
}

// Seal seals the private half of a pair that was made elsewhere, as that of key
// id of d. Errors are of ctx or of the Sealer.
func (m *Mint) Seal(ctx context.Context, d keystore.Domain, id string, pair *keypair.KeyPair) ([]byte, error) {
	return m.seal(ctx, d.Brand, KeyName(d.Brand, string(d.Name), id), pair)
}

// KeyName is a key's resource name, which its sealed half is bound to.
func KeyName(brand, domain, id string) string {
	return "brands/" + brand + "/domains/" + domain + "/keys/" + id
}

func (m *Mint) seal(ctx context.Context, brand, name string, pair *keypair.KeyPair) ([]byte, error) {
	plaintext := pair.Marshal()
	defer clear(plaintext)
	sealed, err := m.sealer.Seal(ctx, brand, name, plaintext)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return sealed, nil
}

// Fingerprint is what the store knows a public key by.
func Fingerprint(k keypair.PublicKey) [schema.FingerprintLen]byte {
	sum := k.Fingerprint()
	return [schema.FingerprintLen]byte(sum[:schema.FingerprintLen])
}

// NewKeyID returns 80 random bits in base32: a key's name is never used again,
// not even after its domain was deleted and provisioned anew.
func NewKeyID() string { return strings.ToLower(rand.Text()[:16]) }
