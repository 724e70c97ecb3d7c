package keystore

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// wellKnown are words that take one or two octets where they are stored. Their
// places are stored: only ever add at the end.
var wellKnown = []string{
	"SIGNING", "ROTATION", "controller",
	"selector1", "selector2", "selector3", "mail1", "mail2", "default1", "default2", "default3",
	"CREATED", "PREPARED", "ACTIVATED", "RETIRED", "REVOKED", "DESTROYED", "PUBLISHED", "WITHDRAWN", "UPDATED", "DELETED", "REQUESTED",
	"SCHEDULED", "FIRST_KEY", "FAILOVER", "DRAINED", "ALGORITHM_CHANGED", "GAP_OVER", "EMPTY_SELECTOR", "COMPROMISED",
	"ACTIVATE", "RETIRE", "REVOKE", "REFILL", "PREPARE", "DESTROY", "CREATE", "PUBLISH", "WITHDRAW", "UPDATE", "DELETE", "REQUEST",
	"OK", "MISSING", "WRONG_TARGET", "OTHER_DOMAIN_TARGET", "DOUBLED_SUFFIX", "FLATTENED_TXT", "STALE_TXT", "PROXIED_ADDRESS", "LOOP", "LAME",
	"UNREACHABLE", "DNSSEC_BOGUS", "SERVERS_DISAGREE", "INDIRECT_OK",
}

var wellKnownRefs = func() map[string]uint64 {
	refs := make(map[string]uint64, len(wellKnown))
	for i, w := range wellKnown {
		refs[w] = 2*uint64(i) + 1
	}
	return refs
}()

// maxWord bounds a stored word, in octets: nothing that comes from outside makes
// a value large.
const maxWord = 256

// words gives each word of a value a number. The first implied ones are not
// stored with it.
type words struct {
	list    []string
	implied int
}

func wordsAfter(implied []string) words { return words{slices.Clip(implied), len(implied)} }

// ref is the number of a word, which is added if need be; 0 for none.
func (w *words) ref(s string) uint64 {
	if s == "" {
		return 0
	}
	if ref, ok := wellKnownRefs[s]; ok {
		return ref
	}
	s = cutWord(s)
	i := slices.Index(w.list, s)
	if i < 0 {
		i = len(w.list)
		w.list = append(w.list, s)
	}
	return 2*uint64(i) + 2
}

// stored are the words that are to be stored.
func (w *words) stored() []string { return w.list[w.implied:] }

// word is the inverse of ref.
func (w *words) word(ref uint64) (string, error) {
	list, i := w.list, ref/2-1
	switch {
	case ref == 0:
		return "", nil
	case ref%2 == 1:
		list, i = wellKnown, ref/2
	}
	if i >= uint64(len(list)) {
		return "", fmt.Errorf("%w: no word %d", schema.ErrCorrupt, ref)
	}
	return list[i], nil
}

// cutWord makes a word one that can be stored.
func cutWord(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxWord {
		return s
	}
	end := maxWord
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// clock stores times of a second's precision by their distance from the last.
type clock struct{ last int64 }

// clockOf is the clock that times of a value are stored with.
func clockOf(times ...time.Time) clock {
	var c clock
	for _, t := range times {
		c.include(t)
	}
	return c
}

func (c *clock) include(t time.Time) { c.last = max(c.last, schema.Seconds(t)) }

func (c clock) ref(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(c.last-t.Unix()) + 1 //nolint:gosec // t is included: not negative
}

func (c clock) time(ref uint64) time.Time {
	if ref == 0 {
		return time.Time{}
	}
	return time.Unix(c.last-int64(ref-1), 0).UTC() //nolint:gosec // a damaged one is some other time
}
