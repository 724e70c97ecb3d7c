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
	rounds        = 3 // at most, if it could do more than was measured

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
	var asked, rate float64 // per second
	var udp, tcp *share
	var peak size
	for range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), *faultTime+time.Second/2)
		var polite sync.WaitGroup
		udp, tcp = new(share), new(share)
		for range politeClients {
			polite.Go(func() { n.polite(ctx, "udp", udp) })
		}
		polite.Go(func() { n.polite(ctx, "tcp", tcp) })
		asked, rate = n.flood(t, ctx, overloaded*capacity)
		peak = n.size(t)
		polite.Wait()
		cancel()
		if rate <= 1.25*capacity {
			break
		}
		capacity = rate // the machine was busy with something else
	}
	began := time.Now()
	harness.Eventually(t, recoverLimit, "answers again", func() error {
		_, _, err := ask(n.dns, owner(changing+5))
		return err
	})
	t.Logf("can answer %.0f/s; asked %.0f/s, answered %.0f/s; from %+v to %+v; polite clients got %v over UDP, %v over TCP; again after %v",
		capacity, asked, rate, before, peak, udp, tcp, time.Since(began))
	if asked < leastOverload*capacity {
		t.Errorf("only %.0f questions a second were asked, that is no overload of %.0f", asked, capacity)
	}
	if rate < leastAnswered*capacity {
		t.Errorf("%.0f answers a second, want at least %v of %.0f", rate, leastAnswered, capacity)
	}
	if peak.memory > before.memory+512<<20 {
		t.Errorf("takes %+v, before %+v", peak, before)
	}
	if plugin == "shed" && peak.goroutines > before.goroutines+2000 {
		t.Errorf("takes %+v, before %+v, although it sheds load", peak, before)
	}
	if asked, answered := udp.asked.Load(), udp.answered.Load(); float64(answered) < leastShare*float64(asked) {
		t.Errorf("over UDP a polite client got %v", udp)
	}
	if asked, answered := tcp.asked.Load(), tcp.answered.Load(); asked == 0 || answered < asked {
		t.Errorf("over TCP a polite client got %v", tcp)
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
