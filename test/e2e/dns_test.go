package e2e_test

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/miekg/dns"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

// dnsTimeout is for a machine that stands still for a while: nothing is lost on
// loopback.
const dnsTimeout = 30 * time.Second

// ask sends one query, as dig would; over TCP again when the answer was cut.
func ask(network, server, name string, qtype uint16) (*dns.Msg, error) {
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	query.RecursionDesired = false
	query.SetEdns0(1232, false)
	resp, _, err := (&dns.Client{Net: network, Timeout: dnsTimeout}).Exchange(query, server)
	if err == nil && resp.Truncated && network != "tcp" {
		return ask("tcp", server, name, qtype)
	}
	return resp, err
}

// txt is the character-strings of the one TXT record of a name. All must be as
// it is for a key that is published.
func txt(network, server, name string) ([]string, error) {
	resp, err := ask(network, server, name, dns.TypeTXT)
	if err != nil {
		return nil, err
	}
	if resp.Rcode != dns.RcodeSuccess || !resp.Authoritative || resp.RecursionAvailable || len(resp.Answer) != 1 {
		return nil, fmt.Errorf("%s over %s: not an authoritative answer of one record:\n%v", name, network, resp)
	}
	rr, ok := resp.Answer[0].(*dns.TXT)
	if !ok || rr.Hdr.Name != dns.Fqdn(name) {
		return nil, fmt.Errorf("%s over %s: answered %v", name, network, resp.Answer[0])
	}
	for i, s := range rr.Txt {
		if len(s) == 0 || len(s) > 255 || i < len(rr.Txt)-1 && len(s) != 255 {
			return nil, fmt.Errorf("%s over %s: string %d of %d is of %d octets", name, network, i+1, len(rr.Txt), len(s))
		}
	}
	return rr.Txt, nil
}

func mustTXT(t *testing.T, network, server, name string) []string {
	t.Helper()
	strs, err := txt(network, server, name)
	if err != nil {
		t.Fatal(err)
	}
	return strs
}

func waitTXT(t *testing.T, server, name, want string) {
	t.Helper()
	harness.Eventually(t, startLimit, server+" serves "+name, func() error {
		strs, err := txt("udp", server, name)
		if err == nil && strings.Join(strs, "") != want {
			err = fmt.Errorf("it serves %q, want %q", strs, want)
		}
		return err
	})
}

// waitRcode waits until a name server answers for the TXT record of a name
// with the given code and no record.
func waitRcode(t *testing.T, server, name string, want int) {
	t.Helper()
	harness.Eventually(t, startLimit, fmt.Sprintf("%s answers %s for %s", server, dns.RcodeToString[want], name), func() error {
		resp, err := ask("udp", server, name, dns.TypeTXT)
		if err == nil && (resp.Rcode != want || len(resp.Answer) > 0) {
			err = fmt.Errorf("it answers\n%v", resp)
		}
		return err
	})
}

func soaSerial(server, zone string) (uint32, error) {
	resp, err := ask("udp", server, zone, dns.TypeSOA)
	if err != nil {
		return 0, err
	}
	if len(resp.Answer) == 1 {
		if soa, ok := resp.Answer[0].(*dns.SOA); ok {
			return soa.Serial, nil
		}
	}
	return 0, fmt.Errorf("%s has no SOA record of %s:\n%v", server, zone, resp)
}

// checkServed compares what DNS serves of a key with what the API shows of it,
// over UDP, TCP and in mixed case.
func checkServed(t *testing.T, server string, k *dkimv1.Key) {
	t.Helper()
	if k.GetOwnerName() == "" || len(k.GetPublicKey()) == 0 {
		t.Fatalf("not published: %v", k)
	}
	want := strings.Join(mustTXT(t, "udp", server, k.GetOwnerName()), "")
	if want != k.GetRecord() {
		t.Errorf("%s: DNS serves\n%s\nthe API shows\n%s", k.GetOwnerName(), want, k.GetRecord())
	}
	if p := base64.StdEncoding.EncodeToString(k.GetPublicKey()); !strings.HasSuffix(want, "; p="+p) {
		t.Errorf("%s: the record %s does not end with the public key %s", k.GetOwnerName(), want, p)
	}
	for _, also := range []struct{ network, name string }{
		{"tcp", k.GetOwnerName()}, {"udp", mixedCase(k.GetOwnerName())}, {"tcp", strings.ToUpper(k.GetOwnerName())},
	} {
		if got := strings.Join(mustTXT(t, also.network, server, also.name), ""); got != want {
			t.Errorf("%s over %s: %s, but over UDP as written: %s", also.name, also.network, got, want)
		}
	}
}

func mixedCase(s string) string {
	b := []byte(s)
	for i := 0; i < len(b); i += 2 {
		b[i] = bytes.ToUpper(b[i : i+1])[0]
	}
	return string(b)
}

// resolver answers a verifier as the DNS would: the domain's CNAMEs, if it needs
// any, then the records of a name server.
func resolver(server string, d *dkimv1.Domain) func(string) ([]string, error) {
	return func(name string) ([]string, error) {
		for _, s := range d.GetSelectors() {
			if asked := strings.TrimSuffix(name, "."); s.GetCnameOwner() == asked || s.GetOwnerName() == asked {
				strs, err := txt("udp", server, s.GetOwnerName())
				return []string{strings.Join(strs, "")}, err
			}
		}
		return nil, fmt.Errorf("no CNAME at %s", name)
	}
}

const message = "From: Ann <ann@%s>\r\nTo: bob@example.org\r\nSubject: hello\r\n\r\nHello Bob.\r\n"

// verify signs a message and returns what a verifier finds wrong with it.
func verify(t *testing.T, server string, d *dkimv1.Domain, selector string, signer crypto.Signer) error {
	t.Helper()
	domain := d.GetName()[strings.LastIndex(d.GetName(), "/")+1:]
	var signed bytes.Buffer
	err := dkim.Sign(&signed, strings.NewReader(fmt.Sprintf(message, domain)), &dkim.SignOptions{
		Domain: domain, Selector: selector, Signer: signer,
	})
	if err != nil {
		t.Fatal(err)
	}
	found, err := dkim.VerifyWithOptions(&signed, &dkim.VerifyOptions{LookupTXT: resolver(server, d)})
	if err != nil || len(found) != 1 {
		t.Fatalf("verify: %v, %d signatures", err, len(found))
	}
	return found[0].Err
}

// checkUsable lets a verifier use the key in selector1 on a signature that
// somebody else made: it must read the record and find nothing wrong but the
// signature. The private key itself never leaves the service.
func checkUsable(t *testing.T, server string, d *dkimv1.Domain, algorithm dkimv1.KeyAlgorithm) {
	t.Helper()
	var forger crypto.Signer
	switch algorithm {
	case dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519:
		forger = newEd25519(t)
	default:
		forger = newRSA(t, 2048)
	}
	err := verify(t, server, d, "selector1", forger)
	if err == nil || !strings.Contains(err.Error(), "signature did not verify") {
		t.Errorf("verifier: %v; want it to get as far as the signature", err)
	}
}

// digName is the name under which the test binary is a small dig, for the
// examples in the documents.
const digName = "dig"

// digMain understands dig [@SERVER] [-p PORT] [-t TYPE] [+short] [+tcp] [TYPE] NAME.
func digMain(args []string) int {
	server, port, network, name, qtype, short := "127.0.0.1", "53", "udp", ".", dns.TypeA, false
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case strings.HasPrefix(a, "@"):
			server = a[1:]
		case (a == "-p" || a == "-t") && i+1 < len(args):
			i++
			if a == "-p" {
				port = args[i]
			} else {
				qtype = dns.StringToType[strings.ToUpper(args[i])]
			}
		case a == "+short":
			short = true
		case a == "+tcp":
			network = "tcp"
		case strings.HasPrefix(a, "+") || strings.HasPrefix(a, "-"):
			fmt.Fprintf(os.Stderr, "dig of the tests: %s is not known\n", a)
			return 1
		case dns.StringToType[strings.ToUpper(a)] != 0:
			qtype = dns.StringToType[strings.ToUpper(a)]
		default:
			name = a
		}
	}
	resp, err := ask(network, server+":"+port, name, qtype)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 9
	}
	if !short {
		fmt.Println(resp)
		return 0
	}
	for _, rr := range resp.Answer {
		fmt.Println(strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return 0
}
