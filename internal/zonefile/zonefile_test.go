package zonefile_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/zonefile"
)

// parse reads a master file as name servers do.
func parse(t testing.TB, text []byte) []dns.RR {
	t.Helper()
	var rrs []dns.RR
	p := dns.NewZoneParser(bytes.NewReader(text), "", "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		rrs = append(rrs, rr)
	}
	if err := p.Err(); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return rrs
}

var apex = zonefile.Apex{
	Zone: "keys.example.net", Serial: 4294967295, Mailbox: "hostmaster.keys.example.net", TTL: 86400,
	Refresh: 3600, Retry: 600, Expire: 1209600, NegativeTTL: 300,
	NameServers: []zonefile.NameServer{
		{Name: "ns1.keys.example.net", Addresses: []netip.Addr{
			netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("::ffff:192.0.2.2"),
		}},
		{Name: "ns.example.org", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}},
		{Name: "ns.otherkeys.example.net", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}},
	},
}

func TestAppendApex(t *testing.T) {
	text := zonefile.AppendApex(zonefile.AppendComment([]byte("; before\n"), "keys.example.net at revision 7"), apex)
	want := `; before
; keys.example.net at revision 7
keys.example.net.	86400	IN	SOA	ns1.keys.example.net. hostmaster.keys.example.net. 4294967295 3600 600 1209600 300
keys.example.net.	86400	IN	NS	ns1.keys.example.net.
keys.example.net.	86400	IN	NS	ns.example.org.
keys.example.net.	86400	IN	NS	ns.otherkeys.example.net.
ns1.keys.example.net.	86400	IN	A	192.0.2.1
ns1.keys.example.net.	86400	IN	AAAA	2001:db8::1
ns1.keys.example.net.	86400	IN	A	192.0.2.2
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var got []string
	for _, rr := range parse(t, text) {
		got = append(got, rr.String())
	}
	if diff := cmp.Diff(strings.Split(strings.TrimSpace(want), "\n")[2:], got); diff != "" {
		t.Errorf("as parsed (-want +got):\n%s", diff)
	}
}

func TestAppendTXT(t *testing.T) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	tests := []struct {
		name string
		text string
	}{
		{"revoked", "v=DKIM1; k=rsa; p="},
		{"one octet", "x"},
		{"254 octets", strings.Repeat("a", 254)},
		{"255 octets", strings.Repeat("a", 255)},
		{"256 octets", strings.Repeat("a", 256)},
		{"510 octets", strings.Repeat("a", 510)},
		{"511 octets", strings.Repeat("a", 511)},
		{"quotes and backslashes", `"\"\\`},
		{"semicolons and parentheses", "a; (b) @ $ORIGIN"},
		{"every octet", string(every)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			line := zonefile.AppendTXT(nil, "selector1-spamtrap-dk._domainkey", "keys.example.net", 3600, []byte(tt.text))
			if n := bytes.Count(line, []byte("\n")); n != 1 || line[len(line)-1] != '\n' {
				t.Errorf("%q is not one line", line)
			}
			rrs := parse(t, line)
			if len(rrs) != 1 {
				t.Fatalf("%d records in %s", len(rrs), line)
			}
			got, ok := rrs[0].(*dns.TXT)
			if !ok {
				t.Fatalf("got %v", rrs[0])
			}
			header := dns.RR_Header{Name: "selector1-spamtrap-dk._domainkey.keys.example.net.", Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 3600}
			if diff := cmp.Diff(header, got.Hdr); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			want, err := dkimrecord.Split(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, wire(t, got)); diff != "" {
				t.Errorf("strings (-want +got):\n%s", diff)
			}
		})
	}
}

// wire returns the character-strings of a record as they go over the network.
func wire(t *testing.T, rr *dns.TXT) []string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := dns.PackRR(rr, buf, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	data := buf[len(rr.Hdr.Name)+1+10 : n]
	var strings []string
	for len(data) > 0 {
		length := int(data[0])
		strings = append(strings, string(data[1:1+length]))
		data = data[1+length:]
	}
	return strings
}

func TestAppendAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 1024)
	text := []byte(strings.Repeat("a", 410))
	if n := testing.AllocsPerRun(100, func() {
		zonefile.AppendTXT(buf, "selector1-spamtrap-dk._domainkey", "keys.example.net", 3600, text)
	}); n != 0 {
		t.Errorf("%v allocations for a record", n)
	}
}
