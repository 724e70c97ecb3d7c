package auditlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// MaxLine bounds a line that is read, in octets. The longest that is written is of
// a batch of a thousand keys, some 300 KiB.
const MaxLine = 4 << 20

var (
	// ErrMalformed is wrapped by the errors of lines that no Log has written.
	ErrMalformed = errors.New("it is no line of an audit log")
	// ErrHash says that a line is not the one that its hash was made of.
	ErrHash = errors.New("its hash is not that of its content: it was changed")
)

// line is an Entry as in JSON.
type line struct {
	Chain    string            `json:"chain"`
	Seq      uint64            `json:"seq"`
	Prev     string            `json:"prev"`
	Time     string            `json:"time"`
	Who      Who               `json:"who"`
	Request  string            `json:"request"`
	Call     string            `json:"call"`
	Resource string            `json:"resource"`
	Outcome  string            `json:"outcome"`
	Reason   string            `json:"reason"`
	Revision int64             `json:"revision"`
	Asked    map[string]string `json:"asked"`
	Before   map[string]string `json:"before"`
	After    map[string]string `json:"after"`
	Steps    []Step            `json:"steps"`
	Repeated uint64            `json:"repeated"`
	Hash     string            `json:"hash"`
}

// Parse parses a line without its newline. There is one way only to write an
// entry: a line that says the same in another way is refused. Its errors wrap
// ErrMalformed, with a zero Entry, or are ErrHash, with the Entry as it reads.
func Parse(text []byte) (Entry, error) {
	if len(text) > MaxLine {
		return Entry{}, fmt.Errorf("%w: it has %d octets", ErrMalformed, len(text))
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var l line
	if err := d.Decode(&l); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Entry{}, fmt.Errorf("%w: something follows it", ErrMalformed)
	}
	e := Entry{
		Chain: l.Chain, Seq: l.Seq, Who: l.Who, Request: l.Request, Call: l.Call, Resource: l.Resource, Outcome: l.Outcome,
		Reason: l.Reason, Revision: l.Revision, Asked: l.Asked, Before: l.Before, After: l.After, Steps: l.Steps, Repeated: l.Repeated,
	}
	var err error
	if e.Time, err = time.Parse(timeForm, l.Time); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if e.Prev, err = ParseHash(l.Prev); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if e.Hash, err = ParseHash(l.Hash); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !validChain(e.Chain) || e.Seq == 0 {
		return Entry{}, fmt.Errorf("%w: chain %.20q, line %d", ErrMalformed, e.Chain, e.Seq)
	}
	again, hash := e.Append(nil)
	n := len(text) - tail
	if len(again) != len(text) || !bytes.Equal(again[:n], text[:n]) || string(text[n:]) != hashKey+l.Hash+`"}` {
		return Entry{}, fmt.Errorf("%w: it is written in another way", ErrMalformed)
	}
	if hash != e.Hash {
		return e, ErrHash
	}
	return e, nil
}

// glance reads the place of a line, and of the one before it, without its content.
// ok says that the line has the hash of what it says. It takes much less time than
// Parse.
func glance(text []byte) (at Position, prev Hash, ok bool) {
	rest, found := bytes.CutPrefix(text, []byte(`{"chain":"`))
	if !found || len(text) < tail || len(rest) < chainDigits {
		return Position{}, Hash{}, false
	}
	at.Chain, rest = string(rest[:chainDigits]), rest[chainDigits:]
	if rest, found = bytes.CutPrefix(rest, []byte(`","seq":`)); !found || !validChain(at.Chain) {
		return Position{}, Hash{}, false
	}
	digits, rest, found := bytes.Cut(rest, []byte(`,"prev":"`))
	if !found || len(rest) < hex.EncodedLen(len(prev)) {
		return Position{}, Hash{}, false
	}
	var err error
	if at.Seq, err = strconv.ParseUint(string(digits), 10, 64); err != nil || at.Seq == 0 {
		return Position{}, Hash{}, false
	}
	if prev, err = ParseHash(string(rest[:hex.EncodedLen(len(prev))])); err != nil {
		return Position{}, Hash{}, false
	}
	at.Hash = sha256.Sum256(text[:len(text)-tail])
	return at, prev, string(text[len(text)-tail:]) == hashKey+at.Hash.String()+`"}`
}

// chainDigits is the length of a chain's name.
const chainDigits = 8

func validChain(s string) bool {
	if len(s) != chainDigits {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
