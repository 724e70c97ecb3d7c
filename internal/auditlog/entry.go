// Package auditlog is a log that shows when it was tampered with: a line of JSON
// for each entry, which carries the hash of the line before and its own. It
// encodes and parses lines, verifies chains of them, and writes them to a file
// that it rotates, many entries with one write to the disk.
package auditlog

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// Hash is the SHA-256 of a line as far as its own hash, with which it ends.
type Hash [sha256.Size]byte

// String is the hash in lower-case hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash parses what String returns.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != 2*len(h) {
		return Hash{}, fmt.Errorf("a hash has %d hexadecimal digits, %.80q has %d", 2*len(h), s, len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil || h.String() != s {
		return Hash{}, fmt.Errorf("%q is no hash in lower-case hexadecimal", s)
	}
	return h, nil
}

// Position is where in a chain a line stands.
type Position struct {
	// Chain names the chain: 8 hexadecimal digits, drawn when it begins. A log
	// that is collected from several processes holds several chains.
	Chain string
	// Seq counts the lines of the chain from 1.
	Seq uint64
	// Hash is that of the line.
	Hash Hash
}

// Entry is what one line says. Strings that are no valid UTF-8 are mended when it
// is encoded; times are kept in UTC and to the microsecond. Entries never hold
// secrets: who makes one sees to that.
type Entry struct {
	// Chain, Seq, Prev and Hash are the line's place, which the Log gives it. Prev
	// is the Hash of the line before, zero for the first of a chain.
	Chain string
	Seq   uint64
	Prev  Hash

	Time time.Time
	Who  Who
	// Request is the id of the call.
	Request string
	// Call is what was called, "dkim.v1.KeyManagement/ProvisionDomain", or what
	// happened by itself, "controller/rotate", "dkimd/start".
	Call     string
	Resource string
	// Outcome is the name of the status code, "OK", "PERMISSION_DENIED".
	Outcome string
	// Reason is that of the rejection, in UPPER_SNAKE.
	Reason string
	// Revision is the store's after the change, 0 if there is none.
	Revision int64

	// Asked are details of the request; Before and After those settings of the
	// resource that have changed.
	Asked, Before, After map[string]string
	Steps                []Step
	// Repeated is how many calls this line stands for besides the one it is of.
	Repeated uint64

	Hash Hash
}

// Who made a call.
type Who struct {
	Role       string `json:"role"`
	Name       string `json:"name"`
	Brand      string `json:"brand"`      // the one it is bound to
	Method     string `json:"method"`     // of authentication
	Credential string `json:"credential"` // id of a token or secret
	Address    string `json:"address"`
}

// Step is one thing that a call did to a domain or key.
type Step struct {
	Action    string `json:"action"`   // in UPPER_SNAKE
	Resource  string `json:"resource"` // of the key, or of the domain
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm"`
	From      string `json:"from"` // state before
	To        string `json:"to"`   // state after
	Reason    string `json:"reason"`
}
