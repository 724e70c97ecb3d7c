// Command mapdns is a CoreDNS that answers from a Go map as simply as a plugin
// can: what the frame itself costs. It also has the plugins dkim and etcd, for a
// comparison in the same chain.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/etcd"
	_ "github.com/coredns/coredns/plugin/pprof"

	"github.com/miekg/dns"

	_ "github.com/dkimzone/dkimzone/plugin/dkim"
)

// ballast is that of cmd/coredns, for all plugins alike.
const ballast = 32 << 20

func main() {
	held := make([]byte, ballast)
	defer runtime.KeepAlive(held)
	plugin.Register("map", setup)
	if err := dnsserver.SetDirectives([]string{"bind", "pprof", "errors", "map", "dkim", "etcd"}); err != nil {
		fmt.Fprintln(os.Stderr, "mapdns:", err)
		os.Exit(1)
	}
	coremain.Run()
}

// zone is a zone of TXT records by full name in lower case.
type zone struct {
	records map[string][]string
	soa     dns.RR
}

// setup reads `map FILE`.
func setup(c *caddy.Controller) error {
	c.Next()
	if !c.NextArg() {
		return plugin.Error("map", c.ArgErr())
	}
	z, err := read(c.Val())
	if err != nil {
		return plugin.Error("map", err)
	}
	dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return z })
	return nil
}

// read reads a master file of one line for each record, with names relative to
// its $ORIGIN.
func read(file string) (*zone, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	z := &zone{records: make(map[string][]string)}
	origin := ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		head, data, isTXT := strings.Cut(line, " IN TXT ")
		switch {
		case isTXT:
			owner, _, _ := strings.Cut(head, " ")
			z.records[owner+"."+origin] = strings.Split(strings.Trim(data, `"`), `" "`)
			for rest := owner; ; {
				var more bool
				if _, rest, more = strings.Cut(rest, "."); !more {
					break
				}
				if name := rest + "." + origin; z.records[name] == nil {
					z.records[name] = []string{}
				}
			}
		case strings.HasPrefix(line, "$ORIGIN "):
			origin = strings.TrimPrefix(line, "$ORIGIN ")
		case strings.Contains(line, " IN SOA "):
			if z.soa, err = dns.NewRR(origin + strings.TrimPrefix(line, "@")); err != nil {
				return nil, err
			}
		}
	}
	return z, lines.Err()
}

// Name implements plugin.Handler.
func (*zone) Name() string { return "map" }

// ServeDNS implements plugin.Handler.
func (z *zone) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	q := r.Question[0]
	txt, exists := z.records[strings.ToLower(q.Name)]
	switch {
	case len(txt) > 0 && q.Qtype == dns.TypeTXT:
		m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 3600}, Txt: txt}}
	default:
		m.Ns = []dns.RR{z.soa}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
	}
	if err := w.WriteMsg(m); err != nil {
		return dns.RcodeServerFailure, err
	}
	return dns.RcodeSuccess, nil
}
