package audit

import (
	"net/netip"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/auditlog"
)

const (
	// refusalWindow is the time in which the refusals of a caller, or of an
	// address, have refusalLines lines of their own; those beyond are counted in
	// one more.
	refusalWindow = time.Minute
	refusalLines  = 5
	// maxRefused is how many callers and addresses are told apart. Who has more
	// addresses than that is counted as one: nobody fills the log, or has older
	// lines deleted, with calls that are refused.
	maxRefused = 256
)

// refusals counts refused calls. It is safe for concurrent use.
type refusals struct {
	mu     sync.Mutex
	counts map[refusalKey]*refusalCount
}

type refusalKey struct{ who, outcome string }

type refusalCount struct {
	lines    int
	repeated uint64
	last     auditlog.Entry
}

func newRefusals() *refusals { return &refusals{counts: make(map[refusalKey]*refusalCount)} }

// admit reports whether a refused call gets a line of its own.
func (r *refusals) admit(e auditlog.Entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := refusalKey{refusedAs(e.Who), e.Outcome}
	c := r.counts[key]
	if c == nil && len(r.counts) >= maxRefused {
		key.who = "others"
		c = r.counts[key]
	}
	if c == nil {
		c = &refusalCount{}
		r.counts[key] = c
	}
	if c.lines < refusalLines {
		c.lines++
		return true
	}
	c.repeated++
	c.last = e
	return false
}

// take ends the window and returns the lines of what was counted.
func (r *refusals) take() []auditlog.Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var entries []auditlog.Entry
	for key, c := range r.counts {
		if c.repeated == 0 {
			continue
		}
		e := c.last
		e.Repeated = c.repeated - 1
		if key.who == "others" {
			e.Who = auditlog.Who{Name: "others"}
		}
		entries = append(entries, e)
	}
	clear(r.counts)
	return entries
}

// refusedAs is whom a refusal is counted for: the caller, or where nobody knows
// who it is its address, or network for IPv6, where one host has many.
func refusedAs(w auditlog.Who) string {
	if w.Role != "" {
		return w.Role + "/" + w.Brand + "/" + w.Name
	}
	a, err := netip.ParseAddr(w.Address)
	if err != nil || a.Is4() {
		return w.Address
	}
	p, err := a.Prefix(64)
	if err != nil {
		return w.Address
	}
	return p.String()
}
