package simulation_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

const day = 24 * time.Hour

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// The outage: etcd is away, so nothing is looked at, nothing changes, and signers go on with what they were told.
	outage = rotation.Freeze{Start: start.Add(200*day + 9*time.Hour), End: start.Add(201*day + 9*time.Hour)}
	freeze = rotation.Freeze{Start: start.Add(340 * day), End: start.Add(354 * day)}
)

const (
	validity = 5 * time.Minute // of an answer to a signer, as the policy below makes it
	lease    = time.Hour       // of a signer
	flight   = 7 * day         // of the slowest message
)

// policy is the default but for the checks: they are less frequent, which makes the run shorter and what customers break
// go unnoticed for longer.
func policy(domains int) rotation.Policy {
	p := rotation.DefaultPolicy()
	p.CheckInterval = *check
	p.Freezes = []rotation.Freeze{freeze}
	p.MaxPerHour = max(2, domains/800) // three times what is needed when nothing is late
	return p
}

// brand is a tenant with its signers.
type brand struct {
	name     string
	mode     rotation.Mode
	def      *site
	shared   *site
	signers  []*mailServer
	hour     time.Time
	switches int // in the hour
	views    []rotation.SignerView
}

// mailServer signs for a brand. When it is away it reports nothing; cut off it goes on signing until its lease is over.
type mailServer struct {
	id        string
	since     time.Time // it has been up or away
	up        bool
	joined    time.Time
	nextShift time.Time
}

// message is on its way from signing to verification.
type message struct {
	signer *site // whose key
	user   *site // who aliases it; nil: nobody has to
	key    string
	sel    dnsname.Selector
	signed time.Time
}

// shard is one zone, which is one goroutine.
type shard struct {
	rng    *rand.Rand
	p      rotation.Policy
	q      queue
	brands []*brand
	sites  []*site
	end    time.Time

	hour     time.Time
	switches int // in the hour, that could wait
	burst    int // in the hour, all

	tally
}

func newShard(seed, n uint64, domains int, end time.Time, p rotation.Policy) *shard {
	s := &shard{rng: rand.New(rand.NewPCG(seed, n)), p: p, end: end, tally: newTally()}
	for i := range 10 {
		b := &brand{name: fmt.Sprintf("brand%d-%d", n, i)}
		if i == 0 {
			b.mode = rotation.ModeBrandShared
			b.shared = s.brandsOwn(b, rotation.BrandShared, "shared."+b.name+".example", 2, "mail")
		}
		b.def = s.brandsOwn(b, rotation.BrandDefault, b.name+".example", 3, "default")
		for j := range 3 {
			m := &mailServer{id: fmt.Sprintf("mx%d", j), since: start, joined: start, up: true, nextShift: start.Add(s.between(day, 200*day))}
			b.signers = append(b.signers, m)
		}
		s.brands = append(s.brands, b)
	}
	for i := range domains {
		born := start
		if i%4 > 0 { // a first customer's whole fleet at once, the others over a year
			born = start.Add(time.Duration(s.rng.Int64N(int64(365 * day))))
		}
		t := s.newSite(s.brands[i%len(s.brands)], fmt.Sprintf("customer%d-%d.example", n, i), born)
		s.sites = append(s.sites, t)
		s.q.push(event{at: born, what: look, site: t})
		if t.brand.mode == rotation.ModeBrandShared {
			t.Domain.Shared = []dnsname.Selector{"mail1", "mail2"}
		} else {
			s.selectors(t, pick(s.rng, 2, 2, 2, 3), "selector", keypair.RSA2048, born)
			if s.rng.IntN(10) == 0 {
				s.selectors(t, 2, "ed", keypair.Ed25519, born)
			}
		}
		for _, sel := range t.aliased() {
			t.aliases[sel] = []alias{{from: start.Add(-10 * day)}}
		}
		if t.nature != never {
			s.q.push(event{at: born.Add(s.between(time.Minute, 60*day)), what: tamper, site: t})
		}
		s.q.push(event{at: born.Add(s.between(time.Minute, 30*day)), what: send, site: t})
		if i%100 == 7 {
			s.q.push(event{at: born.Add(s.between(time.Minute, 600*day)), what: leak, site: t})
		}
	}
	return s
}

// brandsOwn is a site of the brand's.
func (s *shard) brandsOwn(b *brand, kind rotation.Kind, name string, n int, prefix string) *site {
	t := s.newSite(b, name, start)
	t.nature, t.Domain.Kind = ours, kind
	s.selectors(t, n, prefix, keypair.RSA2048, start)
	s.sites = append(s.sites, t)
	s.q.push(event{at: start, what: look, site: t})
	return t
}

func (s *shard) run() {
	for len(s.q) > 0 {
		e := s.q.pop()
		if !e.at.Before(s.end) {
			break
		}
		if hour := e.at.Truncate(time.Hour); hour != s.hour {
			s.hour, s.switches, s.burst = hour, 0, 0
		}
		s.events++
		switch e.what {
		case look:
			s.control(e.site, e.at)
		case tamper:
			if next := s.tamper(e.site, e.at); !next.IsZero() {
				s.q.push(event{at: next, what: tamper, site: e.site})
			}
		case send:
			s.q.push(event{at: e.at.Add(s.between(time.Hour, 40*day)), what: send, site: e.site})
			s.send(e.site, s.told(e.site, e.at), e.at)
		case receive:
			s.receive(e.msg, e.at)
		case leak:
			s.compromise(e.site, e.at)
		}
	}
	s.close()
}

// control is the controller's turn with a domain.
func (s *shard) control(t *site, now time.Time) {
	if !now.Before(outage.Start) && now.Before(outage.End) {
		s.q.push(event{at: outage.End.Add(s.between(time.Second, time.Hour)), what: look, site: t})
		return
	}
	t.Evidence.Signers = s.reports(t, now)
	if !t.checkAt.After(now) {
		s.gather(t, now)
	}
	d := rotation.Next(s.p, t.Domain, t.Evidence, now)
	t.checkAt = d.CheckAt
	next := d.Due
	if len(d.Steps) > 0 {
		if d.Voluntary && !s.turn(t.brand, now) {
			next = now.Truncate(time.Hour).Add(time.Hour + s.between(time.Second, time.Hour))
		} else {
			before := s.resolve(t, now)
			s.apply(t, d.Steps, now)
			s.note(t, before, now)
			t.checkAt = time.Time{}
		}
	}
	for _, c := range d.Conditions {
		if c.Type == rotation.ConditionRotation && !c.OK && next.After(now) {
			t.blocked[c.Reason] += next.Sub(now)
		}
	}
	s.q.push(event{at: next, what: look, site: t})
}

// note remembers what signers were told until now, if that has changed.
func (s *shard) note(t *site, before rotation.Resolution, now time.Time) {
	after := s.resolve(t, now)
	if !slices.Equal(before.Keys, after.Keys) {
		t.before, t.changed = before, now
		// The worst that can happen: signed just now with the new key, at the very end with the old one.
		s.send(t, after, now)
		if late := now.Add(validity - 1); late.Before(outage.Start) || now.After(outage.End) {
			s.sendLate(t, before, late)
		}
	}
}

// turn counts a switch that can wait, if there is room for it in this hour.
func (s *shard) turn(b *brand, now time.Time) bool {
	if hour := now.Truncate(time.Hour); hour != b.hour {
		b.hour, b.switches = hour, 0
	}
	if s.switches >= s.p.MaxPerHour || b.switches >= max(1, s.p.MaxPerHour/3) {
		s.paced++
		return false
	}
	s.switches++
	b.switches++
	s.waited = max(s.waited, s.switches)
	return true
}

func (s *shard) apply(t *site, steps []rotation.Step, now time.Time) {
	old := map[string]rotation.Key{}
	for _, k := range t.Domain.Keys {
		old[k.ID] = k
	}
	for _, st := range steps {
		i := slices.IndexFunc(t.Domain.Keys, func(k rotation.Key) bool { return k.ID == st.KeyID })
		if st.KeyID != "" {
			if err := t.Domain.Keys[i].Take(st, now); err != nil {
				panic(err) // a decision made just now
			}
		}
		switch st.Kind {
		case rotation.Activate:
			s.activated[st.Reason]++
			if s.burst++; s.burst > s.largest {
				s.largest, s.largestAt = s.burst, s.hour
			}
		case rotation.Revoke:
			t.show(old[st.KeyID], true, now)
		case rotation.Refill:
			if st.KeyID != "" {
				t.Domain.Keys = slices.Delete(t.Domain.Keys, i, i+1)
			}
			delete(t.Evidence.Served, st.KeyID)
			s.publish(t, rotation.Selector{Selector: st.Selector, Algorithm: st.Algorithm}, old[st.KeyID].TTL, now)
		}
	}
}

func (s *shard) compromise(t *site, now time.Time) {
	for _, k := range t.Domain.Keys {
		if k.State != rotation.Active {
			continue
		}
		before := s.resolve(t, now)
		steps, err := rotation.RevokeCompromised(s.p, t.Domain, t.Evidence, k.ID, now)
		if err != nil {
			panic(err)
		}
		s.apply(t, steps, now)
		s.leaked[k.ID+"@"+string(t.Domain.Name)] = true
		s.q.push(event{at: now, what: look, site: t})
		t.before, t.changed = before, now
		return
	}
}

// reports are what the brand's signers last said about a domain.
func (s *shard) reports(t *site, now time.Time) []rotation.SignerView {
	b := t.brand
	if b.views == nil {
		for range b.signers {
			b.views = append(b.views, rotation.SignerView{Holds: map[string]time.Time{}})
		}
	}
	for i, m := range b.signers {
		m.shift(s, now)
		v := &b.views[i]
		v.ID = m.id
		clear(v.Holds)
		v.ReportTime = m.since // when it went away
		if m.up {
			v.ReportTime = now.Add(-10 * time.Minute)
			if v.ReportTime.Before(outage.End) && !v.ReportTime.Before(outage.Start) {
				v.ReportTime = outage.Start
			}
			if v.ReportTime.Before(m.since) {
				v.ReportTime = m.since
			}
		}
		v.LeaseExpiry = v.ReportTime.Add(lease)
		for _, k := range t.Domain.Keys {
			if k.State >= rotation.Revoked || k.PrepareTime.After(v.ReportTime) {
				continue
			}
			used := v.ReportTime
			if k.ActivateTime.IsZero() {
				used = time.Time{}
			} else if !k.RetireTime.IsZero() && k.RetireTime.Add(validity).Before(used) {
				used = k.RetireTime.Add(validity)
			}
			v.Holds[k.ID] = used
		}
	}
	return b.views
}

// shift lets a mail server go or come back.
func (m *mailServer) shift(s *shard, now time.Time) {
	for now.After(m.nextShift) {
		m.since, m.up = m.nextShift, !m.up
		if m.up {
			m.nextShift = m.nextShift.Add(s.between(day, 200*day))
		} else {
			m.nextShift = m.nextShift.Add(s.between(time.Minute, 20*day))
		}
	}
}

func (s *shard) resolve(t *site, now time.Time) rotation.Resolution {
	b := t.brand
	if t.nature == ours {
		return rotation.Resolution{}
	}
	var shared *rotation.View
	if b.shared != nil {
		shared = &b.shared.View
	}
	return rotation.Resolve(b.mode, s.p, &t.View, shared, &b.def.View, now)
}

func newTally() tally {
	return tally{activated: map[string]int{}, leaked: map[string]bool{}, failed: map[string]int{}, blockedDays: map[string]float64{}, blockedNow: map[string]int{}}
}

func (t *tally) add(o *tally) {
	for reason, n := range o.activated {
		t.activated[reason] += n
	}
	for class, n := range o.failed {
		t.failed[class] += n
	}
	for reason, n := range o.blockedDays {
		t.blockedDays[reason] += n
	}
	for reason, n := range o.blockedNow {
		t.blockedNow[reason] += n
	}
	maps.Copy(t.leaked, o.leaked)
	t.events += o.events
	t.looks += o.looks
	t.paced += o.paced
	t.own, t.shared, t.fallback, t.unsigned = t.own+o.own, t.shared+o.shared, t.fallback+o.fallback, t.unsigned+o.unsigned
	t.received += o.received
	if o.largest > t.largest {
		t.largest, t.largestAt = o.largest, o.largestAt
	}
	t.waited = max(t.waited, o.waited)
	t.unnoticed = max(t.unnoticed, o.unnoticed)
	t.oldest, t.oldestBlocked = max(t.oldest, o.oldest), max(t.oldestBlocked, o.oldestBlocked)
	t.examples = append(t.examples, o.examples...)
}
