package signer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

const (
	// reportBatch is how many domains a report has at most, fetchBatch how many
	// private keys one call fetches.
	reportBatch = 1000
	fetchBatch  = 100
)

// forgetAfter is how long the last use of a key is reported. No key is served for
// as long after it was replaced.
const forgetAfter = 400 * 24 * time.Hour

// settleAfter is how long after a change a domain is reported once more, if it does not
// come up by itself. dkimd takes a signer to know of a switch by a report of more than a minute
// later, and the clocks of two dkimds may be a minute apart. Who signs nothing would else not
// be heard of again, and the old key stay published.
const settleAfter = 150 * time.Second

// usage is when each key last signed here, and what is to be reported.
type usage struct {
	mu   sync.Mutex
	last map[string]map[string]time.Time // by name of the domain that has it, and its own
	// dirty are the names of domains to be reported: those with keys that signed since the last report, and
	// (true) those with others to be held, which are reported once more later.
	dirty map[string]bool
	again []settling // those, the earliest first
}

// settling is a domain that is to be reported once more.
type settling struct {
	owner string
	at    time.Time
}

func newUsage() *usage {
	return &usage{last: make(map[string]map[string]time.Time), dirty: make(map[string]bool)}
}

// note notes a signature. A nil usage notes nothing.
func (u *usage) note(key string, at time.Time) {
	if u == nil {
		return
	}
	owner := ownerOf(key)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last[owner] == nil {
		u.last[owner] = make(map[string]time.Time)
	}
	u.last[owner][key] = at
	u.mark(owner, false)
}

// mark has a domain reported, once more later if it has changed. The lock is held.
func (u *usage) mark(owner string, changed bool) { u.dirty[owner] = u.dirty[owner] || changed }

// settled takes what is to be reported once more now.
func (u *usage) settled(now time.Time) []settling {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for n < len(u.again) && !u.again[n].at.After(now) {
		n++
	}
	due := u.again[:n:n]
	if u.again = u.again[n:]; len(u.again) == 0 {
		u.again = nil
	}
	return due
}

// reported notes when to report domains once more, of those that were reported now.
func (u *usage) reported(owners []string, dirty map[string]bool, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, o := range owners {
		if dirty[o] {
			u.again = append(u.again, settling{o, now.Add(settleAfter)})
		}
	}
}

// ownerOf is the name of the domain that has a key.
func ownerOf(key string) string {
	owner, _, _ := strings.Cut(key, "/keys/")
	return owner
}

// of are the keys of a domain that signed.
func (u *usage) of(owner string, now time.Time) map[string]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.last[owner], func(_ string, at time.Time) bool { return now.Sub(at) > forgetAfter })
	return maps.Clone(u.last[owner])
}

// report keeps the registration alive and reports, until the Client is closed, and
// once more then.
func (c *Client) report() {
	registered := false
	var wait backoff
	for {
		var err error
		if !registered {
			err = c.register(c.ctx)
			registered = err == nil
		}
		if registered {
			err = c.reportOnce(c.ctx)
			if reasonOfError(err) == "SIGNER_NOT_FOUND" {
				registered = false
			}
		}
		pause := c.o.ReportInterval*4/5 + rand.N(c.o.ReportInterval*2/5+1)
		if err != nil && c.ctx.Err() == nil {
			pause = min(pause, wait.next())
			c.o.Logger.LogAttrs(c.ctx, slog.LevelWarn, "use of keys not reported", slog.Any("error", err), slog.Duration("again_in", pause))
		} else {
			wait.reset()
		}
		if !c.pause(pause, registered && err == nil) {
			break
		}
	}
	if registered {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.o.Timeout)
		defer cancel()
		_ = c.reportOnce(ctx) // what is lost is taken to be as late as the lease
	}
}

// pause waits, and reports whether the Client is still open. When all was reported
// it ends early for keys that are to be held, as a rotation may wait for that.
func (c *Client) pause(d time.Duration, early bool) bool {
	const look = 250 * time.Millisecond
	end := c.now().Add(d)
	for {
		left := end.Sub(c.now())
		if left <= 0 {
			return c.ctx.Err() == nil
		}
		if !sleep(c.ctx, min(left, look)) {
			return false
		}
		if !early {
			continue
		}
		c.picture.mu.RLock()
		n := len(c.picture.changed)
		c.picture.mu.RUnlock()
		if c.o.Holds != nil {
			c.used.mu.Lock()
			n += len(c.used.dirty)
			c.used.mu.Unlock()
		}
		if n > 0 {
			return true
		}
	}
}

func (c *Client) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	r := &dkimv1.SignerRegistration{Description: c.o.Register.Description}
	if c.o.Register.Name != "" {
		r.Name = "signers/" + c.o.Register.Name
	}
	if c.o.Brand != "" {
		r.Brand = "brands/" + c.o.Brand
	}
	if c.o.Register.Lease != 0 {
		r.LeaseDuration = durationpb.New(c.o.Register.Lease)
	}
	_, err := c.api.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{Signer: r})
	return err
}

// reportOnce reports what changed and what was used, in as many calls as it takes,
// one at least.
func (c *Client) reportOnce(ctx context.Context) error {
	dirty := c.takeDirty()
	owners := slices.Collect(maps.Keys(dirty))
	for first := true; first || len(owners) > 0; first = false {
		n := min(len(owners), reportBatch)
		if err := c.reportBatch(ctx, owners[:n]); err != nil {
			c.used.mu.Lock()
			defer c.used.mu.Unlock()
			for _, o := range owners {
				c.used.mark(o, dirty[o])
			}
			return err
		}
		c.used.reported(owners[:n], dirty, c.now())
		owners = owners[n:]
	}
	return nil
}

// takeDirty are the domains that are to be reported, with whether they have changed.
func (c *Client) takeDirty() map[string]bool {
	changed := make(map[string]bool)
	add := func(lists ...[]*dkimv1.SigningKey) {
		for _, keys := range lists {
			for _, k := range keys {
				changed[ownerOf(k.GetKey())] = true
			}
		}
	}
	p := c.picture
	p.mu.Lock()
	for name := range p.changed {
		brand, domain := cutName(name)
		if domain == "" {
			b := p.brands[brand]
			add(b.GetDefaultKeys(), b.GetStandbyKeys())
			continue
		}
		changed[name] = true
		if d := p.domains[domain]; d.GetName() == name {
			add(d.GetKeys()) // which may be shared, of a domain of the brand's own
		}
	}
	clear(p.changed)
	p.mu.Unlock()
	due := c.used.settled(c.now())
	c.used.mu.Lock()
	defer c.used.mu.Unlock()
	for _, s := range due { // unless one has changed once more, this is the end of it
		c.used.mark(s.owner, false)
	}
	for owner := range changed {
		c.used.mark(owner, true)
	}
	dirty := c.used.dirty
	c.used.dirty = make(map[string]bool)
	return dirty
}

func (c *Client) reportBatch(ctx context.Context, owners []string) error {
	held := c.held(owners)
	if c.o.Local {
		if err := c.hold(ctx, held); err != nil {
			return err
		}
		c.halves.keep(held)
	}
	req := &dkimv1.ReportUseRequest{}
	if c.o.Register.Name != "" {
		req.Signer = "signers/" + c.o.Register.Name
	}
	for _, owner := range owners {
		if c.o.Holds != nil {
			req.Domains = append(req.Domains, useOf(owner, c.o.Holds(owner)))
			continue
		}
		d := &dkimv1.DomainUse{Domain: owner}
		last := c.used.of(owner, c.now())
		for name := range held[owner] {
			k := &dkimv1.KeyUse{Key: name}
			if at, ok := last[name]; ok {
				k.LastUseTime = timestamppb.New(at)
			}
			delete(last, name)
			d.Keys = append(d.Keys, k)
		}
		for name, at := range last {
			d.Keys = append(d.Keys, &dkimv1.KeyUse{Key: name, LastUseTime: timestamppb.New(at)})
		}
		req.Domains = append(req.Domains, d)
	}
	callCtx, cancel := context.WithTimeout(ctx, max(c.o.Timeout, 30*time.Second))
	defer cancel()
	_, err := c.api.ReportUse(callCtx, req)
	return err
}

// useOf is a report of what Options.Holds says of a domain.
func useOf(owner string, keys map[string]time.Time) *dkimv1.DomainUse {
	d := &dkimv1.DomainUse{Domain: owner}
	for name, last := range keys {
		k := &dkimv1.KeyUse{Key: name}
		if !last.IsZero() {
			k.LastUseTime = timestamppb.New(last)
		}
		d.Keys = append(d.Keys, k)
	}
	return d
}

// held are the names of the keys that a signer is to hold, by their owners.
func (c *Client) held(owners []string) map[string]map[string]struct{} {
	held := make(map[string]map[string]struct{}, len(owners))
	for _, o := range owners {
		held[o] = make(map[string]struct{})
	}
	add := func(keys []*dkimv1.SigningKey) {
		for _, k := range keys {
			if names := held[ownerOf(k.GetKey())]; names != nil {
				names[k.GetKey()] = struct{}{}
			}
		}
	}
	p := c.picture
	p.mu.RLock()
	defer p.mu.RUnlock()
	own := false // some are of a brand itself
	for _, o := range owners {
		brand, name := cutName(o)
		if d := p.domains[name]; d.GetName() == o {
			add(d.GetKeys())
			add(d.GetStandbyKeys())
		} else {
			own = true
		}
		add(p.brands[brand].GetDefaultKeys())
		add(p.brands[brand].GetStandbyKeys())
	}
	if own { // a shared key that signs is named by those only whom it signs for
		for _, d := range p.domains {
			add(d.GetKeys())
		}
	}
	return held
}

// hold fetches the private halves of keys that are not here yet. One that dkimd does
// not hand out is not held.
func (c *Client) hold(ctx context.Context, held map[string]map[string]struct{}) error {
	var missing []string
	for _, names := range held {
		for name := range names {
			if c.halves.find(name) == nil {
				missing = append(missing, name)
			}
		}
	}
	for len(missing) > 0 {
		n := min(len(missing), fetchBatch)
		keys, err := c.halves.fetch(ctx, missing[:n]...)
		if err != nil {
			return err
		}
		for i, k := range keys {
			if k.err != nil {
				if errors.Is(k.err, ErrUnavailable) {
					return k.err
				}
				delete(held[ownerOf(missing[i])], missing[i])
			}
		}
		missing = missing[n:]
	}
	return nil
}

func reasonOfError(err error) string {
	if err == nil {
		return ""
	}
	return reasonOf(status.Convert(err))
}
