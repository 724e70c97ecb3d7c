//go:build interop

package interop_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

var (
	wantRotations = flag.Int("rotations", 30, "TestLife goes on until keys have been rotated so many times")
	lifeSeed      = flag.Uint64("seed", 0, "of TestLife; 0: a random one, which is printed")
)

// The policy of TestLife, beside an interval of a minute and TTLs of 60 s for
// records and 30 s for denials. What caches may hold bounds the rest: a key signs
// two minutes after it was seen everywhere at the earliest, and a selector rests
// for two minutes.
const (
	lifeDrain    = time.Minute
	lifeCheck    = 10 * time.Second
	lifeUnderWay = 50 * time.Second // the longest that a message is on its way; its key is served for lifeDrain

	customerNegativeTTL = time.Minute // of cnameSOA

	lifeLimit = 30 * time.Minute
)

// sender is a domain that mail comes from, or one that has keys of a brand's own.
type sender struct {
	brand, name string
	specs       []*dkimv1.SelectorSpec // nil: what is usual
	bare        bool                   // its customer never adds a CNAME
	box         *mailbox               // nil: no mail
}

func (s *sender) resource() string { return "brands/" + s.brand + "/domains/" + s.name }

func specs(a dkimv1.KeyAlgorithm, names ...string) (all []*dkimv1.SelectorSpec) {
	for _, n := range names {
		all = append(all, &dkimv1.SelectorSpec{Selector: n, Algorithm: a})
	}
	return all
}

func senders() []*sender {
	const rsa, ed = dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519
	return []*sender{
		{brand: "acme", name: "one.dk"},
		{brand: "acme", name: "two.dk", specs: specs(rsa, "selector1", "selector2")},
		{brand: "acme", name: "three.dk", specs: specs(rsa, "a", "b", "c")},
		{brand: "acme", name: "four.dk", specs: specs(ed, "ed1", "ed2")},
		{brand: "acme", name: "five.dk", specs: specs(ed, "ed1", "ed2", "ed3")},
		{brand: "acme", name: "both.dk", specs: append(specs(rsa, "rsa1", "rsa2"), specs(ed, "ed1", "ed2")...)},
		{brand: "acme", name: "away.dk"},
		{brand: "acme", name: "half.dk", specs: specs(ed, "ed1", "ed2", "ed3")},
		{brand: "shop", name: "shared-one.dk"},
		{brand: "shop", name: "shared-two.dk"},
	}
}

// TestLife lets keys of many domains rotate while mail is signed with the keys
// that the API names and verified through a caching resolver, at once and up to
// 50 s later. dkimd is killed now and then, mostly the one that leads. Customers'
// CNAMEs vanish and come back.
func TestLife(t *testing.T) {
	seed := *lifeSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)

	all := senders()
	var zones []string
	for _, s := range all {
		zones = append(zones, s.name)
	}
	site := newLifeSite(t, zones)
	l := &life{t: t, lifeSite: site, all: all, post: &post{t: t, site: site, lastUse: make(map[string]time.Time)}}
	l.provision()

	ctx, stop := context.WithTimeout(t.Context(), lifeLimit)
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	begin := time.Now()
	if err := l.post.register(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	for _, m := range l.post.boxes {
		running.Go(func() { m.run(ctx) })
	}
	curious := rand.New(rand.NewPCG(seed, 1))
	running.Go(func() { l.ask(ctx, curious) })
	running.Go(func() { l.kill(ctx, rand.New(rand.NewPCG(seed, 2))) })

	l.failover(ctx, l.sender("half.dk"))
	l.fallback(ctx, l.sender("away.dk"))
	l.untilRotated(ctx)
	stop()
	running.Wait()
	l.post.way.Wait()
	l.print(time.Since(begin))
}

// life is the state of TestLife.
type life struct {
	*lifeSite
	t    *testing.T
	all  []*sender
	post *post

	names []string // where receivers look for keys
	kills int      // of the leader
	both  int      // of them together with the other one
}

func (l *life) sender(name string) *sender {
	return l.all[slices.IndexFunc(l.all, func(s *sender) bool { return s.name == name })]
}

func (l *life) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

var brandModes = map[string]dkimv1.SigningMode{
	"acme":  dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN,
	"shop":  dkimv1.SigningMode_SIGNING_MODE_BRAND_SHARED,
	"plain": dkimv1.SigningMode_SIGNING_MODE_BRAND_DEFAULT,
	"files": dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN,
}

// provision makes brands and domains, and the customers add their CNAMEs, which
// the resolver has just found missing.
func (l *life) provision() {
	l.t.Helper()
	ctx := l.t.Context()
	modes := make(map[string]dkimv1.SigningMode)
	for _, s := range l.all {
		modes[s.brand] = brandModes[s.brand]
	}
	for _, brand := range slices.Sorted(maps.Keys(modes)) {
		var b *dkimv1.Brand
		l.must(l.call(ctx, func(ctx context.Context, d *dkimd) (err error) {
			b, err = d.admin.CreateBrand(ctx, &dkimv1.CreateBrandRequest{
				BrandId: brand, Brand: &dkimv1.Brand{Zone: "zones/" + zone, SigningMode: modes[brand]},
			})
			return err
		}))
		for _, own := range []string{b.GetDefaultDomain(), b.GetSharedDomain()} {
			if own != "" {
				l.all = append(l.all, &sender{brand: brand, name: own[strings.LastIndexByte(own, '/')+1:]})
			}
		}
	}
	for i, s := range l.all {
		if strings.HasSuffix(s.name, "."+zone) {
			for _, sel := range l.domain(ctx, s).GetSelectors() {
				l.names = append(l.names, sel.GetOwnerName())
			}
			continue
		}
		l.must(l.call(ctx, func(ctx context.Context, d *dkimd) error {
			_, err := d.admin.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: s.resource(), Selectors: s.specs})
			return err
		}))
		for _, sel := range l.domain(ctx, s).GetSelectors() {
			if s.bare {
				continue
			}
			if _, err := l.lookup(ctx, sel.GetCnameOwner()); err == nil {
				l.t.Fatalf("%s is there already", sel.GetCnameOwner())
			}
			l.setCNAME(l.t, s.name, sel.GetCnameOwner(), sel.GetCnameTarget())
			l.names = append(l.names, sel.GetCnameOwner())
		}
		s.box = &mailbox{
			post: l.post, brand: s.brand, domain: s.name, rng: rand.New(rand.NewPCG(uint64(i), 0)),
			tally: tally{keys: make(map[string]bool)},
		}
		l.post.boxes = append(l.post.boxes, s.box)
	}
}

func (l *life) domain(ctx context.Context, s *sender) *dkimv1.Domain {
	l.t.Helper()
	var domain *dkimv1.Domain
	harness.Eventually(l.t, limit, "GetDomain", func() error {
		return l.call(ctx, func(ctx context.Context, d *dkimd) (err error) {
			domain, err = d.admin.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: s.resource()})
			return err
		})
	})
	return domain
}

// ask is somebody who is curious: the resolver has always just seen what is
// there, a denial or a revoked key too.
func (l *life) ask(ctx context.Context, rng *rand.Rand) {
	for pause(ctx, 100*time.Millisecond) {
		_, _ = l.lookup(ctx, l.names[rng.IntN(len(l.names))]) // what it is does not matter
	}
}

// kill kills the dkimd that leads, one time in four both, and starts it again,
// until ctx ends. All are running then.
func (l *life) kill(ctx context.Context, rng *rand.Rand) {
	for pause(ctx, time.Duration(15+rng.IntN(30))*time.Second) {
		i := -1
		for i < 0 && pause(ctx, 200*time.Millisecond) {
			i = slices.IndexFunc(l.dkimd, func(d *dkimd) bool { return d.leads(ctx) })
		}
		if i < 0 {
			return
		}
		victims := []*dkimd{l.dkimd[i]}
		if l.kills++; rng.IntN(4) == 0 {
			victims = l.dkimd
			l.both++
		}
		away := time.Duration(rng.IntN(8000)) * time.Millisecond
		for _, d := range victims {
			d.Kill()
		}
		l.t.Logf("%s leads; killed it and %d more for %v", l.dkimd[i].name, len(victims)-1, away)
		pause(ctx, away)
		for _, d := range victims {
			d.start(l.t)
		}
	}
}

// resolve asks what to sign mail of a sender with.
func (l *life) resolve(ctx context.Context, s *sender) (resp *dkimv1.ResolveSigningKeysResponse, err error) {
	err = l.call(ctx, func(ctx context.Context, d *dkimd) (err error) {
		resp, err = d.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: s.resource()})
		return err
	})
	return resp, err
}

// waitSigning waits until the mail of a sender is to be signed as ok says.
func (l *life) waitSigning(ctx context.Context, s *sender, what string, within time.Duration, ok func(*dkimv1.ResolveSigningKeysResponse) bool) {
	l.t.Helper()
	begin := time.Now()
	harness.Eventually(l.t, within, s.name+" "+what, func() error {
		resp, err := l.resolve(ctx, s)
		if err == nil && !ok(resp) {
			err = fmt.Errorf("got %v", resp)
		}
		return err
	})
	l.t.Logf("%s %s after %s", s.name, what, time.Since(begin).Round(time.Second))
}

func ownKey(r *dkimv1.ResolveSigningKeysResponse) bool {
	return len(r.GetKeys()) > 0 && !r.GetFallback()
}

// failover has a customer remove the CNAME of the selector that signs, as soon as
// there is one: another one takes over.
func (l *life) failover(ctx context.Context, s *sender) {
	l.t.Helper()
	l.waitSigning(ctx, s, "signs with its own key", 5*time.Minute, ownKey)
	var signs string
	harness.Eventually(l.t, limit, "ResolveSigningKeys", func() error {
		resp, err := l.resolve(ctx, s)
		if err == nil {
			signs = resp.GetKeys()[0].GetSelector()
		}
		return err
	})
	owner, target := l.breakCNAME(ctx, s, signs)
	l.waitSigning(ctx, s, "signs with another selector", 2*time.Minute, func(r *dkimv1.ResolveSigningKeysResponse) bool {
		return ownKey(r) && r.GetKeys()[0].GetSelector() != signs
	})
	s.box.notice()
	l.setCNAME(l.t, s.name, owner, target)
	s.box.mend()
}

// fallback has a customer remove all CNAMEs: its mail is signed with the brand's
// default key until they have been back for long enough.
func (l *life) fallback(ctx context.Context, s *sender) {
	l.t.Helper()
	l.waitSigning(ctx, s, "signs with its own key", 5*time.Minute, ownKey)
	targets := make(map[string]string)
	for _, sel := range l.domain(ctx, s).GetSelectors() {
		owner, target := l.breakCNAME(ctx, s, sel.GetSelector())
		targets[owner] = target
	}
	l.waitSigning(ctx, s, "signs with the default key", 2*time.Minute, func(r *dkimv1.ResolveSigningKeysResponse) bool {
		return r.GetFallback() && len(r.GetKeys()) == 1 && r.GetKeys()[0].GetDomain() == s.brand+"."+zone
	})
	s.box.notice()
	pause(ctx, 30*time.Second) // while mail goes out
	for owner, target := range targets {
		l.setCNAME(l.t, s.name, owner, target)
	}
	s.box.mend()
	l.waitSigning(ctx, s, "signs with its own key again", 6*time.Minute, ownKey)
}

func (l *life) breakCNAME(ctx context.Context, s *sender, selector string) (owner, target string) {
	l.t.Helper()
	sels := l.domain(ctx, s).GetSelectors()
	i := slices.IndexFunc(sels, func(sel *dkimv1.Selector) bool { return sel.GetSelector() == selector })
	s.box.mu.Lock()
	if s.box.broken.begin.IsZero() {
		s.box.broken.begin = time.Now()
	}
	s.box.mu.Unlock()
	l.setCNAME(l.t, s.name, sels[i].GetCnameOwner(), "")
	l.t.Logf("%s removed %s", s.name, sels[i].GetCnameOwner())
	return sels[i].GetCnameOwner(), sels[i].GetCnameTarget()
}

func (m *mailbox) notice() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken.noticed = time.Now()
}

func (m *mailbox) mend() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken.end = time.Now()
}

// changes counts how keys of one algorithm of a domain came to sign.
type changes struct {
	selectors        int
	first, failovers int
	rotations        int // scheduled ones
}

// changes reads them from the domain's history.
func (l *life) changes(ctx context.Context, s *sender) map[dkimv1.KeyAlgorithm]*changes {
	l.t.Helper()
	groups := make(map[dkimv1.KeyAlgorithm]*changes)
	if brandModes[s.brand] != dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN && s.box != nil {
		return groups // it has no keys of its own
	}
	for _, sel := range l.domain(ctx, s).GetSelectors() {
		if groups[sel.GetAlgorithm()] == nil {
			groups[sel.GetAlgorithm()] = &changes{}
		}
		groups[sel.GetAlgorithm()].selectors++
	}
	var events *dkimv1.ListDomainEventsResponse
	harness.Eventually(l.t, limit, "ListDomainEvents", func() error {
		return l.call(ctx, func(ctx context.Context, d *dkimd) (err error) {
			events, err = d.admin.ListDomainEvents(ctx, &dkimv1.ListDomainEventsRequest{Parent: s.resource(), PageSize: 1000})
			return err
		})
	})
	for _, e := range events.GetEvents() {
		g := groups[e.GetAlgorithm()]
		if e.GetToState() != dkimv1.KeyState_KEY_STATE_ACTIVE || g == nil {
			continue
		}
		switch e.GetReason() {
		case "FIRST_KEY":
			g.first++
		case "FAILOVER":
			g.failovers++
		default:
			g.rotations++
		}
	}
	return groups
}

// untilRotated waits until there were as many rotations as wanted, and every
// domain has signed with a key that followed another one in its selector.
func (l *life) untilRotated(ctx context.Context) {
	l.t.Helper()
	last := time.Now()
	for pause(ctx, 5*time.Second) {
		total, waiting := 0, []string{}
		for _, s := range l.all {
			for _, g := range l.changes(ctx, s) {
				if total += g.rotations; g.first+g.failovers+g.rotations <= g.selectors {
					waiting = append(waiting, s.name)
				}
			}
		}
		if len(waiting) == 0 && total >= *wantRotations {
			return
		}
		if time.Since(last) > time.Minute {
			last = time.Now()
			l.t.Logf("%d rotations; no new key signs yet for %s", total, strings.Join(waiting, " "))
		}
	}
	l.t.Fatal("not all has rotated in time")
}

// print shows what happened, and fails the test if something is missing in it.
func (l *life) print(took time.Duration) {
	l.t.Helper()
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "domain\tselectors\tfirst\trotations\tfailovers\tmessages\tby default key\tkeys\tverified\tfailed\tlost with CNAME\tunsigned\t")
	var sum tally
	var all changes
	for _, s := range l.all {
		var c changes
		for _, g := range l.changes(l.t.Context(), s) {
			c.selectors, c.first = c.selectors+g.selectors, c.first+g.first
			c.rotations, c.failovers = c.rotations+g.rotations, c.failovers+g.failovers
		}
		all.first, all.rotations, all.failovers = all.first+c.first, all.rotations+c.rotations, all.failovers+c.failovers
		var n tally
		if s.box != nil {
			n = s.box.tally
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", s.name, c.selectors, c.first, c.rotations, c.failovers,
			n.own+n.fallback, n.fallback, len(n.keys), n.verified, n.failed, n.lost, n.unsigned)
		sum.own, sum.fallback, sum.verified = sum.own+n.own, sum.fallback+n.fallback, sum.verified+n.verified
		sum.failed, sum.lost, sum.unsigned = sum.failed+n.failed, sum.lost+n.lost, sum.unsigned+n.unsigned
	}
	fmt.Fprintf(w, "all\t\t%d\t%d\t%d\t%d\t%d\t\t%d\t%d\t%d\t%d\t\n", all.first, all.rotations, all.failovers,
		sum.own+sum.fallback, sum.fallback, sum.verified, sum.failed, sum.lost, sum.unsigned)
	_ = w.Flush() // into memory
	l.t.Logf("%s, %d kills of the leader, %d of them with the other dkimd, %d calls without an answer\n%s",
		took.Round(time.Second), l.kills, l.both, l.post.unheard, out.String())
	switch {
	case l.kills == 0:
		l.t.Error("nothing was killed")
	case all.failovers == 0:
		l.t.Error("no failover")
	case sum.verified+sum.failed+sum.lost != 2*(sum.own+sum.fallback):
		l.t.Errorf("%d verifications of %d messages", sum.verified+sum.failed+sum.lost, sum.own+sum.fallback)
	}
	if n := l.sender("away.dk").box.tally; n.fallback < 20 {
		l.t.Errorf("%d messages by the default key while the CNAMEs were away", n.fallback)
	}
}
