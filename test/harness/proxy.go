package harness

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy in front of a server, with which a test takes the
// network between the two away. Its methods are safe for concurrent use.
type Proxy struct {
	Addr string // where it listens, HOST:PORT

	mu     sync.Mutex
	wake   *sync.Cond
	target string
	mode   proxyMode
	links  map[*link]struct{}
	closed bool
}

type proxyMode int

const (
	passing proxyMode = iota
	cutting
	holding
)

// link is a connection and its other half.
type link struct {
	proxy  *Proxy
	client net.Conn
	server net.Conn // nil as long as it is not dialled
	dead   bool     // held for ever
	closed bool
}

// StartProxy starts a proxy in front of target, HOST:PORT, that passes
// everything. It ends with the test.
func StartProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	l := Listen(tb)
	p := &Proxy{Addr: l.Addr().String(), target: target, links: make(map[*link]struct{})}
	p.wake = sync.NewCond(&p.mu)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			running.Go(func() { p.serve(c) })
		}
	})
	tb.Cleanup(func() {
		_ = l.Close() // ends Accept
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.closeAll()
		running.Wait()
	})
	return p
}

// Cut closes all connections, and each new one at once, until Restore.
func (p *Proxy) Cut() {
	p.set(cutting)
	p.closeAll()
}

// Blackhole lets nothing through, but leaves connections open and takes new
// ones, until Restore: packets vanish, and nobody is told.
func (p *Proxy) Blackhole() { p.set(holding) }

// Hang lets nothing through any more on the connections that are open, which
// stay open. New ones are as they were before.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.dead = true
	}
}

// Restore ends Cut and Blackhole. What was held is delivered.
func (p *Proxy) Restore() { p.set(passing) }

// SetTarget closes all connections and leads new ones to another server.
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	p.target = target
	p.mu.Unlock()
	p.closeAll()
}

// Conns is the number of connections that are open.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

func (p *Proxy) set(m proxyMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	p.wake.Broadcast()
}

func (p *Proxy) closeAll() {
	p.mu.Lock()
	var all []*link
	for l := range p.links {
		all = append(all, l)
	}
	p.mu.Unlock()
	for _, l := range all {
		l.close()
	}
}

func (p *Proxy) serve(client net.Conn) {
	l := &link{proxy: p, client: client}
	p.mu.Lock()
	p.links[l] = struct{}{}
	refuse, target := p.mode == cutting || p.closed, p.target
	p.mu.Unlock()
	defer l.close()
	if refuse || !l.pass() {
		return
	}
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return
	}
	p.mu.Lock()
	l.server = server
	late := l.closed
	p.mu.Unlock()
	if late {
		_ = server.Close() // close did not see it
		return
	}
	var half sync.WaitGroup
	half.Go(func() { l.copy(server, client) })
	l.copy(client, server)
	half.Wait()
}

// pass waits as long as the link is held. It reports false once it is closed.
func (l *link) pass() bool {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	for !l.closed && (l.dead || l.proxy.mode == holding) {
		l.proxy.wake.Wait()
	}
	return !l.closed
}

func (l *link) copy(dst, src net.Conn) {
	defer l.close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if !l.pass() { // an end is held back, too
			return
		}
		if _, werr := dst.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

func (l *link) close() {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	delete(l.proxy.links, l)
	_ = l.client.Close() // whoever reads from it finds out
	if l.server != nil {
		_ = l.server.Close() // likewise
	}
	l.proxy.wake.Broadcast()
}
