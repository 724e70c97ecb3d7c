package simulation_test

import (
	"fmt"
	"time"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

// tally is what a run counts.
type tally struct {
	events, looks, paced            int
	activated                       map[string]int // by reason
	waited, largest                 int            // in an hour: switches that can wait, and all activations
	largestAt                       time.Time
	own, shared, fallback, unsigned int
	received                        int
	failed                          map[string]int // by class
	unnoticed                       time.Duration  // from a removal to the last signature that suffered
	leaked                          map[string]bool
	blockedDays                     map[string]float64
	blockedNow                      map[string]int
	oldest, oldestBlocked           time.Duration
	examples                        []string
}

// The classes of messages that fail.
const (
	classOurs        = "ours"
	classCustomer    = "customer" // the alias was taken away before we could know, or while the message was on its way
	classCompromised = "compromised"
)

// told is what one of the brand's signers goes by: usually what holds, for a while what held before.
func (s *shard) told(t *site, now time.Time) rotation.Resolution {
	asked := now.Add(-time.Duration(s.rng.Int64N(int64(validity))))
	if !now.Before(outage.Start) && now.Before(outage.End) && asked.After(outage.Start) {
		asked = outage.Start
	}
	if m := t.brand.signers[s.rng.IntN(len(t.brand.signers))]; !m.up && now.Sub(m.since) < lease && asked.After(m.since) {
		asked = m.since // cut off: it goes on until its lease is over
	}
	if asked.Before(t.changed) {
		return t.before
	}
	return s.resolve(t, asked)
}

// send signs a message with each of the keys; it arrives at once, or much later.
func (s *shard) send(t *site, r rotation.Resolution, now time.Time) {
	if t.nature == ours {
		return
	}
	if len(r.Keys) == 0 {
		s.unsigned++
		return
	}
	for _, k := range r.Keys {
		m := &message{key: k.KeyID, sel: k.Selector, signed: now}
		switch k.Owner {
		case t.Domain.Name:
			s.own++
			m.signer, m.user = t, t
		case t.brand.def.Domain.Name:
			s.fallback++
			m.signer = t.brand.def
		default:
			s.shared++
			m.signer, m.user = t.brand.shared, t
		}
		delay := s.between(time.Second, flight)
		s.q.push(event{at: now.Add(delay), what: receive, msg: m})
	}
}

// receive verifies a message, at a receiver whose resolver holds the worst that it could.
func (s *shard) receive(m *message, now time.Time) {
	s.received++
	if class := s.verify(m, now); class != "" {
		s.failed[class]++
		if class == classOurs && len(s.examples) < 5 {
			s.examples = append(s.examples, fmt.Sprintf("%s of %s, signed %v, received %v\nrecords %+v\naliases %+v\nkeys %+v",
				m.key, m.signer.Domain.Name, m.signed, now, m.signer.records[m.sel], m.aliases(), m.signer.Domain.Keys))
		}
	}
}

func (m *message) aliases() []alias {
	if m.user == nil {
		return nil
	}
	return m.user.aliases[m.sel]
}

func (s *shard) verify(m *message, now time.Time) string {
	class := ""
	list := m.aliases()
	for i, a := range list {
		end := now
		if i+1 < len(list) {
			end = list[i+1].from
		}
		if a.ok || a.from.After(now) || end.Add(m.user.cache).Before(now) || end.Add(m.user.cache).Equal(now) && end != now {
			continue
		}
		// It was denied or wrong at a time that a resolver may remember.
		known := a.seen.Add(validity)
		if a.seen.Add(validity).After(outage.Start) && a.seen.Before(outage.End) {
			known = outage.End.Add(validity)
		}
		for _, server := range m.signer.brand.signers { // one that is cut off hears of it when its lease ends
			if !server.up && server.since.Before(known) {
				known = maxTime(known, server.since.Add(lease))
			}
		}
		if i == 0 || !a.seen.IsZero() && !m.signed.Before(known) {
			return classOurs
		}
		if after := m.signed.Sub(a.from); after > s.unnoticed {
			s.unnoticed = after
		}
		class = classCustomer
	}
	records := m.signer.records[m.sel]
	for i, r := range records {
		end := now
		if i+1 < len(records) {
			end = records[i+1].from.Add(lag)
		}
		if r.from.After(now) || r.key == m.key && !r.revoked || i+1 < len(records) && !now.Before(end.Add(r.cache)) {
			continue
		}
		if s.leaked[m.key+"@"+string(m.signer.Domain.Name)] {
			return classCompromised
		}
		return classOurs
	}
	return class
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sendLate is the last message of a signer that goes by what it was told before, to the slowest receiver.
func (s *shard) sendLate(t *site, r rotation.Resolution, at time.Time) {
	s.send(t, r, at)
	for _, k := range r.Keys {
		if k.Owner == t.Domain.Name {
			s.own++
			s.q.push(event{at: at.Add(flight - 1), what: receive, msg: &message{signer: t, user: t, key: k.KeyID, sel: k.Selector, signed: at}})
		}
	}
}

// close takes stock at the end.
func (s *shard) close() {
	for _, t := range s.sites {
		for reason, d := range t.blocked {
			s.blockedDays[reason] += d.Hours() / 24
		}
		t.Evidence.Signers = s.reports(t, s.end)
		groups := map[string]bool{}
		for _, c := range rotation.Next(s.p, t.Domain, t.Evidence, s.end).Conditions {
			if c.Type == rotation.ConditionRotation && !c.OK {
				s.blockedNow[c.Reason]++
				groups[c.Group.String()] = true
			}
		}
		for _, k := range t.Domain.Keys {
			if k.State != rotation.Active {
				continue
			}
			age := s.end.Sub(k.ActivateTime)
			if groups[k.Algorithm.String()] {
				s.oldestBlocked = max(s.oldestBlocked, age)
			} else {
				s.oldest = max(s.oldest, age)
			}
		}
	}
}
