package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/signer"
)

// Ref is a key with the d= and s= that it signs with. A brand's shared key signs
// with several.
type Ref struct {
	Domain    string `json:"domain"`   // d=
	Selector  string `json:"selector"` // s=
	Algorithm string `json:"algorithm"`
	// Key is the resource, brands/{brand}/domains/{domain}/keys/{key}.
	Key string `json:"key"`
}

// Entry is what to sign mail of one domain with.
type Entry struct {
	// Sender is the domain of the From address.
	Sender string `json:"sender"`
	// Refs all sign, in order of their algorithm, RSA first. There is one at least.
	Refs []Ref `json:"refs"`
	// Hold is for how long they may be used after this was last known to be right.
	Hold time.Duration `json:"hold"`

	// until is the same as a time, of an entry that is not what dkimd says any more.
	until time.Time
}

// validUntil is until when an entry may be used that was last known to be right at
// confirmed.
func (e Entry) validUntil(confirmed time.Time) time.Time {
	if !e.until.IsZero() {
		return e.until
	}
	return confirmed.Add(e.Hold)
}

// keyPattern is the name of a key. What stands in it is looked at where it is used:
// here it only must not be something else.
var keyPattern = regexp.MustCompile(`^brands/[a-z0-9-]{1,63}/domains/[a-z0-9.-]{1,253}/keys/[a-z0-9]{1,40}$`)

const (
	rsaSHA256     = "rsa-sha256"
	ed25519SHA256 = "ed25519-sha256"
)

// check refuses what must not come into a table or the name of a file. The service
// has checked it before.
func (r Ref) check() error {
	if err := checkDomain(r.Domain); err != nil {
		return err
	}
	if s, err := dnsname.ParseSelector(r.Selector); err != nil || string(s) != r.Selector {
		return fmt.Errorf("%.80q is no selector", r.Selector)
	}
	if !keyPattern.MatchString(r.Key) {
		return fmt.Errorf("%.80q is no key", r.Key)
	}
	if r.Algorithm != rsaSHA256 && r.Algorithm != ed25519SHA256 {
		return fmt.Errorf("%.80q is no algorithm", r.Algorithm)
	}
	return nil
}

func checkDomain(name string) error {
	if d, err := dnsname.ParseExistingDomain(name); err != nil || string(d) != name {
		return fmt.Errorf("%.80q is no domain", name)
	}
	return nil
}

func newRef(k signer.KeyInfo) Ref {
	return Ref{Domain: k.Domain, Selector: k.Selector, Algorithm: k.Algorithm, Key: k.Name}
}

// owner is the name of the domain that has the key.
func owner(key string) string {
	name, _, _ := strings.Cut(key, "/keys/")
	return name
}

// id tells keys apart, whatever d= they sign with.
func id(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:12])
}

// keyFile is the name of the file with a key. Its content never changes.
func keyFile(key string) string {
	return string(appendKeyFile(nil, key, id(key)))
}

func appendKeyFile(b []byte, key, id string) []byte {
	_, domain, _ := strings.Cut(owner(key), "/domains/")
	b = append(b, domain[:min(len(domain), 200)]...)
	b = append(b, '.')
	b = append(b, id...)
	return append(b, ".pem"...)
}

// path is that of the key of a Ref.
func (r Ref) path(dir string) string { return dir + "/" + keysName + "/" + keyFile(r.Key) }

// appendLabel appends what names a Ref in tables.
func (r Ref) appendLabel(b []byte, id string) []byte {
	b = append(b, r.Selector...)
	b = append(b, "._domainkey."...)
	b = append(b, r.Domain...)
	b = append(b, '.')
	return append(b, id...)
}
