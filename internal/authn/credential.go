package authn

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"runtime"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/dkimzone/dkimzone/internal/keystore"
)

// A token is "dkz_", its id, "_" and 24 random octets; a brand's secret is the
// same with "dks_". The id is no secret; it stands in logs, lists and etcd, and
// lets one credential be looked up, so that a wrong one costs no search.
const (
	tokenPrefix  = "dkz_"
	secretPrefix = "dks_"
	idLen        = 12
	randomLen    = 32 // of 24 octets in base64
)

// Parameters of argon2id: the second choice of RFC 9106 §4, scaled to the
// memory that OWASP asks for at least. What is verified has 192 random bits.
const (
	argonPasses  = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1
	argonSalt    = 16
	argonHash    = 32
)

// NewToken makes a bearer token. Only its hash may be stored; the token itself
// is for its holder, once.
func NewToken() (id, token string, hash []byte) {
	id, token = newCredential(tokenPrefix)
	return id, token, tokenHash(token)
}

// tokenHash is what is stored of a token: with 192 random bits it needs no
// slower hash.
func tokenHash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// NewBrandSecret makes a secret of a brand: the secret itself, for its holder,
// and what is stored of it, but for what the caller knows better.
func NewBrandSecret(brand string) (secret string, stored keystore.BrandSecret) {
	id, secret := newCredential(secretPrefix)
	stored = keystore.BrandSecret{
		ID: id, Brand: brand, Salt: make([]byte, argonSalt), Passes: argonPasses, MemoryKiB: argonMemory, Threads: argonThreads,
	}
	_, _ = rand.Read(stored.Salt) // never fails
	stored.Hash = argon(secret, stored)
	return secret, stored
}

func newCredential(prefix string) (id, credential string) {
	id = strings.ToLower(rand.Text())[:idLen] // base32
	var random [24]byte
	_, _ = rand.Read(random[:]) // never fails
	return id, prefix + id + "_" + base64.RawURLEncoding.EncodeToString(random[:])
}

// credentialID is the id in a token or secret, or "" if it has not the form.
func credentialID(prefix, credential string) string {
	rest, ok := strings.CutPrefix(credential, prefix)
	if !ok || len(rest) != idLen+1+randomLen || rest[idLen] != '_' {
		return ""
	}
	for _, c := range []byte(rest[:idLen]) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return ""
		}
	}
	return rest[:idLen]
}

func argon(secret string, s keystore.BrandSecret) []byte {
	return argon2.IDKey([]byte(secret), s.Salt, s.Passes, s.MemoryKiB, s.Threads, argonHash)
}

// decoy is what the secrets of brands that are not there are compared with, so
// that it takes as long.
var decoy = keystore.BrandSecret{
	Salt: make([]byte, argonSalt), Hash: make([]byte, argonHash), Passes: argonPasses, MemoryKiB: argonMemory, Threads: argonThreads,
}

// lanes bound how many argon2id computations go on at once: those of secrets
// that exist do not queue behind those that somebody guesses.
type lanes struct{ known, guessed chan struct{} }

func newLanes() lanes {
	n := max(1, runtime.GOMAXPROCS(0)/2)
	return lanes{known: make(chan struct{}, n), guessed: make(chan struct{}, n)}
}

func sameHash(a, b []byte) bool { return len(a) > 0 && subtle.ConstantTimeCompare(a, b) == 1 }
