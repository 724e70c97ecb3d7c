package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func TestDomains(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t)
	s.ctl(t, "brand", "create", "acme")

	tests := []struct {
		name, domain string
		flags        []string
		algorithm    dkimv1.KeyAlgorithm
		prefix       string
		lengths      []int // of the character-strings
	}{
		{"RSA 2048", "spamtrap.dk", nil, dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048, "v=DKIM1; k=rsa; p=", []int{255, 155}},
		{"RSA 3072", "r3072.example", []string{"--algorithm", "rsa3072"}, dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_3072, "v=DKIM1; k=rsa; p=", []int{255, 255, 72}},
		{"RSA 4096", "r4096.example", []string{"--algorithm", "rsa4096"}, dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_4096, "v=DKIM1; k=rsa; p=", []int{255, 255, 244}},
		{"Ed25519", "ed.example", []string{"--algorithm", "ed25519"}, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519, "v=DKIM1; k=ed25519; p=", []int{66}},
		{"60 characters", strings.Repeat("a", 52) + ".example", []string{"--algorithm", "ed25519"}, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519, "v=DKIM1; k=ed25519; p=", []int{66}},
		{"IDNA", "bücher.example", []string{"--algorithm", "ed25519"}, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519, "v=DKIM1; k=ed25519; p=", []int{66}},
		{"capitals", "UPPER.Example", []string{"--algorithm", "ed25519"}, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519, "v=DKIM1; k=ed25519; p=", []int{66}},
		{"test flag", "testing.example", []string{"--algorithm", "ed25519", "--testing"}, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519, "v=DKIM1; k=ed25519; t=y; p=", []int{71}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.ctl(t, append([]string{"domain", "provision", "acme", tt.domain, "--wait"}, tt.flags...)...)
			d := s.domain(t, "acme", tt.domain)
			if len(d.GetSelectors()) != 2 {
				t.Fatalf("selectors are %v, want two", d.GetSelectors())
			}
			for i, state := range []dkimv1.KeyState{dkimv1.KeyState_KEY_STATE_PREPARED, dkimv1.KeyState_KEY_STATE_PREPARED} {
				sel := d.GetSelectors()[i]
				if sel.GetKeyState() != state || sel.GetAlgorithm() != tt.algorithm || sel.GetCustody() != dkimv1.KeyCustody_KEY_CUSTODY_SERVICE {
					t.Errorf("selector is %v, want %v and %v", sel, state, tt.algorithm)
				}
				checkCNAME(t, s, d, sel)
				k := s.key(t, "acme", tt.domain, sel.GetSelector())
				checkServed(t, s.dns, k)
				var lengths []int
				for _, str := range mustTXT(t, "udp", s.dns, sel.GetCnameTarget()) {
					lengths = append(lengths, len(str))
				}
				if !slices.Equal(lengths, tt.lengths) || !strings.HasPrefix(k.GetRecord(), tt.prefix) {
					t.Errorf("record %s is of strings of %v octets, want %s… of %v", k.GetRecord(), lengths, tt.prefix, tt.lengths)
				}
			}
			checkUsable(t, s.dns, d, tt.algorithm)
		})
	}

	t.Run("names that look alike", func(t *testing.T) {
		seen := make(map[string]string)
		for _, domain := range []string{"a-b.com", "a.b.com", "a-b-com.example", "a.b-com.example"} {
			s.ctl(t, "domain", "provision", "acme", domain, "--wait", "--algorithm", "ed25519")
			for _, sel := range s.domain(t, "acme", domain).GetSelectors() {
				if other, ok := seen[sel.GetCnameTarget()]; ok {
					t.Errorf("%s and %s have the same target %s", other, domain, sel.GetCnameTarget())
				}
				seen[sel.GetCnameTarget()] = domain
				checkServed(t, s.dns, s.key(t, "acme", domain, sel.GetSelector()))
			}
		}
	})

	t.Run("provisioned again", func(t *testing.T) {
		before := s.ctl(t, "key", "list", "acme", "ed.example", "-o", "json")
		s.ctl(t, "domain", "provision", "acme", "ed.example")
		if after := s.ctl(t, "key", "list", "acme", "ed.example", "-o", "json"); after != before {
			t.Errorf("before %s\nafter %s", before, after)
		}
	})

	t.Run("unicode name", func(t *testing.T) {
		d := s.domain(t, "acme", "xn--bcher-kva.example")
		if d.GetName() != "brands/acme/domains/xn--bcher-kva.example" || d.GetUnicodeDomain() != "bücher.example" {
			t.Errorf("domain is %v", d)
		}
	})

	t.Run("golden record", func(t *testing.T) { checkGolden(t, s) })
	t.Run("keys made elsewhere", func(t *testing.T) { checkPublished(t, s) })

	t.Run("zone deleted", func(t *testing.T) {
		s.ctl(t, "domain", "delete", "ox", "spamtrap.dk", "--yes")
		s.ctl(t, "brand", "delete", "ox", "--yes")
		s.ctl(t, "zone", "delete", "oxcloud.zone", "--yes")
		waitRcode(t, s.dns, "oxcloud.zone", dns.RcodeRefused)
		checkServed(t, s.dns, s.key(t, "acme", "spamtrap.dk", "selector1"))
	})

	t.Run("metrics", func(t *testing.T) {
		metrics := string(page(t, "http://"+s.metrics+"/metrics"))
		for _, pattern := range []string{
			`coredns_dkim_queries_total{result="success",zone="keys.example.net."} [1-9]`,
			`coredns_dkim_write_to_served_seconds_count{zone="keys.example.net."} [1-9]`,
			`coredns_dkim_records{zone="keys.example.net."} [1-9]`,
			`coredns_dkim_revision{zone="keys.example.net."} [1-9]`,
			`coredns_dkim_staleness_seconds{zone="keys.example.net."} [0-9]`,
			`dkimd_grpc_calls_total{code="OK",method="/dkim.v1.KeyManagement/ProvisionDomain"} [1-9]`,
		} {
			if !regexp.MustCompile("(?m)^" + pattern).MatchString(metrics) {
				t.Errorf("no metric %s", pattern)
			}
		}
	})

	t.Run("no such name", func(t *testing.T) {
		for name, want := range map[string]int{
			"selector3-spamtrap-dk._domainkey." + zone: dns.RcodeNameError,
			"_domainkey." + zone:                       dns.RcodeSuccess,
			"example.org":                              dns.RcodeRefused,
		} {
			resp, err := ask("udp", s.dns, name, dns.TypeTXT)
			if err != nil || resp.Rcode != want || len(resp.Answer) > 0 {
				t.Errorf("%s: %v, %v; want %s without an answer", name, resp, err, dns.RcodeToString[want])
			}
		}
	})
}

// checkCNAME looks whether dkimctl prints the CNAME that the customer is to add,
// and whether it can be added.
func checkCNAME(t *testing.T, s *standalone, d *dkimv1.Domain, sel *dkimv1.Selector) {
	t.Helper()
	domain := d.GetName()[strings.LastIndex(d.GetName(), "/")+1:]
	if want := sel.GetSelector() + "._domainkey." + domain; sel.GetCnameOwner() != want {
		t.Errorf("owner of the CNAME is %s, want %s", sel.GetCnameOwner(), want)
	}
	var found *dns.CNAME
	records := dns.NewZoneParser(strings.NewReader(s.ctl(t, "domain", "cnames", "acme", domain)), "", "")
	for rr, ok := records.Next(); ok; rr, ok = records.Next() {
		if c, is := rr.(*dns.CNAME); is && strings.HasPrefix(c.Hdr.Name, sel.GetSelector()+".") {
			found = c
		}
	}
	if err := records.Err(); err != nil {
		t.Fatalf("dkimctl domain cnames prints no zone file: %v", err)
	}
	if found == nil || found.Hdr.Name != sel.GetCnameOwner()+"." || found.Target != sel.GetCnameTarget()+"." {
		t.Errorf("dkimctl domain cnames has %v, want %s CNAME %s", found, sel.GetCnameOwner(), sel.GetCnameTarget())
	}
	if _, ok := dns.IsDomainName(sel.GetCnameTarget()); !ok {
		t.Errorf("%s cannot be in the DNS", sel.GetCnameTarget())
	}
}

// checkGolden publishes the key of a record that a provider serves, in a zone of
// its own that is created while dkimd runs.
func checkGolden(t *testing.T, s *standalone) {
	t.Helper()
	var want []string
	for line := range strings.Lines(readFile(t, filepath.Join("testdata", "golden.txt"))) {
		if str, ok := strings.CutPrefix(strings.TrimSpace(line), `"`); ok {
			want = append(want, strings.TrimSuffix(str, `"`))
		}
	}
	file := filepath.Join(t.TempDir(), "record")
	if err := os.WriteFile(file, []byte(strings.Join(want, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	// The zone's name server is that of the first zone, of which dkimctl knows where to ask it.
	s.ctl(t, "zone", "create", "oxcloud.zone", "--name-server", "ns1."+zone)
	s.ctl(t, "brand", "create", "ox", "--zone", "oxcloud.zone")
	s.ctl(t, "key", "publish", "ox", "spamtrap.dk", "selector1", "--public-key-file", file, "--wait")

	got := mustTXT(t, "udp", s.dns, "selector1-spamtrap-dk._domainkey.oxcloud.zone")
	want[len(want)-1] = strings.TrimSuffix(want[len(want)-1], ";") // optional (RFC 6376 §3.2), left off
	if !slices.Equal(got, want) || len(got) != 2 || len(got[0]) != 255 || len(got[1]) != 155 {
		t.Errorf("record is\n%q\nwant\n%q", got, want)
	}
	checkServed(t, s.dns, s.key(t, "ox", "spamtrap.dk", "selector1"))
	// Both zones go on.
	checkServed(t, s.dns, s.key(t, "acme", "spamtrap.dk", "selector1"))
	if _, err := soaSerial(s.dns, "oxcloud.zone"); err != nil {
		t.Error(err)
	}
}

// checkPublished publishes public keys whose private halves stay here: what they
// sign must verify.
func checkPublished(t *testing.T, s *standalone) {
	t.Helper()
	rsaKey, edKey := newRSA(t, 2048), newEd25519(t)
	for _, tt := range []struct {
		selector, text string
		flags          []string
		ttl            uint32
	}{
		{"own.rsa", publicPEM(t, rsaKey.Public()), nil, 3600},
		{"own-ed", publicText(edKey), []string{"--ttl", "300"}, 300},
	} {
		file := filepath.Join(t.TempDir(), "public")
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.ctl(t, append([]string{"key", "publish", "acme", "own.example", tt.selector, "--public-key-file", file, "--wait"}, tt.flags...)...)
		k := s.key(t, "acme", "own.example", tt.selector)
		checkServed(t, s.dns, k)
		resp, err := ask("udp", s.dns, k.GetOwnerName(), dns.TypeTXT)
		if err != nil || resp.Answer[0].Header().Ttl != tt.ttl {
			t.Errorf("%s: %v, %v; want TTL %d", tt.selector, resp, err, tt.ttl)
		}
	}
	d := s.domain(t, "acme", "own.example")
	if err := verify(t, s.dns, d, "own.rsa", rsaKey); err != nil {
		t.Errorf("mail signed with the RSA key: %v", err)
	}
	if err := verify(t, s.dns, d, "own-ed", edKey); err != nil {
		t.Errorf("mail signed with the Ed25519 key: %v", err)
	}
	if err := verify(t, s.dns, d, "own-ed", newEd25519(t)); err == nil {
		t.Error("mail signed with another key verifies")
	}

	owner := s.key(t, "acme", "own.example", "own-ed").GetOwnerName()
	s.ctl(t, "key", "delete", "acme", "own.example", "own-ed", "--yes", "--wait")
	if resp, err := ask("udp", s.dns, owner, dns.TypeTXT); err != nil || resp.Rcode != dns.RcodeNameError {
		t.Errorf("deleted key: %v, %v; want NXDOMAIN", resp, err)
	}
}
