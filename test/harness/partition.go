package harness

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
)

// StartDivisibleCluster starts a cluster whose members can be cut off from each
// other. They find each other by names that only a proxy of each one's own
// knows, which leads to a Proxy for each pair.
func StartDivisibleCluster(tb testing.TB, pki *PKI) *Cluster {
	tb.Helper()
	return startCluster(tb, pki, 3, true)
}

// Isolate lets no packet through any more between member i and the others,
// which nobody is told.
func (c *Cluster) Isolate(i int) {
	for from, links := range c.links {
		for to, p := range links {
			if from == i || to == i {
				p.Blackhole()
			}
		}
	}
}

// Heal ends Isolate. What was held back is delivered.
func (c *Cluster) Heal() {
	for _, links := range c.links {
		for _, p := range links {
			p.Restore()
		}
	}
}

// connect makes the proxies. Members are reached as hosts and listen at peers.
func (c *Cluster) connect(tb testing.TB, hosts, peers []string) {
	tb.Helper()
	for _, m := range c.Members {
		var links []*Proxy
		for _, peer := range peers {
			links = append(links, StartProxy(tb, peer))
		}
		c.links = append(c.links, links)
		gate := startGate(tb, func(host string) string {
			if j := slices.Index(hosts, host); j >= 0 {
				return links[j].Addr
			}
			return ""
		})
		m.env = []string{"HTTPS_PROXY=http://" + gate, "https_proxy=", "NO_PROXY=", "no_proxy="}
	}
}

// startGate starts an HTTP proxy for CONNECT alone, which asks find where a host
// is, and returns its address. It ends with the test.
func startGate(tb testing.TB, find func(host string) string) string {
	tb.Helper()
	l := Listen(tb)
	var mu sync.Mutex
	open := make(map[net.Conn]struct{})
	ended := false
	keep := func(c net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		open[c] = struct{}{}
		return !ended
	}
	drop := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		delete(open, c)
		_ = c.Close() // whoever reads from it finds out
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			running.Go(func() {
				defer drop(c)
				if keep(c) {
					tunnel(c, find, keep, drop)
				}
			})
		}
	})
	tb.Cleanup(func() {
		_ = l.Close() // ends Accept
		mu.Lock()
		ended = true
		for c := range open {
			_ = c.Close() // ends its tunnel
		}
		mu.Unlock()
		running.Wait()
	})
	return l.Addr().String()
}

// tunnel serves one connection to a gate.
func tunnel(c net.Conn, find func(host string) string, keep func(net.Conn) bool, drop func(net.Conn)) {
	in := bufio.NewReader(c)
	req, err := http.ReadRequest(in)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	out, err := net.Dial("tcp", find(req.Host))
	if err != nil {
		return
	}
	defer drop(out)
	if !keep(out) {
		return
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(c, out) // an error is an end as well
		drop(c)
	})
	_, _ = io.Copy(out, in) // likewise
	drop(out)
	back.Wait()
}
