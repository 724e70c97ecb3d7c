package signer

import (
	"container/list"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// halves remembers the public halves of keys, or with Local whole keys: those that were
// used last, or if the client is registered all that it is to hold.
type halves struct {
	c    *Client
	size int // 0: no limit

	mu      sync.Mutex
	entries map[string]*list.Element // of *half
	order   list.List
	owners  map[string][]string // without a limit: names of keys by that of their domain
	closed  bool
}

type half struct {
	name   string
	public crypto.PublicKey

	mu      sync.RWMutex  // held for reading while it signs
	private crypto.Signer // nil without Local, and when cleared
}

func newHalves(c *Client, size int) *halves {
	return &halves{c: c, size: size, entries: make(map[string]*list.Element), owners: make(map[string][]string)}
}

func (h *halves) find(name string) *half {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.entries[name]
	if e == nil {
		return nil
	}
	h.order.MoveToFront(e)
	found, _ := e.Value.(*half)
	return found
}

func (h *halves) add(k *half) *half {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.entries[k.name]; e != nil {
		if found, ok := e.Value.(*half); ok {
			k.clear()
			return found
		}
	}
	if h.closed {
		k.clear()
		return k
	}
	h.entries[k.name] = h.order.PushFront(k)
	if h.size == 0 {
		owner := ownerOf(k.name)
		h.owners[owner] = append(h.owners[owner], k.name)
	}
	for h.size > 0 && h.order.Len() > h.size {
		h.remove(h.order.Back())
	}
	return k
}

// keep drops the keys of domains that are no longer to be held, if there is no limit that
// does so.
func (h *halves) keep(held map[string]map[string]struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for owner, names := range held {
		left := slices.DeleteFunc(h.owners[owner], func(name string) bool {
			_, ok := names[name]
			if e := h.entries[name]; !ok && e != nil {
				h.remove(e)
			}
			return !ok
		})
		if h.owners[owner] = left; len(left) == 0 {
			delete(h.owners, owner)
		}
	}
}

func (h *halves) remove(e *list.Element) {
	if k, ok := h.order.Remove(e).(*half); ok {
		delete(h.entries, k.name)
		k.clear()
	}
}

func (h *halves) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for h.order.Len() > 0 {
		h.remove(h.order.Back())
	}
}

// clear overwrites the private half, as far as Go lets it.
func (k *half) clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch key := k.private.(type) {
	case *rsa.PrivateKey:
		for _, n := range append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...) {
			if n != nil {
				clear(n.Bits())
			}
		}
	case ed25519.PrivateKey:
		clear(key)
	}
	k.private = nil
}

// public is the public half of a key.
func (h *halves) public(ctx context.Context, name string) (crypto.PublicKey, error) {
	k, err := h.get(ctx, name)
	if err != nil {
		return nil, err
	}
	return k.public, nil
}

// get finds a key, or asks dkimd for it.
func (h *halves) get(ctx context.Context, name string) (*half, error) {
	if k := h.find(name); k != nil {
		return k, nil
	}
	if h.c.o.Local {
		keys, err := h.fetch(ctx, name)
		if err != nil {
			return nil, err
		}
		return keys[0].half, keys[0].err
	}
	r, err := h.c.submit(ctx, &dkimv1.SignRequest_Digest{Key: name})
	if err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(r.GetPublicKey())
	if err != nil {
		return nil, fmt.Errorf("%w: the public half of %s: %w", ErrUnavailable, name, err)
	}
	return h.add(&half{name: name, public: public}), nil
}

type fetched struct {
	half *half
	err  error
}

// fetch has dkimd hand out private keys.
func (h *halves) fetch(ctx context.Context, names ...string) ([]fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, h.c.o.Timeout)
	defer cancel()
	resp, err := h.c.api.FetchPrivateKeys(ctx, &dkimv1.FetchPrivateKeysRequest{Keys: names})
	if err != nil {
		return nil, failure(err)
	}
	if len(resp.GetResults()) != len(names) {
		return nil, fmt.Errorf("%w: %d answers to %d keys", ErrUnavailable, len(resp.GetResults()), len(names))
	}
	keys := make([]fetched, len(names))
	for i, name := range names {
		r := resp.GetResults()[i]
		if r.GetError() != nil {
			keys[i].err = failureOf(status.FromProto(r.GetError()))
			continue
		}
		private, err := x509.ParsePKCS8PrivateKey(r.GetPrivateKey())
		clear(r.GetPrivateKey())
		key, ok := private.(crypto.Signer)
		if err != nil || !ok {
			keys[i].err = fmt.Errorf("%w: %s is no private key", ErrUnavailable, name)
			continue
		}
		keys[i].half = h.add(&half{name: name, public: key.Public(), private: key})
	}
	return keys, nil
}

// sign signs here.
func (h *halves) sign(ctx context.Context, name string, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	for range 2 {
		k, err := h.get(ctx, name)
		if err != nil {
			return nil, err
		}
		signature, err := k.sign(digest, opts)
		if !errors.Is(err, errCleared) {
			return signature, err
		}
	}
	return nil, ErrClosed
}

var errCleared = errors.New("signer: the key was cleared meanwhile")

func (k *half) sign(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.private == nil {
		return nil, errCleared
	}
	return k.private.Sign(rand.Reader, digest, opts)
}
