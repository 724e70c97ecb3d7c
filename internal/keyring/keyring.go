// Package keyring signs with sealed private keys: it opens a key when it is first
// needed, keeps a bounded number of them open for a while, and clears them.
package keyring

import (
	"container/list"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/mint"
)

// Store has the sealed private halves; *keystore.Store is one.
type Store interface {
	SealedKey(ctx context.Context, brand string, domain dnsname.Domain, keyID string) ([]byte, error)
}

// Opener opens what was sealed for a resource.
type Opener interface {
	Open(ctx context.Context, brand, name string, sealed []byte) ([]byte, error)
}

// Options says how to make a Ring. Store, Opener and Now are required.
type Options struct {
	Store  Store
	Opener Opener
	Now    func() time.Time
	// Size is how many keys stay open. Default 10 000: an RSA-2048 key takes some
	// 4 KiB.
	Size int
	// Idle is how long a key stays open that nobody uses. Default 10 minutes.
	Idle time.Duration
}

// Name names a key.
type Name struct {
	Brand  string
	Domain dnsname.Domain // that has it
	ID     string
}

// String is the name of the resource, under which it was sealed.
func (n Name) String() string { return mint.KeyName(n.Brand, string(n.Domain), n.ID) }

// ErrClosed is returned after Close.
var ErrClosed = errors.New("keyring is closed")

// Ring is safe for concurrent use.
type Ring struct {
	o Options

	mu      sync.Mutex
	entries map[Name]*entry
	order   list.List // of *entry, the one used last first
	closed  bool
}

// entry is an open key. It is cleared when it is out of the ring and nobody uses it.
type entry struct {
	name    Name
	place   *list.Element
	users   int
	out     bool
	lastUse time.Time

	ready chan struct{} // closed when pair or err is set
	pair  *keypair.KeyPair
	err   error
}

// New returns an empty Ring.
func New(o Options) *Ring {
	if o.Size == 0 {
		o.Size = 10_000
	}
	if o.Idle == 0 {
		o.Idle = 10 * time.Minute
	}
	return &Ring{o: o, entries: make(map[Name]*entry)}
}

// Sign signs a SHA-256 digest as DKIM does: RSASSA-PKCS1-v1_5, or Ed25519 of the
// digest (RFC 8463 §3). A nil digest gives no signature. It also returns the public
// half, SubjectPublicKeyInfo in DER. Whether the key may sign is for the caller to
// know. Errors are ErrClosed, those of ctx, of the Store and of the Opener, and a
// *keypair.InvalidError.
func (r *Ring) Sign(ctx context.Context, n Name, digest *[32]byte) (signature, public []byte, err error) {
	err = r.use(ctx, n, func(k *keypair.KeyPair) (err error) {
		if public, err = x509.MarshalPKIXPublicKey(k.Signer().Public()); err != nil {
			return fmt.Errorf("encoding a public key: %w", err)
		}
		if digest != nil {
			signature, err = sign(k, digest[:])
		}
		return err
	})
	return signature, public, err
}

func sign(k *keypair.KeyPair, digest []byte) ([]byte, error) {
	opts := crypto.SignerOpts(crypto.SHA256)
	if k.Algorithm() == keypair.Ed25519 {
		opts = crypto.Hash(0)
	}
	signature, err := k.Signer().Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with an %v key: %w", k.Algorithm(), err)
	}
	return signature, nil
}

// PKCS8 returns the private key itself. The caller clears it after use. Errors are
// as of Sign.
func (r *Ring) PKCS8(ctx context.Context, n Name) (der []byte, a keypair.Algorithm, err error) {
	err = r.use(ctx, n, func(k *keypair.KeyPair) (err error) {
		a = k.Algorithm()
		der, err = k.PKCS8()
		return err
	})
	return der, a, err
}

// use calls do with a key. The key is not cleared during the call.
func (r *Ring) use(ctx context.Context, n Name, do func(*keypair.KeyPair) error) error {
	for {
		again, err := r.useOnce(ctx, n, do)
		if !again {
			return err
		}
	}
}

// useOnce is use, unless it was another caller who opened the key and whose time was
// up.
func (r *Ring) useOnce(ctx context.Context, n Name, do func(*keypair.KeyPair) error) (again bool, err error) {
	e, mine, err := r.enter(n)
	if err != nil {
		return false, err
	}
	defer r.leave(e)
	if mine {
		if e.pair, e.err = r.open(ctx, n); e.err != nil {
			r.drop(e)
		}
		close(e.ready)
	}
	select {
	case <-e.ready:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if e.err != nil {
		return !mine && ctx.Err() == nil && (errors.Is(e.err, context.Canceled) || errors.Is(e.err, context.DeadlineExceeded)), e.err
	}
	return false, do(e.pair)
}

// enter finds a key's entry, or makes it, which is then the caller's to fill.
func (r *Ring) enter(n Name) (e *entry, mine bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false, ErrClosed
	}
	now := r.o.Now()
	if e = r.entries[n]; e == nil {
		e, mine = &entry{name: n, ready: make(chan struct{})}, true
		e.place = r.order.PushFront(e)
		r.entries[n] = e
		for len(r.entries) > r.o.Size {
			r.remove(r.order.Back())
		}
	}
	if !e.out {
		r.order.MoveToFront(e.place)
	}
	e.users++
	e.lastUse = now
	return e, mine, nil
}

func (r *Ring) leave(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.users--
	e.clear()
}

// clear clears the key if nobody can use it any more.
func (e *entry) clear() {
	if e.out && e.users == 0 && e.pair != nil {
		e.pair.Clear()
		e.pair = nil
	}
}

func (r *Ring) remove(place *list.Element) {
	e, ok := r.order.Remove(place).(*entry)
	if !ok {
		return
	}
	delete(r.entries, e.name)
	e.out = true
	e.clear()
}

func (r *Ring) open(ctx context.Context, n Name) (*keypair.KeyPair, error) {
	sealed, err := r.o.Store.SealedKey(ctx, n.Brand, n.Domain, n.ID)
	if err != nil {
		return nil, err
	}
	plain, err := r.o.Opener.Open(ctx, n.Brand, n.String(), sealed)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return keypair.Unmarshal(plain)
}

// Drop forgets a key, which is cleared when nobody uses it.
func (r *Ring) Drop(n Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[n]; e != nil {
		r.remove(e.place)
	}
}

func (r *Ring) drop(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !e.out {
		r.remove(e.place)
	}
}

// Sweep forgets the keys that nobody used for long, and those of which keep says
// that they are of no use any more. keep is called without any lock held.
func (r *Ring) Sweep(keep func(Name) bool) {
	r.mu.Lock()
	names := make([]Name, 0, len(r.entries))
	oldest := r.o.Now().Add(-r.o.Idle)
	for p := r.order.Back(); p != nil; {
		before := p.Prev()
		if e, ok := p.Value.(*entry); ok && !e.lastUse.After(oldest) {
			r.remove(p)
		} else if ok {
			names = append(names, e.name)
		}
		p = before
	}
	r.mu.Unlock()
	for _, n := range names {
		if !keep(n) {
			r.Drop(n)
		}
	}
}

// Len is how many keys are open.
func (r *Ring) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.entries)
}

// Close forgets all keys. Nothing signs afterwards.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for r.order.Len() > 0 {
		r.remove(r.order.Back())
	}
}
