//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/dataset"
	"github.com/dkimzone/dkimzone/test/peers"
)

// nowhere is an endpoint that refuses connections.
const nowhere = "http://127.0.0.1:1"

// node is a running coredns with dkim.
type node struct {
	*process
	addr  string
	first time.Duration // from the start to the first answer
}

// startNode starts a DNS node with its file in dir, and returns when it answers
// for the zone's last record.
func (b *bench) startNode(ctx context.Context, dir, endpoint string, cpu int) (*node, error) {
	port, err := peers.FreePort()
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`%s:%d {
	bind 127.0.0.1
	errors
	transfer {
		to *
	}
	dkim {
		endpoint %s
		data_dir %s
		reconcile 24h
	}
}
`, dataset.Zone, port, endpoint, dir)
	corefile := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		return nil, err
	}
	began := time.Now()
	p, err := spawn(dir, cpu, b.path("coredns"), "-conf", corefile)
	if err != nil {
		return nil, err
	}
	n := &node{process: p, addr: fmt.Sprintf("127.0.0.1:%d", port)}
	question := new(dns.Msg).SetQuestion(b.set.Owner(b.set.Len()-1)+"."+dataset.Zone+".", dns.TypeTXT)
	client := dns.Client{Timeout: 100 * time.Millisecond}
	for {
		reply, _, err := client.ExchangeContext(ctx, question, n.addr)
		if err == nil && reply.Rcode == dns.RcodeSuccess && len(reply.Answer)+len(reply.Question) > 0 && (reply.Truncated || len(reply.Answer) == 1) {
			n.first = time.Since(began)
			return n, nil
		}
		if err := errors.Join(ctx.Err(), p.ended()); err != nil {
			return nil, errors.Join(err, p.stop())
		}
		time.Sleep(time.Millisecond)
	}
}

// serial is the zone's at the node.
func (n *node) serial(ctx context.Context) (uint32, error) {
	client := dns.Client{Timeout: time.Second}
	reply, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dataset.Zone+".", dns.TypeSOA), n.addr)
	if err != nil {
		return 0, err
	}
	if len(reply.Answer) == 1 {
		if soa, ok := reply.Answer[0].(*dns.SOA); ok {
			return soa.Serial, nil
		}
	}
	return 0, fmt.Errorf("no SOA record: %v", reply)
}

// wait returns when the node has all changes up to rev.
func (n *node) wait(ctx context.Context, rev int64) error {
	for {
		serial, err := n.serial(ctx)
		if err == nil && int64(serial) >= rev { // a bench does not come to 2^32
			return nil
		}
		if err := errors.Join(ctx.Err(), n.ended()); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// settle returns when the node has nothing more to do: it may have to write its
// file after it has listed the zone, for which it takes its time to begin.
func (n *node) settle(ctx context.Context) error {
	const (
		idle    = 30 * time.Millisecond // of a second
		seconds = 5
	)
	for quiet := 0; quiet < seconds; quiet++ {
		before, err1 := n.cpu()
		time.Sleep(time.Second)
		after, err2 := n.cpu()
		if err := errors.Join(err1, err2, ctx.Err(), n.ended()); err != nil {
			return err
		}
		if after-before > idle {
			quiet = -1
		}
	}
	return nil
}

// nodeDir is a directory with a DNS node's file of the zone as it was loaded.
// What the file has is made on the first use, from etcd.
func (b *bench) nodeDir(ctx context.Context, name string, e *etcd) (string, error) {
	file := dataset.Zone + ".db"
	kept := b.path(file)
	if _, err := os.Stat(kept); errors.Is(err, fs.ErrNotExist) {
		if err := b.makeFile(ctx, e, kept); err != nil {
			return "", err
		}
	}
	dir, err := b.fresh(name)
	if err != nil {
		return "", err
	}
	return dir, copyFile(filepath.Join(dir, file), kept)
}

func (b *bench) makeFile(ctx context.Context, e *etcd, kept string) (err error) {
	if e == nil {
		if e, err = b.startEtcd(ctx, otherCPU); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.stop()) }()
	}
	dir, err := b.fresh("node.first")
	if err != nil {
		return err
	}
	say("a DNS node reads the zone from etcd")
	n, err := b.startNode(ctx, dir, "http://"+e.address, measuredCPU)
	if err != nil {
		return err
	}
	peak, err := n.memory("VmHWM")
	say("first answer after %.2f s, peak %.0f MiB", n.first.Seconds(), peak)
	if err := errors.Join(err, n.stop()); err != nil { // which writes the file
		return err
	}
	return os.Rename(filepath.Join(dir, dataset.Zone+".db"), kept)
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// proxy passes connections on to a server, unless it is cut.
type proxy struct {
	addr   string
	target string
	orders chan bool // true: cut
	done   chan struct{}
}

func startProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{addr: l.Addr().String(), target: target, orders: make(chan bool), done: make(chan struct{})}
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			accepted <- c
		}
	}()
	go func() {
		defer close(p.done)
		var open []net.Conn
		shut := func() {
			for _, c := range open {
				_ = c.Close() // one of the two may be closed already
			}
			open = nil
		}
		defer shut()
		for cut := false; ; {
			select {
			case order, ok := <-p.orders:
				if !ok {
					_ = l.Close()
					for c := range accepted {
						_ = c.Close()
					}
					return
				}
				cut = order
				if cut {
					shut()
				}
			case c := <-accepted:
				s, err := net.Dial("tcp", p.target)
				if cut || err != nil {
					_ = c.Close()
					continue
				}
				open = append(open, c, s)
				go pass(c, s)
				go pass(s, c)
			}
		}
	}()
	return p, nil
}

func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from) // a cut is no news
	_, _ = to.Close(), from.Close()
}

func (p *proxy) cut(yes bool) { p.orders <- yes }

func (p *proxy) stop() {
	close(p.orders)
	<-p.done
}
