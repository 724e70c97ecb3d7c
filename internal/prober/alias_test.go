package prober

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

const good = "selector1._domainkey CNAME " + target + "."

func TestAlias(t *testing.T) {
	const right = owner + ". IN CNAME " + target + "."
	tests := []struct {
		name    string
		records string
		second  string // records of the other server; "" for the same
		owner   string
		want    Class
		found   []string
		hint    string // part of it
	}{
		{name: "good", records: good, want: OK, found: []string{right}},
		{name: "upper case", records: strings.ToUpper(good), want: OK, found: []string{right}},
		{name: "delegated below", records: "_domainkey NS ns1.hoster.net.", want: OK, found: []string{right}},
		{name: "missing", want: Missing, hint: "Add: " + right},
		{name: "empty non-terminal", records: "a.selector1._domainkey A 192.0.2.9", want: Missing, hint: "Add: " + right},
		{name: "no such domain", owner: "selector1._domainkey.unknown.dk", want: Missing, hint: "The domain unknown.dk does not exist"},
		{
			name: "TXT that is no key", records: `selector1._domainkey TXT "v=spf1 -all"`, want: Missing,
			found: []string{owner + `. IN TXT "v=spf1 -all"`}, hint: "no key",
		},
		{
			name: "elsewhere", records: "selector1._domainkey CNAME web.hoster.net.", want: WrongTarget,
			found: []string{owner + ". IN CNAME web.hoster.net.", "web.hoster.net. IN A 203.0.113.9"},
			hint:  "Delete: " + owner + ". IN CNAME web.hoster.net. Add instead: " + right,
		},
		{
			name: "to nothing", records: "selector1._domainkey CNAME gone.hoster.net.", want: WrongTarget,
			found: []string{owner + ". IN CNAME gone.hoster.net."}, hint: "Add instead: " + right,
		},
		{
			name: "chain to nothing", records: "selector1._domainkey CNAME dangling.hoster.net.", want: WrongTarget,
			found: []string{owner + ". IN CNAME dangling.hoster.net.", "dangling.hoster.net. IN CNAME gone.hoster.net."},
		},
		{
			name: "other owner name of ours", records: "selector1._domainkey CNAME selector1-other._domainkey.keys.example.net.", want: OtherDomainTarget,
			found: []string{owner + ". IN CNAME selector1-other._domainkey.keys.example.net."}, hint: "another domain's key",
		},
		{
			name: "owner twice", records: "selector1._domainkey.spamtrap.dk CNAME " + target + ".", want: DoubledSuffix,
			found: []string{owner + ".spamtrap.dk. IN CNAME " + target + "."},
			hint:  "Delete: " + owner + ".spamtrap.dk. IN CNAME " + target + ". Add instead: " + right + " (in many editors the name is entered as selector1._domainkey)",
		},
		{
			name: "owner and target twice", records: "selector1._domainkey.spamtrap.dk CNAME " + target, want: DoubledSuffix,
			found: []string{owner + ".spamtrap.dk. IN CNAME " + target + ".spamtrap.dk."}, hint: right,
		},
		{
			name: "target twice", records: "selector1._domainkey CNAME " + target, want: DoubledSuffix,
			found: []string{owner + ". IN CNAME " + target + ".spamtrap.dk."}, hint: "a dot at its end",
		},
		{
			name: "zone twice, domain below it", owner: "selector1._domainkey.mail.spamtrap.dk",
			records: "selector1._domainkey.mail.spamtrap.dk CNAME " + target + ".", want: DoubledSuffix,
			found: []string{"selector1._domainkey.mail.spamtrap.dk.spamtrap.dk. IN CNAME " + target + "."},
			hint:  "entered as selector1._domainkey.mail)",
		},
		{
			name: "domain twice, below its zone", owner: "selector1._domainkey.mail.spamtrap.dk",
			records: "selector1._domainkey.mail.spamtrap.dk.mail CNAME " + target + ".", want: DoubledSuffix,
			found: []string{"selector1._domainkey.mail.spamtrap.dk.mail.spamtrap.dk. IN CNAME " + target + "."},
		},
		{
			name: "flattened", records: `selector1._domainkey TXT "` + record[:20] + `" "` + record[20:] + `"`, want: FlattenedTXT,
			found: []string{owner + `. IN TXT "` + record + `"`}, hint: "breaks at the next rotation",
		},
		{
			name: "the key with other tags", records: `selector1._domainkey TXT "v=DKIM1; h=sha256; k=ed25519; t=s; ` + record[len("v=DKIM1; k=ed25519; "):] + `;"`, want: FlattenedTXT,
			hint: "breaks at the next rotation",
		},
		{
			name: "chain to a copy", records: "selector1._domainkey CNAME copy\n" + `copy TXT "` + record + `"`, want: FlattenedTXT,
			hint: "leads to a copy of it in a TXT record, which breaks at the next rotation. Delete: " + owner + ". IN CNAME copy.spamtrap.dk. Add instead: " + right,
		},
		{
			name: "chain to a copy of another key", records: "selector1._domainkey CNAME copy\n" + `copy TXT "v=DKIM1; p=AAAA"`, want: WrongTarget,
		},
		{
			name: "copy of another key", records: `selector1._domainkey TXT "v=DKIM1; p=AAAA"`, want: StaleTXT,
			found: []string{owner + `. IN TXT "v=DKIM1; p=AAAA"`}, hint: `Delete: ` + owner + `. IN TXT "v=DKIM1; p=AAAA" Add instead: ` + right,
		},
		{
			name: "two keys", records: `selector1._domainkey TXT "` + record + "\"\n" + `selector1._domainkey TXT "v=DKIM1; p=AAAA"`, want: StaleTXT,
			found: []string{owner + `. IN TXT "` + record + `"`, owner + `. IN TXT "v=DKIM1; p=AAAA"`}, hint: `" and ` + owner,
		},
		{
			name: "copy beside", records: good + "\n" + `selector1._domainkey TXT "v=DKIM1; p=AAAA"`, want: StaleTXT,
			found: []string{right, owner + `. IN TXT "v=DKIM1; p=AAAA"`}, hint: "Nothing may stand beside the CNAME, which is to be: " + right,
		},
		{name: "address", records: "selector1._domainkey A 203.0.113.7", want: ProxiedAddress, found: []string{owner + ". IN A 203.0.113.7"}, hint: "proxying"},
		{name: "IPv6 address", records: "selector1._domainkey AAAA 2001:db8::7", want: ProxiedAddress, found: []string{owner + ". IN AAAA 2001:db8::7"}},
		{name: "to itself", records: "selector1._domainkey CNAME selector1._domainkey", want: Loop, found: []string{owner + ". IN CNAME " + owner + "."}, hint: "lead back"},
		{
			name: "loop through another zone", owner: "loop._domainkey.spamtrap.dk", records: "loop._domainkey CNAME back.hoster.net.", want: Loop,
			found: []string{"loop._domainkey.spamtrap.dk. IN CNAME back.hoster.net.", "back.hoster.net. IN CNAME loop._domainkey.spamtrap.dk."},
		},
		{name: "long chain", records: "selector1._domainkey CNAME l2\nl2 CNAME l3\nl3 CNAME l4\nl4 CNAME l5\nl5 CNAME l6\nl6 CNAME l7\nl7 CNAME l8\nl8 CNAME l9\nl9 CNAME " + target + ".", want: Loop},
		{
			name: "chain", records: "selector1._domainkey CNAME alias.hoster.net.", want: IndirectOK,
			found: []string{owner + ". IN CNAME alias.hoster.net.", "alias.hoster.net. IN CNAME " + target + "."}, hint: "It works.",
		},
		{name: "chain of three", records: "selector1._domainkey CNAME toalias.hoster.net.", want: IndirectOK},
		{name: "chain to silence", records: "selector1._domainkey CNAME a.silent.dk.", want: Unreachable, found: []string{owner + ". IN CNAME a.silent.dk."}, hint: "silent.dk"},
		{name: "one server lags", records: good, second: "other TXT a", want: ServersDisagree, found: []string{right}, hint: "192.0.2.1 has CNAME " + target + ".; 192.0.2.3 has no such name"},
		{name: "silent servers", owner: "selector1._domainkey.silent.dk", want: Unreachable, hint: "ns.silent.dk: udp: no reply in time, tcp: nothing listens there"},
		{name: "servers at inner addresses", owner: "selector1._domainkey.inner.dk", want: Unreachable, hint: "not an address of the Internet"},
		{name: "name servers that need each other", owner: "selector1._domainkey.circle.dk", want: Unreachable, hint: "ns.circle.net: its address was not found"},
		{name: "name servers that do not exist", owner: "selector1._domainkey.nobody.dk", want: Unreachable, hint: "ns.nowhere.net: has no address"},
		{name: "name servers of another zone only", owner: "selector1._domainkey.glueless.dk", want: Missing, hint: "Add: selector1._domainkey.glueless.dk. IN CNAME "},
		{name: "other top-level domain", owner: "selector1._domainkey.example.unknown", want: Missing, hint: "does not exist"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, _, second := internet(t, tt.records)
			if tt.second != "" {
				second.load(t, customer(tt.second))
			}
			if tt.name == "delegated below" {
				w.sites[netip.MustParseAddrPort("192.0.2.2:53")].load(t, "$ORIGIN _domainkey.spamtrap.dk.\n@"+soa+"selector1 CNAME "+target+".\n")
			}
			q := AliasQuestion{Owner: owner, Target: target, Zone: zone, Record: record}
			if tt.owner != "" {
				q.Owner = tt.owner
			}
			p := w.prober(Config{Timeout: 200 * time.Millisecond})
			got := p.Alias(within(t), q)
			if got.Class != tt.want || got.Finding != tt.want.Finding() {
				t.Errorf("got %s, %v, want %s", got.Class, got.Finding, tt.want)
			}
			if tt.found != nil {
				if diff := cmp.Diff(tt.found, got.Found); diff != "" {
					t.Errorf("found (-want +got):\n%s", diff)
				}
			}
			if !strings.Contains(got.Hint, tt.hint) || (tt.want == OK) != (got.Hint == "") {
				t.Errorf("hint %q, want one with %q", got.Hint, tt.hint)
			}
			wantReason := string(tt.want)
			if got.Finding == rotation.Proven {
				wantReason = ""
			}
			if got.Reason != wantReason || got.DNSSEC != NotChecked {
				t.Errorf("reason %q, DNSSEC %s", got.Reason, got.DNSSEC)
			}
			if tt.want == Missing && tt.found == nil && got.NegativeTTL != 60 {
				t.Errorf("negative TTL %d, want 60", got.NegativeTTL)
			}
			if len(got.Servers) == 0 {
				t.Error("no servers in the report")
			}
			if t.Failed() {
				t.Logf("%+v", got)
			}
		})
	}
}

// TestServersOfTheCustomer has the first of two servers misbehave. What the
// other says is enough, if the first says nothing of the name.
func TestServersOfTheCustomer(t *testing.T) {
	always := func(rcode int) func(string, *dns.Msg, *dns.Msg) *dns.Msg {
		return func(_ string, r, _ *dns.Msg) *dns.Msg {
			m := new(dns.Msg)
			return m.SetRcode(r, rcode)
		}
	}
	tests := []struct {
		name   string
		meddle func(network string, r, answer *dns.Msg) *dns.Msg
		raw    func(dns.ResponseWriter, *dns.Msg)
		one    Class  // with this server and a good one
		both   Class  // with two like this
		err    string // of the server, in the report
	}{
		{name: "REFUSED", meddle: always(dns.RcodeRefused), one: OK, both: Lame, err: "refuses to speak for spamtrap.dk"},
		{name: "NOTAUTH", meddle: always(dns.RcodeNotAuth), one: OK, both: Lame, err: "refuses"},
		{name: "SERVFAIL", meddle: always(dns.RcodeServerFailure), one: OK, both: Unreachable, err: "answers SERVFAIL"},
		{name: "not authoritative", meddle: func(_ string, _, m *dns.Msg) *dns.Msg { m.Authoritative = false; return m }, one: OK, both: Lame, err: "is not authoritative"},
		{name: "not authoritative denial", meddle: func(_ string, r, _ *dns.Msg) *dns.Msg {
			return new(dns.Msg).SetRcode(r, dns.RcodeNameError)
		}, one: OK, both: Lame, err: "is not authoritative"},
		{name: "referral up", meddle: func(_ string, r, _ *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(r)
			m.Ns = records(t, ". NS a.root.")
			return m
		}, one: OK, both: Lame, err: "is not authoritative"},
		{name: "silence", meddle: func(string, *dns.Msg, *dns.Msg) *dns.Msg { return nil }, one: OK, both: Unreachable, err: "no reply in time"},
		{name: "UDP lost", meddle: func(network string, _, m *dns.Msg) *dns.Msg {
			if network == "udp" {
				return nil
			}
			return m
		}, one: OK, both: OK},
		{name: "EDNS is a format error", meddle: func(_ string, r, m *dns.Msg) *dns.Msg {
			if r.IsEdns0() != nil {
				m = &dns.Msg{MsgHdr: dns.MsgHdr{Id: r.Id, Response: true, Rcode: dns.RcodeFormatError}}
			}
			return m
		}, one: OK, both: OK},
		{name: "EDNS dropped", meddle: func(_ string, r, m *dns.Msg) *dns.Msg {
			if r.IsEdns0() != nil {
				return nil
			}
			return m
		}, one: OK, both: OK},
		{name: "truncated", meddle: func(network string, _, m *dns.Msg) *dns.Msg {
			if network == "udp" {
				m.Answer, m.Truncated = nil, true
			}
			return m
		}, one: OK, both: OK},
		{name: "forged replies first", raw: func(w dns.ResponseWriter, m *dns.Msg) {
			forge(w, m, func(f *dns.Msg) { f.Id++ })
			forge(w, m, func(f *dns.Msg) { f.Question[0].Name = "example.net." })
			forge(w, m, func(f *dns.Msg) { f.Question[0].Qtype++ })
			forge(w, m, func(f *dns.Msg) { f.Response = false })
			forge(w, m, func(f *dns.Msg) { f.Question = nil })
			forge(w, m, func(f *dns.Msg) { f.Question = append(f.Question, f.Question[0]) })
			_, _ = w.Write([]byte{0, 1, 2})
		}, one: OK, both: OK},
		{name: "flood of nonsense", raw: func(w dns.ResponseWriter, _ *dns.Msg) {
			if w.RemoteAddr().Network() == "udp" {
				for range 2 * maxStrange {
					_, _ = w.Write([]byte("nonsense"))
				}
				return
			}
			_ = w.Close()
		}, one: OK, both: Unreachable},
		{name: "records of others", meddle: func(_ string, r, _ *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(r)
			m.Authoritative = true
			m.Answer = records(t, "selector1._domainkey.example.org. CNAME "+target+".")
			m.Ns = records(t, "dk."+soa)
			return m
		}, one: ServersDisagree, both: Missing},
		{name: "other class", meddle: func(_ string, _, m *dns.Msg) *dns.Msg {
			for _, rr := range m.Answer {
				rr.Header().Class = dns.ClassCHAOS
			}
			return m
		}, one: ServersDisagree, both: Missing},
		{name: "two CNAMEs", meddle: func(_ string, r, m *dns.Msg) *dns.Msg {
			m.Answer = append(m.Answer, records(t, owner+". CNAME web.hoster.net.")...)
			return m
		}, one: ServersDisagree, both: WrongTarget},
		{name: "referral elsewhere", meddle: func(_ string, r, _ *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(r)
			m.Ns = records(t, "net. NS evil.spamtrap.dk.")
			m.Extra = records(t, "evil.spamtrap.dk. A 192.0.2.66")
			return m
		}, one: OK, both: Lame},
		{name: "stays below the name", meddle: func(_ string, r, _ *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(r)
			m.Ns = records(t, "a."+owner+". NS evil.spamtrap.dk.")
			return m
		}, one: OK, both: Lame},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, first, second := internet(t, good)
			first.misbehave(tt.meddle, tt.raw)
			got := ask(t, w.prober(Config{Timeout: 300 * time.Millisecond}))
			if got.Class != tt.one {
				t.Errorf("one of two servers: %s, want %s: %+v", got.Class, tt.one, got)
			}
			if tt.err != "" && !slices.ContainsFunc(got.Servers, func(a ServerAnswer) bool {
				return a.Host == "ns1.spamtrap.dk" && a.Addr == "192.0.2.1:53" && strings.Contains(a.Err, tt.err)
			}) {
				t.Errorf("servers %+v, want ns1 with the error %q", got.Servers, tt.err)
			}
			second.misbehave(func(network string, r, m *dns.Msg) *dns.Msg {
				if tt.meddle == nil || !strings.HasSuffix(canonical(r.Question[0].Name), "spamtrap.dk.") {
					return m
				}
				return tt.meddle(network, r, m)
			}, tt.raw)
			if got = ask(t, w.prober(Config{Timeout: 300 * time.Millisecond})); got.Class != tt.both {
				t.Errorf("both servers: %s, want %s: %+v", got.Class, tt.both, got)
			}
		})
	}
}

// forge sends a changed copy of m.
func forge(w dns.ResponseWriter, m *dns.Msg, change func(*dns.Msg)) {
	if w.RemoteAddr().Network() != "udp" {
		return
	}
	f := m.Copy()
	f.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: owner + ".", Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 9}, Target: "evil.example."}}
	change(f)
	_ = w.WriteMsg(f)
}

func records(t testing.TB, lines ...string) []dns.RR {
	t.Helper()
	out := make([]dns.RR, len(lines))
	for i, line := range lines {
		rr, err := dns.NewRR(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		out[i] = rr
	}
	return out
}

// TestEndlessDelegations has a server that delegates ever further, and one whose
// name servers are always others.
func TestEndlessDelegations(t *testing.T) {
	w := newWorld(t)
	deeper := w.site("198.51.100.1", rootZone)
	var round atomic.Int32
	deeper.misbehave(func(_ string, r, _ *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(r)
		// One label more each time, as far as the name goes; then again from the start.
		labels := dns.SplitDomainName(r.Question[0].Name)
		n := int(round.Add(1))
		cut := dns.Fqdn(strings.Join(labels[len(labels)-1-n%len(labels):], "."))
		for i := range 15 {
			m.Ns = append(m.Ns, &dns.NS{
				Hdr: dns.RR_Header{Name: cut, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 300},
				Ns:  fmt.Sprintf("ns%d-%d.example.", n, i),
			})
		}
		return m
	}, nil)
	p := w.prober(Config{Timeout: 200 * time.Millisecond})
	got := ask(t, p)
	if got.Class != Unreachable {
		t.Errorf("got %+v", got)
	}
	if n := p.Stats().Queries; n > 3*maxQueries {
		t.Errorf("%d queries for one question", n)
	}
}

// TestCircles has two zones whose many name servers are all in the other one.
// Once both are known this costs no queries, and must be bounded all the same.
func TestCircles(t *testing.T) {
	w, _, _ := internet(t, "")
	dk := w.sites[netip.MustParseAddrPort("198.51.100.2:53")]
	var text strings.Builder
	text.WriteString(dkZone)
	for i := range maxHosts {
		fmt.Fprintf(&text, "one NS ns%[1]d.two\ntwo NS ns%[1]d.one\n", i)
	}
	dk.load(t, text.String())
	p := w.prober(Config{})
	if got := p.Alias(within(t), AliasQuestion{Owner: "selector1._domainkey.one.dk", Target: target, Zone: zone}); got.Class != Unreachable {
		t.Errorf("got %+v", got)
	}
	if s := p.Stats(); s.CacheHits > 10*maxQueries {
		t.Errorf("%+v", s)
	}
}

// TestContextEnds has servers that never answer; the caller's time decides.
func TestContextEnds(t *testing.T) {
	w := newWorld(t)
	p := w.prober(Config{Timeout: time.Hour, Limit: time.Hour, Concurrency: 1})
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	var got AliasReport
	silent := p.route
	p.route = func(a netip.AddrPort) netip.AddrPort {
		select {
		case <-started:
		default:
			close(started)
		}
		return silent(a)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		got = p.Alias(ctx, AliasQuestion{Owner: owner, Target: target, Zone: zone})
	}()
	<-started
	// The only slot is taken, so this one does not even begin.
	ended, end := context.WithCancel(t.Context())
	end()
	if r := p.Alias(ended, AliasQuestion{Owner: owner, Target: target, Zone: zone}); r.Class != Unreachable || !strings.Contains(r.Hint, "canceled") && r.Servers[0].Err == "" {
		t.Errorf("without a slot: %+v", r)
	}
	cancel()
	<-done
	if got.Class != Unreachable {
		t.Errorf("got %+v", got)
	}
	if s := p.Stats(); s.Questions != 2 || s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}
