package robustness_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/harness"
)

// What operators and clients can do to a node: no answer over UDP may be lost
// but under overload, and nothing may be left behind.
func TestClients(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	n := s.nodes[0]

	t.Run("reloads", func(t *testing.T) {
		before := n.size(t)
		stop := s.model.writing(t)
		const reloads = 100
		for i := range reloads {
			if i%10 == 0 { // a Corefile that is the same is read again, too
				n.touchCorefile(t, i)
			}
			n.Reload()
			harness.Eventually(t, limit, "reload", func() error {
				if done := strings.Count(n.Output(), "Reloading complete"); done <= i {
					return fmt.Errorf("%d of %d", done, i+1)
				}
				return nil
			})
		}
		stop()
		s.model.settle(t, n)
		n.waitSize(t, before)
		// Comparisons come by the clock.
		if v := n.mustMetric(t, resyncs) - n.mustMetric(t, resyncs+`{cause="periodic"`); v != 1 {
			t.Errorf("the zone was listed %v times, want once", v)
		}
		s.fresh(t, n)
		n.tells(t, nothing...)
	})

	t.Run("slow TCP clients", func(t *testing.T) {
		before := n.size(t)
		ctx, cancel := context.WithTimeout(t.Context(), *faultTime+2*time.Second)
		defer cancel()
		var slow sync.WaitGroup
		for range 150 {
			slow.Go(func() { n.tcp(t, ctx, idle) })
		}
		for range 50 {
			slow.Go(func() { n.tcp(t, ctx, octetByOctet) })
		}
		for range 20 {
			slow.Go(func() { n.tcp(t, ctx, neverReads) })
		}
		// Others are served over TCP meanwhile.
		for ctx.Err() == nil {
			q := new(dns.Msg).SetQuestion(owner(changing+5)+"."+zone+".", dns.TypeTXT)
			c := dns.Client{Net: "tcp", Timeout: answerTimeout}
			if r, _, err := c.Exchange(q, n.dns); err != nil || len(r.Answer) != 1 {
				t.Fatalf("over TCP: %v, %v", r, err)
			}
		}
		now := n.size(t)
		if now.memory > before.memory+garbage() {
			t.Errorf("takes %+v, before %+v", now, before)
		}
		slow.Wait()
		s.model.settle(t, n)
		n.waitSize(t, before)
		s.fresh(t, n)
		n.tells(t, nothing...)
	})

	for name, plugin := range map[string]string{"overload": "", "overload with shed": "shed"} {
		t.Run(name, func(t *testing.T) { s.overload(t, name, plugin) })
	}
}

func (n *node) touchCorefile(t *testing.T, i int) {
	t.Helper()
	f, err := os.OpenFile(n.corefile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = fmt.Fprintf(f, "# change %d\n", i); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// tcp is a client over TCP that behaves as it likes until ctx ends or the
// server has had enough.
func (n *node) tcp(t *testing.T, ctx context.Context, behave func(context.Context, net.Conn, []byte)) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.dns)
	if err != nil {
		return // the limit of the server, or the end
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	q, err := new(dns.Msg).SetQuestion(owner(changing+5)+"."+zone+".", dns.TypeTXT).Pack()
	if err != nil {
		t.Error(err)
		return
	}
	behave(ctx, c, append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
}

func idle(_ context.Context, c net.Conn, _ []byte) { _, _ = io.Copy(io.Discard, c) }

func octetByOctet(ctx context.Context, c net.Conn, q []byte) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := range q {
		if _, err := c.Write(q[i : i+1]); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func neverReads(_ context.Context, c net.Conn, q []byte) {
	for {
		if _, err := c.Write(q); err != nil {
			return
		}
	}
}
