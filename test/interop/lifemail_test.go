//go:build interop

package interop_test

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// mailbox sends the mail of one domain. It signs with the keys that the API
// names, until its answer expires, and with the last answer while no dkimd
// answers. Each message is verified twice: at once and later.
type mailbox struct {
	post          *post
	brand, domain string
	rng           *rand.Rand

	mu     sync.Mutex
	last   *dkimv1.ResolveSigningKeysResponse
	stale  bool // ask again before it expires
	tally  tally
	broken breakage
}

// breakage is when a customer removed CNAMEs, when the API was seen to know, and
// when they were put back.
type breakage struct{ begin, noticed, end time.Time }

// excuses reports whether a message signed with the domain's own keys at a time
// may be lost: signed before the API knew, verified while the CNAMEs were away or
// their absence was remembered.
func (b breakage) excuses(signed, verified time.Time) bool {
	return !b.begin.IsZero() && verified.After(b.begin) &&
		(b.noticed.IsZero() || signed.Before(b.noticed.Add(lifeCheck))) &&
		(b.end.IsZero() || verified.Before(b.end.Add(customerNegativeTTL)))
}

// tally counts messages.
type tally struct {
	unsigned      int // before the first key was proven
	own, fallback int
	verified      int // twice for each message that is signed
	lost          int // by the customer's doing
	failed        int
	keys          map[string]bool
}

// post is all mail servers, and all receivers.
type post struct {
	t     *testing.T
	site  *lifeSite
	boxes []*mailbox
	way   sync.WaitGroup // messages under way

	mu      sync.Mutex
	lastUse map[string]time.Time // by key
	unheard int                  // calls that no dkimd answered
}

// keys is what to sign with now.
func (m *mailbox) keys(ctx context.Context) *dkimv1.ResolveSigningKeysResponse {
	m.mu.Lock()
	last := m.last
	ask := last == nil || m.stale || time.Now().After(last.GetExpireTime().AsTime())
	m.stale = false
	m.mu.Unlock()
	if !ask {
		return last
	}
	var resp *dkimv1.ResolveSigningKeysResponse
	err := m.post.site.call(ctx, func(ctx context.Context, d *dkimd) (err error) {
		resp, err = d.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/" + m.domain})
		return err
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.stale = true
		m.post.mu.Lock()
		m.post.unheard++
		m.post.mu.Unlock()
		return m.last
	}
	m.last = resp
	return resp
}

// run sends mail until ctx ends.
func (m *mailbox) run(ctx context.Context) {
	for n := 0; pause(ctx, 150*time.Millisecond+rand.N(100*time.Millisecond)); n++ {
		keys := m.keys(ctx)
		if len(keys.GetKeys()) == 0 {
			m.mu.Lock()
			if m.tally.unsigned++; m.tally.own+m.tally.fallback > 0 {
				m.post.t.Errorf("%s: nothing to sign with any more: %v", m.domain, keys)
			}
			m.mu.Unlock()
			continue
		}
		text := fmt.Sprintf("From: info@%s\r\nTo: you@example.org\r\nSubject: letter %d\r\nDate: %s\r\n\r\nDear you,\r\n\r\n%x\r\n",
			m.domain, n, time.Now().Format(time.RFC1123Z), m.rng.Uint64())
		signed, err := m.sign(ctx, text, keys)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.post.t.Errorf("%s: sign with %v: %v", m.domain, keys, err)
			continue
		}
		m.mu.Lock()
		if keys.GetFallback() {
			m.tally.fallback++
		} else {
			m.tally.own++
		}
		m.mu.Unlock()
		at, delay := time.Now(), time.Duration(m.rng.Int64N(int64(lifeUnderWay)))
		m.post.way.Go(func() {
			m.verify(signed, keys, at)
			pause(context.Background(), delay)
			m.verify(signed, keys, at)
		})
	}
}

// sign adds a signature for each key and notes that it was used.
func (m *mailbox) sign(ctx context.Context, text string, keys *dkimv1.ResolveSigningKeysResponse) (string, error) {
	for _, k := range keys.GetKeys() {
		private, err := m.post.site.keys.get(ctx, k.GetKey())
		if err != nil {
			return "", err
		}
		var out bytes.Buffer
		if err := dkim.Sign(&out, strings.NewReader(text), &dkim.SignOptions{
			Domain: k.GetDomain(), Selector: k.GetSelector(), Signer: private, Hash: crypto.SHA256,
			HeaderKeys: []string{"From", "To", "Subject", "Date"},
		}); err != nil {
			return "", err
		}
		text = out.String()
		m.post.mu.Lock()
		m.post.lastUse[k.GetKey()] = time.Now()
		m.post.mu.Unlock()
		m.mu.Lock()
		m.tally.keys[k.GetKey()] = true
		m.mu.Unlock()
	}
	return text, nil
}

// verify is a receiver: all signatures must be good.
func (m *mailbox) verify(signed string, keys *dkimv1.ResolveSigningKeysResponse, at time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	results, err := dkim.VerifyWithOptions(strings.NewReader(signed), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) { return m.post.site.lookup(ctx, name) },
	})
	if err == nil && len(results) != len(keys.GetKeys()) {
		err = fmt.Errorf("%d signatures, want %d", len(results), len(keys.GetKeys()))
	}
	for i, r := range results {
		if err == nil {
			err = r.Err
		}
		if want := keys.GetKeys()[len(results)-1-i].GetDomain(); err == nil && r.Domain != want { // the last is on top
			err = fmt.Errorf("d=%s, want %s", r.Domain, want)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.tally.verified++
		return
	}
	if !keys.GetFallback() && m.broken.excuses(at, time.Now()) {
		m.tally.lost++
		return
	}
	if m.tally.failed++; m.tally.failed <= 5 {
		m.post.t.Errorf("%s: signed at %s with %v, verified %s later: %v", m.domain, at.Format(time.TimeOnly), keys, time.Since(at), err)
	}
}

// register makes the mail servers of a brand known under one name, and reports
// their use of keys until ctx ends. They hold all keys that may sign.
func (p *post) register(ctx context.Context, brand string) error {
	err := p.site.call(ctx, func(ctx context.Context, d *dkimd) error {
		_, err := d.signer.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{
			Signer: &dkimv1.SignerRegistration{Brand: "brands/" + brand, LeaseDuration: durationpb.New(time.Minute)},
		})
		return err
	})
	if err != nil {
		return err
	}
	p.way.Go(func() {
		for pause(ctx, 3*time.Second) {
			if err := p.report(ctx, brand); err != nil && ctx.Err() == nil {
				p.mu.Lock()
				p.unheard++
				p.mu.Unlock()
			}
		}
	})
	return nil
}

func (p *post) report(ctx context.Context, brand string) error {
	return p.site.call(ctx, func(ctx context.Context, d *dkimd) error {
		list, err := d.admin.ListDomains(ctx, &dkimv1.ListDomainsRequest{Parent: "brands/" + brand})
		if err != nil {
			return err
		}
		req := &dkimv1.ReportUseRequest{}
		for _, domain := range list.GetDomains() {
			use := &dkimv1.DomainUse{Domain: domain.GetName()}
			for _, sel := range domain.GetSelectors() {
				switch sel.GetKeyState() {
				case dkimv1.KeyState_KEY_STATE_PREPARED, dkimv1.KeyState_KEY_STATE_ACTIVE, dkimv1.KeyState_KEY_STATE_RETIRING:
				default:
					continue
				}
				if _, err := p.site.keys.get(ctx, sel.GetKey()); err != nil {
					return err
				}
				k := &dkimv1.KeyUse{Key: sel.GetKey()}
				p.mu.Lock()
				if at, ok := p.lastUse[sel.GetKey()]; ok {
					k.LastUseTime = timestamppb.New(at)
				}
				p.mu.Unlock()
				use.Keys = append(use.Keys, k)
			}
			req.Domains = append(req.Domains, use)
		}
		if _, err := d.signer.ReportUse(ctx, req); err != nil {
			return err
		}
		for _, m := range p.boxes {
			if m.brand == brand {
				m.mu.Lock()
				m.stale = true // the report counts as knowing what holds now
				m.mu.Unlock()
			}
		}
		return nil
	})
}

// pause waits, and reports whether the whole time has passed.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
