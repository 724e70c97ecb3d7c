package cli

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// ListenBoth binds a port for TCP and UDP. One that is free for TCP may be taken
// for UDP, so it tries some.
func ListenBoth() (net.Listener, net.PacketConn, error) {
	var all error
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, p, nil
		}
		all = errors.Join(all, err, l.Close())
	}
	return nil, nil, all
}

// startNameServer serves what answer puts into a reply, over UDP and TCP.
func startNameServer(t *testing.T, answer func(reply *dns.Msg, tcp bool)) site {
	t.Helper()
	l, p, err := ListenBoth()
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(q)
		reply.Authoritative = true
		answer(reply, w.RemoteAddr().Network() == "tcp")
		_ = w.WriteMsg(reply)
	})
	for _, server := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: p, Handler: handler}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return site{"ns1.keys.example.net", netip.MustParseAddrPort(l.Addr().String())}
}

func records(t *testing.T, texts ...string) []dns.RR {
	t.Helper()
	var all []dns.RR
	for _, text := range texts {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	return all
}

func TestCheck(t *testing.T) {
	const zone, owner, record = "keys.example.net", "s-a._domainkey.keys.example.net", "v=DKIM1; k=rsa; p=AAAA"
	soa := records(t, "keys.example.net. 60 IN SOA ns1.keys.example.net. hostmaster.keys.example.net. 42 1 1 1 1")
	txt := records(t, owner+`. 60 IN TXT "v=DKIM1; k=rsa; " "p=AAAA"`)
	alias := records(t, owner+". 60 IN CNAME x.example.")
	good := func(reply *dns.Msg) {
		if reply.Question[0].Qtype == dns.TypeSOA {
			reply.Answer = soa
		} else {
			reply.Answer = txt
		}
	}
	tests := []struct {
		name     string
		revision int64
		answer   func(reply *dns.Msg, tcp bool)
		want     string // "": serves it
	}{
		{"good", 42, func(reply *dns.Msg, _ bool) { good(reply) }, ""},
		{"later than wanted", 41, func(reply *dns.Msg, _ bool) { good(reply) }, ""},
		{"behind", 43, func(reply *dns.Msg, _ bool) { good(reply) }, "is at serial 42, 43 is wanted"},
		{"over TCP", 42, func(reply *dns.Msg, tcp bool) {
			if reply.Truncated = !tcp; tcp {
				good(reply)
			}
		}, ""},
		{"refused", 42, func(reply *dns.Msg, _ bool) { reply.Rcode = dns.RcodeRefused }, "answers REFUSED to SOA keys.example.net"},
		{"a cache", 42, func(reply *dns.Msg, _ bool) {
			good(reply)
			reply.Authoritative = false
		}, "has no authority to answer SOA keys.example.net"},
		{"no SOA record", 42, func(*dns.Msg, bool) {}, "has no SOA record of keys.example.net"},
		{"another record in place of SOA", 42, func(reply *dns.Msg, _ bool) { reply.Answer = txt }, "has no SOA record of keys.example.net"},
		{"no TXT record", 42, func(reply *dns.Msg, _ bool) {
			if reply.Question[0].Qtype == dns.TypeSOA {
				reply.Answer = soa
			}
		}, "has no TXT record at " + owner},
		{"a name that is not there", 42, func(reply *dns.Msg, _ bool) {
			if reply.Answer = soa; reply.Question[0].Qtype == dns.TypeTXT {
				reply.Answer, reply.Rcode = nil, dns.RcodeNameError
			}
		}, "answers NXDOMAIN to TXT " + owner},
		{"a CNAME", 42, func(reply *dns.Msg, _ bool) {
			if reply.Answer = soa; reply.Question[0].Qtype == dns.TypeTXT {
				reply.Answer = alias
			}
		}, "has no TXT record at " + owner},
		{"two TXT records", 42, func(reply *dns.Msg, _ bool) {
			if reply.Answer = soa; reply.Question[0].Qtype == dns.TypeTXT {
				reply.Answer = append(records(t, owner+`. 60 IN TXT "x"`), txt...)
			}
		}, "has another TXT record at " + owner + " than the key's"},
		{"another TXT record", 42, func(reply *dns.Msg, _ bool) {
			if reply.Answer = soa; reply.Question[0].Qtype == dns.TypeTXT {
				reply.Answer = records(t, owner+`. 60 IN TXT "v=DKIM1; k=rsa; p="`)
			}
		}, "has another TXT record at " + owner + " than the key's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startNameServer(t, tt.answer)
			got := ""
			if err := s.check(t.Context(), zone, served{revision: tt.revision, records: map[string]string{owner: record}}); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("check says %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := netip.MustParseAddrPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	err = site{"ns1.keys.example.net", free}.check(t.Context(), "keys.example.net", served{revision: 1})
	if err == nil || !strings.HasPrefix(err.Error(), "does not answer SOA keys.example.net (") || strings.Contains(err.Error(), free.String()) {
		t.Errorf("check says %v, want that it does not answer, without the address", err)
	}
}

// TestAwait: the last answer before time is up is what is missing.
func TestAwait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var asked atomic.Int32
	s := startNameServer(t, func(reply *dns.Msg, _ bool) {
		if asked.Add(1) == 3 {
			cancel()
		}
		reply.Rcode = dns.RcodeServerFailure
	})
	want := "ns1.keys.example.net at " + s.addr.String() + " answers SERVFAIL to SOA keys.example.net"
	if got := s.await(ctx, "keys.example.net", served{revision: 1}); got != want {
		t.Errorf("await says %q, want %q", got, want)
	}
	begin := time.Now()
	if got := s.await(ctx, "keys.example.net", served{revision: 1}); !strings.HasSuffix(got, "has not been asked in time") {
		t.Errorf("await without time says %q", got)
	}
	if spent := time.Since(begin); spent > answerTime {
		t.Errorf("await without time took %s", spent)
	}
}

func TestReached(t *testing.T) {
	tests := []struct {
		name     string
		revision int64
		serial   uint32
		want     bool
	}{
		{"equal", 42, 42, true},
		{"before", 42, 41, false},
		{"after", 42, 43, true},
		{"the name server has gone around", 1<<32 - 2, 5, true},
		{"the revision has gone around", 1<<32 + 5, 1<<32 - 2, false},
		{"low 32 bits", 1<<32 + 5, 5, true},
		{"0 is 1", 1 << 32, 1, true},
		{"0 is 1, before", 1 << 32, 1<<32 - 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := reached(tt.serial, serial(tt.revision)); got != tt.want {
				t.Errorf("serial %d for revision %d: %t, want %t", tt.serial, tt.revision, got, tt.want)
			}
		})
	}
}
