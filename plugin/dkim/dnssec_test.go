package dkim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/replica"
)

// signingServer serves m with the dnssec plugin in front.
func signingServer(t *testing.T, m *memory) (*server, *dns.DNSKEY) {
	t.Helper()
	key := &dns.DNSKEY{
		Hdr:   dns.RR_Header{Name: testZone + ".", Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 3600},
		Flags: 257, Protocol: 3, Algorithm: dns.ECDSAP256SHA256,
	}
	private, err := key.Generate(256)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(t.TempDir(), fmt.Sprintf("K%s.+013+%05d", testZone, key.KeyTag()))
	for file, text := range map[string]string{base + ".key": key.String(), base + ".private": key.PrivateKeyString(private)} {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(replica.RegisterInProcess(t.Name(), m))
	s := startServer(t, fmt.Sprintf(".:0 {\n bind 127.0.0.1\n dnssec %s {\n  key file %s\n }\n transfer %s {\n  to *\n }\n dkim %s {\n  endpoint %s\n }\n}\n",
		testZone, base, testZone, testZone, replica.InProcessScheme+t.Name()))
	waitFor(t, m.rev)
	return s, key
}

// unsigned returns the types of the RRsets of a section that no signature fits.
func unsigned(key *dns.DNSKEY, section []dns.RR) []string {
	sets := make(map[string][]dns.RR)
	var sigs []*dns.RRSIG
	for _, rr := range section {
		if sig, ok := rr.(*dns.RRSIG); ok {
			sigs = append(sigs, sig)
			continue
		}
		if rr.Header().Rrtype != dns.TypeOPT {
			id := strings.ToLower(rr.Header().Name) + " " + dns.TypeToString[rr.Header().Rrtype]
			sets[id] = append(sets[id], rr)
		}
	}
	var bad []string
	for id, set := range sets {
		ok := false
		for _, sig := range sigs {
			ok = ok || sig.TypeCovered == set[0].Header().Rrtype && strings.EqualFold(sig.Hdr.Name, set[0].Header().Name) && sig.Verify(key, set) == nil
		}
		if !ok {
			bad = append(bad, id)
		}
	}
	return bad
}

// What the dnssec plugin makes of our answers.
func TestDNSSEC(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	s, key := signingServer(t, m)
	const golden = goldenName + "." + testZone + "."
	for _, tt := range []struct {
		name, qname string
		qtype       uint16
		answers     bool
	}{
		{"key", golden, dns.TypeTXT, true},
		{"key in mixed case", "SeLector1-Spamtrap-DK._DomainKey.KEYS.example.NET.", dns.TypeTXT, true},
		{"another key, in mixed case first", "ED-spamtrap-DK._DomainKey." + testZone + ".", dns.TypeTXT, true},
		{"another key", "ed-spamtrap-dk._domainkey." + testZone + ".", dns.TypeTXT, true},
		{"SOA", testZone + ".", dns.TypeSOA, true},
		{"NS", testZone + ".", dns.TypeNS, true},
		{"DNSKEY", testZone + ".", dns.TypeDNSKEY, true},
		{"name server", "ns1." + testZone + ".", dns.TypeAAAA, true},
		{"no such type", golden, dns.TypeA, false},
		{"no such name", "x._domainkey." + testZone + ".", dns.TypeTXT, false},
		{"no such name in mixed case", "X._DomainKey." + testZone + ".", dns.TypeTXT, false},
		{"empty non-terminal", "_domainkey." + testZone + ".", dns.TypeTXT, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reply := s.exchange(t, "tcp", query(tt.qname, tt.qtype, edns(1232, true)))
			if reply.Rcode != dns.RcodeSuccess { // also of a name that does not exist
				t.Errorf("rcode %s", dns.RcodeToString[reply.Rcode])
			}
			if bad := unsigned(key, append(reply.Answer, reply.Ns...)); len(bad) != 0 || len(reply.Answer) > 0 != tt.answers {
				t.Errorf("without a good signature: %v; %d answers", bad, len(reply.Answer))
			}
		})
	}
}

// Limits of the dnssec plugin that the documents tell of.
func TestDNSSECLimits(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	s, _ := signingServer(t, m)
	missing := "x._domainkey." + testZone + "."
	if reply := s.exchange(t, "udp", query(missing, dns.TypeTXT, edns(1232, false))); reply.Rcode != dns.RcodeNameError {
		t.Errorf("missing name without DO: %s", dns.RcodeToString[reply.Rcode])
	}
	if reply := s.exchange(t, "udp", query(missing, dns.TypeTXT, edns(1232, true))); reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 0 {
		t.Errorf("missing name with DO: %s, %d answers", dns.RcodeToString[reply.Rcode], len(reply.Answer))
	}
	for _, qtype := range []uint16{dns.TypeCDS, dns.TypeCDNSKEY, dns.TypeNSEC3PARAM} {
		if reply := s.exchange(t, "udp", query(testZone+".", qtype)); len(reply.Answer) != 0 {
			t.Errorf("%s: %v", dns.TypeToString[qtype], reply.Answer)
		}
	}
	reply := s.exchange(t, "udp", query("rsa4096-spamtrap-dk._domainkey."+testZone+".", dns.TypeTXT, edns(1232, true)))
	if reply.Truncated || len(reply.Answer) != 2 {
		t.Errorf("RSA-4096 key with signature over UDP: %d octets, %d answers", reply.Len(), len(reply.Answer))
	}
	all, err := s.axfr(t, axfrQuery(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, rr := range all {
		switch rr.Header().Rrtype {
		case dns.TypeRRSIG, dns.TypeDNSKEY, dns.TypeNSEC:
			t.Errorf("the transfer has %v", rr)
		}
	}
}
