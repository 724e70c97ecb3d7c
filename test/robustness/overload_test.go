package robustness_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/harness"
)

const (
	overloaded    = 5 // times as many questions as the node can answer
	leastOverload = 3 // on a machine that is too busy to ask them all
	sockets       = 4
	outstanding   = 16 // questions of a socket, when what the node can do is measured
	measured      = 300 * time.Millisecond
	windows       = 3 // of which the best counts
	rounds        = 5 // at most, until nothing is wrong in one

	// A node that is asked too much answers at least this share of what it can.
	leastAnswered = 0.1
	// A client that behaves gets at least this share of its questions answered
	// over UDP, where the fair one would be 1 in overloaded.
	leastShare    = 0.03
	politeClients = 8
	politeWait    = 100 * time.Millisecond
	recoverLimit  = 2 * time.Second
)

// overload asks a node five times as much as it can answer. The node has one
// processor, so that the clients have another one.
func (s *site) overload(t *testing.T, name, plugin string) {
	t.Helper()
	n := newNode(s, "coredns under "+name, plugin)
	n.env = []string{"GOMAXPROCS=1"}
	n.start()
	n.waitReady(t)
	capacity := n.capacity(t)
	s.model.query(t, n)
	s.model.settle(t, n)
	n.tells(t, []string{listing("start")})
	before := n.size(t)

	n.seen.set(&n.seen.lossy, true)
	for round := 1; ; round++ {
		o := n.onslaught(t, capacity)
		wrong := o.wrong()
		t.Logf("round %d: can answer %.0f/s; %v; %q", round, capacity, o, wrong)
		if plugin == "shed" && o.peak.goroutines > before.goroutines+2000 {
			t.Errorf("takes %+v, before %+v, although it sheds load", o.peak, before)
		}
		if o.peak.memory > before.memory+512<<20 {
			t.Errorf("takes %+v, before %+v", o.peak, before)
		}
		if len(wrong) == 0 {
			break
		}
		if round == rounds { // else the machine may have been busy with something else
			t.Errorf("%q in each of %d rounds", wrong, rounds)
			break
		}
		capacity = max(capacity, o.answered)
	}

	n.seen.set(&n.seen.lossy, false)
	s.model.settle(t, n)
	s.fresh(t, n)
	harness.Eventually(t, limit, "as many goroutines as before", func() error {
		if now := n.size(t); now.goroutines > before.goroutines+30 {
			return errors.New("more")
		}
		return nil
	})
	n.tells(t, atMost...)
	n.seen.set(&n.seen.down, true)
}

// onslaught is how a node took it to be asked too much.
type onslaught struct {
	capacity        float64 // answers a second
	asked, answered float64 // per second
	peak            size
	udp, tcp        *share // of polite clients
	recovery        time.Duration
}

// onslaught asks a node too much for a while.
func (n *node) onslaught(t *testing.T, capacity float64) onslaught {
	t.Helper()
	o := onslaught{capacity: capacity, udp: new(share), tcp: new(share)}
	ctx, cancel := context.WithTimeout(t.Context(), *faultTime+time.Second/2)
	defer cancel()
	var polite sync.WaitGroup
	for range politeClients {
		polite.Go(func() { n.polite(ctx, "udp", o.udp) })
	}
	polite.Go(func() { n.polite(ctx, "tcp", o.tcp) })
	o.asked, o.answered = n.flood(t, ctx, overloaded*capacity)
	o.peak = n.size(t)
	polite.Wait()
	began := time.Now()
	harness.Eventually(t, limit, "answers again", func() error {
		_, _, err := ask(n.dns, owner(changing+5), politeWait)
		return err
	})
	o.recovery = time.Since(began)
	return o
}

// wrong says what was not as it is to be, or was no overload.
func (o onslaught) wrong() (all []string) {
	udp, tcp := float64(o.udp.answered.Load())/float64(o.udp.asked.Load()), float64(o.tcp.answered.Load())/float64(o.tcp.asked.Load())
	for what, wrong := range map[string]bool{
		"it could answer more than was measured":     o.answered > 1.25*o.capacity,
		"too few questions for an overload":          o.asked < leastOverload*o.capacity,
		"too few answers":                            o.answered < leastAnswered*o.capacity,
		"too few answers to polite clients over UDP": !(udp >= leastShare),
		"too few answers to polite clients over TCP": !(tcp >= 1),
		"it takes long to answer again":              o.recovery > recoverLimit,
	} {
		if wrong {
			all = append(all, what)
		}
	}
	return all
}

// String implements fmt.Stringer.
func (o onslaught) String() string {
	return fmt.Sprintf("asked %.0f/s, answered %.0f/s; takes %+v; polite clients got %v over UDP, %v over TCP; again after %v",
		o.asked, o.answered, o.peak, o.udp, o.tcp, o.recovery)
}

// packets are questions for the names there are.
func packets(t *testing.T) [][]byte {
	t.Helper()
	var all [][]byte
	for i := range names {
		q, err := new(dns.Msg).SetQuestion(owner(i)+"."+zone+".", dns.TypeTXT).Pack()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, q)
	}
	return all
}

// capacity is how many answers a second a node gives to clients that wait for
// them.
func (n *node) capacity(t *testing.T) float64 {
	t.Helper()
	best := 0.0
	for range windows {
		best = max(best, n.closedLoop(t))
	}
	return best
}

func (n *node) closedLoop(t *testing.T) float64 {
	t.Helper()
	all := packets(t)
	var answers atomic.Int64
	var clients sync.WaitGroup
	begin := time.Now()
	end := begin.Add(measured)
	for k := range sockets {
		c, err := net.Dial("udp", n.dns)
		if err != nil {
			t.Fatal(err)
		}
		clients.Go(func() {
			defer c.Close()
			buf := make([]byte, 2048)
			i, waiting := k, 0
			for time.Now().Before(end) {
				for ; waiting < outstanding; waiting++ {
					i++
					if _, err := c.Write(all[i%len(all)]); err != nil {
						t.Error(err)
						return
					}
				}
				if err := c.SetReadDeadline(time.Now().Add(measured / 4)); err != nil {
					t.Error(err)
					return
				}
				switch _, err := c.Read(buf); {
				case err == nil:
					answers.Add(1)
					waiting--
				case errors.Is(err, os.ErrDeadlineExceeded):
					waiting = 0 // all of them are lost
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
	return float64(answers.Load()) / time.Since(begin).Seconds()
}

// flood sends questions at a rate, whatever comes back, until ctx ends. It
// returns how many were asked and answered per second.
func (n *node) flood(t *testing.T, ctx context.Context, rate float64) (asking, answering float64) {
	t.Helper()
	all := packets(t)
	const interval = time.Millisecond
	var asked, answered atomic.Int64
	var clients sync.WaitGroup
	begin := time.Now()
	for k := range sockets {
		c, err := net.Dial("udp", n.dns)
		if err != nil {
			t.Fatal(err)
		}
		clients.Go(func() {
			buf := make([]byte, 2048)
			for {
				if _, err := c.Read(buf); err != nil {
					return // closed
				}
				answered.Add(1)
			}
		})
		clients.Go(func() {
			defer c.Close()
			tick := time.NewTicker(interval)
			defer tick.Stop()
			i := k
			for mine := 0.0; ; {
				for due := time.Since(begin).Seconds() * rate / sockets; mine < due; mine++ {
					i++
					if _, err := c.Write(all[i%len(all)]); err == nil {
						asked.Add(1)
					}
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	clients.Wait()
	took := time.Since(begin).Seconds()
	return float64(asked.Load()) / took, float64(answered.Load()) / took
}

// share is how many of a client's questions were answered.
type share struct{ asked, answered atomic.Int64 }

// String implements fmt.Stringer.
func (s *share) String() string {
	return fmt.Sprintf("%d of %d", s.answered.Load(), s.asked.Load())
}

// polite is a client with one question at a time, and with patience.
func (n *node) polite(ctx context.Context, network string, s *share) {
	q := new(dns.Msg).SetQuestion(owner(changing+5)+"."+zone+".", dns.TypeTXT)
	c := dns.Client{Net: network, Timeout: politeWait}
	if network == "tcp" {
		c.Timeout = answerTimeout
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		q.Id = dns.Id()
		s.asked.Add(1)
		if r, _, err := c.Exchange(q, n.dns); err == nil && len(r.Answer) == 1 {
			s.answered.Add(1)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
