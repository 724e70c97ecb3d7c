package controller

import (
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// maxAhead bounds how far ahead places are given away: a domain whose turn is
// later than that asks again then.
const maxAhead = time.Hour

// pacer spreads the switches of a zone and of a brand evenly over the hour. A
// domain that has to wait gets a place, and keeps it until it comes back. It is
// safe for concurrent use.
type pacer struct {
	mu     sync.Mutex
	next   map[string]time.Time // the next free place of a zone or brand
	places map[keystore.Cursor]time.Time
}

func newPacer() *pacer {
	return &pacer{next: make(map[string]time.Time), places: make(map[keystore.Cursor]time.Time)}
}

// reset forgets all places: this process has not led for a while.
func (p *pacer) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.next)
	clear(p.places)
}

// reserve returns when the domain may switch: now, or later.
func (p *pacer) reserve(s *subject, now time.Time) time.Time {
	limits := []struct {
		key     string
		perHour int
	}{
		{"zone/" + string(s.zone.Name), rotation.DefaultPolicy().With(s.zone.Policy).MaxPerHour},
		{"brand/" + s.brand.Name, rotation.DefaultPolicy().With(s.brand.Policy).MaxPerHour},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	name := keystore.Cursor{Brand: s.domain.Brand, Domain: s.domain.Name}
	if at, ok := p.places[name]; ok {
		if at.After(now) {
			return at
		}
		delete(p.places, name)
		return now
	}
	at := now
	for _, l := range limits {
		if next := p.next[l.key]; l.perHour > 0 && next.After(at) {
			at = next
		}
	}
	if at.Sub(now) > maxAhead {
		return now.Add(maxAhead)
	}
	for _, l := range limits {
		if l.perHour > 0 {
			p.next[l.key] = at.Add(time.Hour / time.Duration(l.perHour))
		}
	}
	if at.After(now) {
		p.places[name] = at
	}
	return at
}
