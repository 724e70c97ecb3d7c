package signer

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// watchSilence is how long a watch may bring nothing. dkimd says something every 10
// seconds.
const watchSilence = 30 * time.Second

// picture is all that is watched. While a listing comes, what was there before
// stays until it is whole.
type picture struct {
	ready chan struct{} // closed when the first listing is whole

	mu        sync.RWMutex
	brands    map[string]*dkimv1.SigningBrand  // by id
	domains   map[string]*dkimv1.SigningDomain // by domain, "acme/spamtrap.dk" for a second brand of the same
	confirmed time.Time                        // when it was last known that nothing is missing
	version   uint64                           // counts changes
	told      chan struct{}                    // closed when version has grown, and replaced
	changed   map[string]struct{}              // names of what changed since the last report; nil: nobody reports
	token     string
}

func newPicture() *picture {
	return &picture{
		ready: make(chan struct{}), told: make(chan struct{}), brands: make(map[string]*dkimv1.SigningBrand), domains: make(map[string]*dkimv1.SigningDomain),
	}
}

// resolve says what to sign mail of a domain with. brand "" is whichever has it.
func (p *picture) resolve(brand, domain string, now time.Time) (*resolved, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.confirmed.IsZero() {
		return nil, ErrUnavailable
	}
	d := p.domains[domain]
	owner := brand
	if owner == "" {
		if d == nil {
			return nil, fmt.Errorf("%w: %s", ErrUnknownDomain, domain)
		}
		owner, _ = cutName(d.GetName())
	}
	b := p.brands[owner]
	if b == nil {
		return nil, fmt.Errorf("%w: there is no brand %s", ErrUnknownDomain, owner)
	}
	a := choose(d, b)
	if a.until = p.confirmed.Add(a.hold); !now.Before(a.until) {
		return nil, ErrUnavailable
	}
	return &a.resolved, nil
}

// choice is what to sign with while nothing else is known.
type choice struct {
	resolved
	hold time.Duration // after the picture was last confirmed
}

// choose says what to sign mail of d with, or if it is nil that of domains that
// nobody has. The picture is locked.
func choose(d *dkimv1.SigningDomain, b *dkimv1.SigningBrand) choice {
	a := choice{resolved: resolved{reason: "UNKNOWN_DOMAIN", fallback: true}, hold: b.GetHoldDuration().AsDuration()}
	if d != nil {
		a.reason, a.fallback, a.keys = d.GetReason(), d.GetFallback(), d.GetKeys()
	}
	switch {
	case len(a.keys) > 0:
		a.hold = d.GetHoldDuration().AsDuration()
	default:
		if d != nil {
			a.hold = min(a.hold, d.GetHoldDuration().AsDuration())
		}
		a.keys = b.GetDefaultKeys()
		if b.GetDefaultOnly() {
			a.fallback = false
		}
		a.fallback = a.fallback && len(a.keys) > 0
	}
	return a
}

// cutName takes apart brands/{brand}/domains/{domain}.
func cutName(name string) (brand, domain string) {
	rest, _ := strings.CutPrefix(name, "brands/")
	brand, rest, _ = strings.Cut(rest, "/")
	domain, _ = strings.CutPrefix(rest, "domains/")
	return brand, domain
}

// take takes a response, which came at now, into the picture. next is the listing
// that is on its way, or nil.
func (p *picture) take(resp *dkimv1.WatchSigningKeysResponse, next *picture, now time.Time) *picture {
	if resp.GetSnapshot() {
		next = newPicture()
	}
	to := p
	if next != nil {
		to = next
	} else {
		p.mu.Lock()
		defer p.mu.Unlock()
	}
	for _, b := range resp.GetBrands() {
		id := strings.TrimPrefix(b.GetName(), "brands/")
		if b.GetDeleted() {
			delete(to.brands, id)
		} else {
			to.brands[id] = b
		}
		to.note(b.GetName())
	}
	for _, d := range resp.GetDomains() {
		_, name := cutName(d.GetName())
		switch before := to.domains[name]; {
		case !d.GetDeleted():
			to.domains[name] = d
		case before.GetName() == d.GetName():
			delete(to.domains, name)
		}
		to.note(d.GetName())
	}
	if next == nil {
		p.confirmed = now.Add(-resp.GetAge().AsDuration())
		p.token = resp.GetResumeToken()
		if len(resp.GetBrands())+len(resp.GetDomains()) > 0 {
			p.tell()
		}
		return nil
	}
	if !resp.GetSynced() {
		return next
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.tell()
	for name := range p.domains {
		if next.domains[name] == nil {
			p.note(p.domains[name].GetName())
		}
	}
	for name, d := range next.domains {
		if p.domains[name] == nil || !sameKeys(p.domains[name], d) {
			p.note(d.GetName())
		}
	}
	for _, b := range next.brands {
		p.note(b.GetName())
	}
	p.brands, p.domains = next.brands, next.domains
	p.confirmed = now.Add(-resp.GetAge().AsDuration())
	p.token = resp.GetResumeToken()
	select {
	case <-p.ready:
	default:
		close(p.ready)
	}
	return nil
}

// note remembers what a report has to tell of.
func (p *picture) note(name string) {
	p.version++
	if p.changed != nil {
		p.changed[name] = struct{}{}
	}
}

// tell wakes those who wait for a change. The picture is locked.
func (p *picture) tell() {
	close(p.told)
	p.told = make(chan struct{})
}

// sameKeys reports whether a signer has to hold the same keys of both.
func sameKeys(a, b *dkimv1.SigningDomain) bool {
	return sameNames(a.GetKeys(), b.GetKeys()) && sameNames(a.GetStandbyKeys(), b.GetStandbyKeys())
}

func sameNames(a, b []*dkimv1.SigningKey) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].GetKey() != b[i].GetKey() {
			return false
		}
	}
	return true
}

// watch keeps the picture in step until the Client is closed.
func (c *Client) watch() {
	var wait backoff
	for c.ctx.Err() == nil {
		err := c.watchOnce(&wait)
		if c.ctx.Err() != nil {
			return
		}
		pause := wait.next()
		c.o.Logger.LogAttrs(c.ctx, slog.LevelWarn, "watch of signing keys interrupted", slog.Any("error", err), slog.Duration("again_in", pause))
		if !sleep(c.ctx, pause) {
			return
		}
	}
}

func (c *Client) watchOnce(wait *backoff) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	c.picture.mu.RLock()
	token := c.picture.token
	c.picture.mu.RUnlock()
	brand := c.o.Brand
	if brand == "" {
		brand = "-"
	}
	stream, err := c.api.WatchSigningKeys(ctx, &dkimv1.WatchSigningKeysRequest{Parent: "brands/" + brand, ResumeToken: token, IncludeStandby: c.o.Register != nil})
	if err != nil {
		return err
	}
	silence := time.AfterFunc(watchSilence, cancel)
	defer silence.Stop()
	var next *picture
	for {
		resp, err := stream.Recv()
		if err != nil {
			if reasonOfError(err) == "INVALID_RESUME_TOKEN" {
				c.picture.mu.Lock()
				c.picture.token = ""
				c.picture.mu.Unlock()
			}
			return err
		}
		silence.Reset(watchSilence)
		wait.reset()
		next = c.picture.take(resp, next, c.now())
	}
}
