package authn

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"
)

// maxCached bounds the memory of a cache.
const maxCached = 10_000

// grant is a credential that was found to be right.
type grant struct {
	identity Identity
	id       string    // of the token or secret
	hash     []byte    // as stored when it was verified
	expires  time.Time // zero: never

	asked     time.Time // when the store was last asked
	confirmed time.Time // and when it last answered
}

// caller is c with what the credential says.
func (g grant) caller(c Caller) Caller {
	c.Identity, c.CredentialID = g.identity, g.id
	return c
}

func (g grant) expired(now time.Time) bool { return !g.expires.IsZero() && !now.Before(g.expires) }

// cache keeps the credentials that were right, under a digest that is of no use
// outside this process. It is safe for concurrent use.
type cache struct {
	key [32]byte

	mu     sync.Mutex
	grants map[[32]byte]grant
}

func newCache() *cache {
	c := &cache{grants: make(map[[32]byte]grant)}
	_, _ = rand.Read(c.key[:]) // never fails
	return c
}

func (c *cache) digest(parts ...string) (d [32]byte) {
	h := hmac.New(sha256.New, c.key[:])
	for _, p := range parts {
		_, _ = h.Write([]byte(p)) // never fails
		_, _ = h.Write([]byte{0})
	}
	h.Sum(d[:0])
	return d
}

func (c *cache) get(d [32]byte) (grant, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, ok := c.grants[d]
	return g, ok
}

func (c *cache) put(d [32]byte, g grant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.grants[d]; !there && len(c.grants) >= maxCached {
		for old := range c.grants { // any one
			delete(c.grants, old)
			break
		}
	}
	c.grants[d] = g
}

func (c *cache) drop(d [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.grants, d)
}

// dropID forgets the token or secret of an id.
func (c *cache) dropID(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for d, g := range c.grants {
		if g.id == id {
			delete(c.grants, d)
		}
	}
}
