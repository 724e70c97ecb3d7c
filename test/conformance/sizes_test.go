package conformance_test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// Each key is one TXT record, and its character-strings are as long as can be
// (RFC 6376 §3.6.2.2, RFC 1035 §3.3.14).
func (n *node) testRecords(t *testing.T) {
	for owner, rec := range testKeys() {
		t.Run(owner, func(t *testing.T) {
			n.both(t, func(t *testing.T, s server, network string) {
				m := new(dns.Msg)
				if err := m.Unpack(ask(t, "tcp", s.addr, pack(t, query(owner+"."+zone+".", dns.TypeTXT)))); err != nil {
					t.Fatal(err)
				}
				if len(m.Answer) != 1 || m.Answer[0].Header().Ttl != rec.TTL {
					t.Fatalf("reply %v, want one record with TTL %d", m, rec.TTL)
				}
				strs := m.Answer[0].(*dns.TXT).Txt
				for i, str := range strs {
					if len(str) == 0 || i < len(strs)-1 && len(str) != 255 {
						t.Errorf("string %d of %d has %d octets", i+1, len(strs), len(str))
					}
				}
				text := strings.Join(strs, "")
				if want := rec.Record().String(); text != want {
					t.Errorf("text %q, want %q", text, want)
				}
				if !strings.HasSuffix(text, "; p="+base64.StdEncoding.EncodeToString(rec.PublicKey)) {
					t.Errorf("text %q does not end with the key", text)
				}
				var length int
				if _, err := fmt.Sscanf(owner, "text%d-", &length); err == nil && len(text) != length {
					t.Errorf("text of %d octets, want %d", len(text), length)
				}
			})
		})
	}
}

// A reply over UDP has no more octets than the client takes, and never more than
// 1232; it is cut only if it has to be, and is whole over TCP (RFC 2181 §9,
// RFC 6891 §6.2.5, RFC 9715 §3.1).
func (n *node) testSizes(t *testing.T) {
	sizes := map[string]func(*dns.Msg){"no EDNS": func(*dns.Msg) {}}
	for _, size := range []uint16{0, 1, 511, 512, 513, 600, 700, 800, 1000, 1231, 1232, 1233, 4096, 65535} {
		sizes[fmt.Sprint(size)] = edns(size)
	}
	truncated := 0
	for owner := range testKeys() {
		for name, edit := range sizes {
			t.Run(owner+" "+name, func(t *testing.T) {
				q := query(owner+"."+zone+".", dns.TypeTXT, edit)
				packet := pack(t, q)
				limit := dns.MinMsgSize
				if opt := q.IsEdns0(); opt != nil {
					limit = max(limit, min(int(opt.UDPSize()), 1232))
				}
				for _, s := range n.servers {
					overUDP, overTCP := ask(t, "udp", s.addr, packet), ask(t, "tcp", s.addr, packet)
					var u, w dns.Msg
					if err := u.Unpack(overUDP); err != nil {
						t.Fatal(err)
					}
					if err := w.Unpack(overTCP); err != nil {
						t.Fatal(err)
					}
					if w.Truncated || len(w.Answer) != 1 {
						t.Fatalf("over TCP: %v", &w)
					}
					if len(overUDP) > limit {
						t.Errorf("%d octets over UDP, want at most %d", len(overUDP), limit)
					}
					w.Compress = true
					if fits := w.Len() <= limit; u.Truncated == fits {
						t.Errorf("TC is %v, though the whole reply has %d octets of %d", u.Truncated, w.Len(), limit)
					}
					if u.Truncated {
						truncated++
						if want := len(packet); len(u.Answer)+len(u.Ns) != 0 || len(overUDP) != want {
							t.Errorf("cut reply has %d octets, want the question alone with %d:\n%v", len(overUDP), want, &u)
						}
						continue
					}
					if diff := cmp.Diff(records(w.Answer), records(u.Answer)); diff != "" {
						t.Errorf("answer (-TCP +UDP):\n%s", diff)
					}
				}
			})
		}
	}
	if truncated == 0 || truncated == len(testKeys())*len(slices.Collect(maps.Keys(sizes)))*len(n.servers) {
		t.Errorf("%d replies were cut", truncated)
	}
}

// longQueriesRow is a row of docs/divergences.md.
const longQueriesRow = "long-queries"

// A query over UDP of more than 512 octets is cut by CoreDNS before anybody
// reads it.
func (n *node) testLongUDP(t *testing.T) {
	for _, size := range []int{511, 512, 513, 600} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			want := okSOA + " edns0 1232"
			if size > dns.MinMsgSize {
				want = "QUERY FORMERR 1 0 0 0"
			}
			q := query(zone+".", dns.TypeSOA, edns(1232))
			q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{}}
			q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, size-q.Len())}}
			packet := pack(t, q)
			for _, s := range n.servers {
				if got := line(t, packet, ask(t, "udp", s.addr, packet)); len(packet) != size || got != want {
					t.Errorf("%s: reply to %d octets %q, want %q", s.name, len(packet), got, want)
				}
			}
		})
	}
}
