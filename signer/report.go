package signer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
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

// usage is when each key last signed here.
type usage struct {
	mu   sync.Mutex
	last map[string]map[string]time.Time // by name of the domain that has it, and its own
	used map[string]struct{}             // names of the domains with keys that signed since the last report
}

func newUsage() *usage {
	return &usage{last: make(map[string]map[string]time.Time), used: make(map[string]struct{})}
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
	u.used[owner] = struct{}{}
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
	p := c.picture
	if c.o.Holds == nil {
		p.mu.Lock()
		p.changed = make(map[string]struct{})
		for _, d := range p.domains {
			p.changed[d.GetName()] = struct{}{}
		}
		p.mu.Unlock()
	}
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
			n += len(c.used.used)
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
	owners := c.takeDirty()
	for first := true; first || len(owners) > 0; first = false {
		n := min(len(owners), reportBatch)
		if err := c.reportBatch(ctx, owners[:n]); err != nil {
			c.putBack(owners)
			return err
		}
		owners = owners[n:]
	}
	return nil
}

// takeDirty are the domains that are to be reported.
func (c *Client) takeDirty() []string {
	dirty := make(map[string]struct{})
	p := c.picture
	p.mu.Lock()
	for name := range p.changed {
		if strings.Contains(name, "/domains/") {
			dirty[name] = struct{}{}
			continue
		}
		b := p.brands[strings.TrimPrefix(name, "brands/")]
		for _, k := range append(append([]*dkimv1.SigningKey(nil), b.GetDefaultKeys()...), b.GetStandbyKeys()...) {
			dirty[ownerOf(k.GetKey())] = struct{}{}
		}
	}
	clear(p.changed)
	p.mu.Unlock()
	c.used.mu.Lock()
	for owner := range c.used.used {
		dirty[owner] = struct{}{}
	}
	clear(c.used.used)
	c.used.mu.Unlock()
	owners := make([]string, 0, len(dirty))
	for owner := range dirty {
		owners = append(owners, owner)
	}
	return owners
}

func (c *Client) putBack(owners []string) {
	c.used.mu.Lock()
	defer c.used.mu.Unlock()
	for _, o := range owners {
		c.used.used[o] = struct{}{}
	}
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
	for _, o := range owners {
		_, name := cutName(o)
		if d := p.domains[name]; d.GetName() == o {
			add(d.GetKeys())
			add(d.GetStandbyKeys())
		}
		brand, _ := cutName(o)
		add(p.brands[brand].GetDefaultKeys())
		add(p.brands[brand].GetStandbyKeys())
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
