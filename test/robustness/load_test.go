package robustness_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const (
	answerTimeout = 30 * time.Second     // nothing is lost on loopback: room for a machine that stands still
	lossTimeout   = 2 * time.Second      // where something may be lost
	queryInterval = 8 * time.Millisecond // of each of the queriers of a node
	queriers      = 3
)

// seen is what the answers of a node were: the newest version of each name,
// which no later question may fall behind.
type seen struct {
	node   *node
	floors [names]atomic.Uint64
	serial atomic.Uint64
	epoch  atomic.Int64 // counts the changes of down and of rewinding
	down   atomic.Bool  // the node may be silent or not ready
	lossy  atomic.Bool  // questions may go unanswered
	// A backup is put back: answers may be of any time.
	rewinding atomic.Bool

	total, lost atomic.Int64

	mu    sync.Mutex
	wrong []string
}

func newSeen(n *node) *seen { return &seen{node: n} }

func (s *seen) raise(i int, v uint64) { raise(&s.floors[i], v) }

func raise(floor *atomic.Uint64, v uint64) {
	for {
		old := floor.Load()
		if v <= old || floor.CompareAndSwap(old, v) {
			return
		}
	}
}

// set changes what answers may be like. Those on their way are not judged.
func (s *seen) set(flag *atomic.Bool, v bool) {
	flag.Store(v)
	s.epoch.Add(1)
}

// patience is how long an answer may take.
func (s *seen) patience() time.Duration {
	if s.lossy.Load() {
		return lossTimeout
	}
	return answerTimeout
}

// forget lets answers be of before again, as after a restart from a file that
// is a second behind.
func (s *seen) forget() {
	for i := range s.floors {
		s.floors[i].Store(0)
	}
	s.serial.Store(0)
}

func (s *seen) fault(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, time.Now().UTC().Format("15:04:05.000 ")+err.Error())
}

// restarting lets the node be silent while do restarts it.
func (n *node) restarting(t *testing.T, do func()) {
	t.Helper()
	n.seen.set(&n.seen.down, true)
	do()
	n.seen.forget()
	n.seen.set(&n.seen.down, false)
}

// query asks a node all the time until the test ends, and fails the test for
// each answer that is wrong or missing.
func (m *model) query(t *testing.T, n *node) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	for range queriers {
		done.Go(func() {
			tick := time.NewTicker(queryInterval)
			defer tick.Stop()
			for {
				if err := m.ask(n); err != nil {
					n.seen.fault(err)
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		done.Wait()
		n.seen.mu.Lock()
		defer n.seen.mu.Unlock()
		t.Logf("%s: %d questions, %d of them allowed to go unanswered", n.name, n.seen.total.Load(), n.seen.lost.Load())
		if len(n.seen.wrong) > 0 {
			t.Errorf("%s: %d answers are wrong or missing:\n%s", n.name, len(n.seen.wrong), strings.Join(n.seen.wrong[:min(20, len(n.seen.wrong))], "\n"))
		}
	})
}

// ask asks one question and judges the answer.
func (m *model) ask(n *node) error {
	s := n.seen
	s.total.Add(1)
	epoch, down, strict := s.epoch.Load(), s.down.Load(), !s.rewinding.Load()
	var err error
	keep := func() {}
	switch k := rand.N(20); {
	case k == 0:
		err = s.askMissing()
	case k == 1:
		keep, err = s.askSerial(strict)
	default:
		i := rand.N(names)
		if k < 12 {
			i = rand.N(changing)
		}
		keep, err = m.askKey(s, i, strict)
	}
	switch {
	case down || s.epoch.Load() != epoch:
		return nil
	case errors.Is(err, errLost) && s.lossy.Load():
		s.lost.Add(1)
		return nil
	case err == nil && strict:
		keep()
	}
	return err
}

// askKey asks for the i-th name. When strict, it must not be older than what
// was seen before, nor than the zone's serial that was seen before.
func (m *model) askKey(s *seen, i int, strict bool) (keep func(), err error) {
	floor, serial := uint64(0), uint64(0)
	if strict {
		floor, serial = s.floors[i].Load(), s.serial.Load()
	}
	key, found, err := ask(s.node.dns, owner(i), s.patience())
	if err != nil {
		return nil, err
	}
	v := uint64(0)
	if found {
		if v, err = versionOf(i, key); err != nil {
			return nil, err
		}
	}
	v, err = m.check(i, floor, serial, v, found)
	return func() { s.raise(i, v) }, err
}

// askMissing asks for what never was, and for what stands above the records.
func (s *seen) askMissing() error {
	for name, want := range map[string]int{
		fmt.Sprintf("selector1-never%d._domainkey.", rand.N(1000)): dns.RcodeNameError, "_domainkey.": dns.RcodeSuccess,
	} {
		r, err := exchange(s.node.dns, name+zone+".", dns.TypeTXT, s.patience())
		if err != nil {
			return err
		}
		if r.Rcode != want || len(r.Answer) > 0 || len(r.Ns) != 1 || !r.Authoritative {
			return fmt.Errorf("%s: answered\n%v", name, r)
		}
	}
	return nil
}

func (s *seen) askSerial(strict bool) (keep func(), err error) {
	floor := s.serial.Load()
	r, err := exchange(s.node.dns, zone+".", dns.TypeSOA, s.patience())
	if err != nil {
		return nil, err
	}
	if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 {
		return nil, fmt.Errorf("SOA: answered\n%v", r)
	}
	serial := uint64(r.Answer[0].(*dns.SOA).Serial)
	if strict && serial < floor {
		return nil, fmt.Errorf("SOA: serial %d after %d", serial, floor)
	}
	return func() { raise(&s.serial, serial) }, nil
}

// ask returns the key that stands at a name, and whether one does. Anything but
// a record or a denial is an error.
func ask(server, owner string, timeout time.Duration) (key []byte, found bool, err error) {
	name := owner + "." + zone + "."
	r, err := exchange(server, name, dns.TypeTXT, timeout)
	if err != nil {
		return nil, false, err
	}
	switch {
	case !r.Authoritative:
	case r.Rcode == dns.RcodeNameError && len(r.Answer) == 0 && len(r.Ns) == 1:
		return nil, false, nil
	case r.Rcode == dns.RcodeSuccess && len(r.Answer) == 1:
		txt, ok := r.Answer[0].(*dns.TXT)
		if !ok {
			break
		}
		text, ok := strings.CutPrefix(strings.Join(txt.Txt, ""), "v=DKIM1; k=ed25519; p=")
		if !ok {
			break
		}
		key, err := base64.StdEncoding.DecodeString(text)
		return key, true, err
	}
	return nil, false, fmt.Errorf("%s: answered\n%v", owner, r)
}

var errLost = errors.New("no answer")

func exchange(server, name string, qtype uint16, timeout time.Duration) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, qtype)
	c := dns.Client{Timeout: timeout}
	r, _, err := c.Exchange(q, server)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("%s: %w within %v", name, errLost, timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}
