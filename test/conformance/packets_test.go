package conformance_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// header is a message header with an ID of its own. The flags are the third and
// fourth octets, the counts those of the four sections.
func header(flags uint16, counts ...uint16) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x12, 0x34}, flags)
	for _, n := range counts {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

// question is a question in wire format; the name is in wire format, too.
func question(name string, qtype, qclass uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16([]byte(name), qtype), qclass)
}

const (
	wireZone = "\x04keys\x07example\x03net\x00"
	wireSOA  = wireZone + "\x00\x06\x00\x01"

	// flagBits are AA, TC, RD, RA, Z, AD and CD.
	flagBits = 0x07f0
)

// packetCase is a packet as it goes over the wire.
type packetCase struct {
	name       string
	packet     []byte
	want       string
	divergence string // row of docs/divergences.md
}

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

func packetCases() []packetCase {
	const (
		found   = "QUERY NOERROR aa 1 1 0 0"
		formErr = "QUERY FORMERR 0 0 0 0"
	)
	soa := []byte(wireSOA)
	one := header(0, 1, 0, 0, 0)
	ask1 := func(qtype, qclass uint16) []byte { return join(one, question(wireZone, qtype, qclass)) }
	// A record of no octets at the zone's name.
	empty := join([]byte(wireZone), []byte{0, 16, 0, 1, 0, 0, 0, 0, 0, 0})
	longName := strings.Repeat("\x3f"+strings.Repeat("x", 63), 4) + "\x00"
	cases := []packetCase{
		{"plain", join(one, soa), found, ""},

		// Flags of the query (RFC 1035 §4.1.1, RFC 4035 §3.1.6).
		{"RD is copied", join(header(0x0100, 1, 0, 0, 0), soa), "QUERY NOERROR aa rd 1 1 0 0", ""},
		{"all flags", join(header(flagBits, 1, 0, 0, 0), soa), "QUERY NOERROR aa rd 1 1 0 0", ""},
		{"rcode in a query", join(header(0x000f, 1, 0, 0, 0), soa), found, ""},

		// QR=1 and what is too short for a header (RFC 1035 §7.3).
		{"response", join(header(0x8000, 1, 0, 0, 0), soa), silent, ""},
		{"response without a question", header(0x8000, 0, 0, 0, 0), silent, ""},
		{"NOTIFY response", join(header(0xa000, 1, 0, 0, 0), soa), silent, ""},
		{"response that cannot be read", join(header(0x8000, 1, 0, 0, 0), []byte{0xc0}), silent, ""},

		// Counts of questions (RFC 9619 §4, RFC 7873 §5.4).
		{"no question", header(0, 0, 0, 0, 0), formErr, ""},
		{"no question, all flags", header(flagBits, 0, 0, 0, 0), "QUERY FORMERR tc rd ra ad cd 0 0 0 0", "formerr-flags"},
		{"no question, cookie", join(header(0, 0, 0, 0, 1), opt("\x00", 1232)), formErr, "formerr-opt"},
		{"one question that is missing", one, "QUERY SERVFAIL 0 0 0 0", "header-alone"},
		{"two questions", join(header(0, 2, 0, 0, 0), soa, soa), formErr, ""},
		{"two questions, EDNS", join(header(0, 2, 0, 0, 1), soa, soa, opt("\x00", 1232)), formErr, "formerr-opt"},
		{"65535 questions", join(header(0, 65535, 0, 0, 0), soa), formErr, ""},

		// Sections that a query does not have, and what follows a message.
		{"a record in the answer section", join(header(0, 1, 1, 0, 0), soa, empty), found, "sections"},
		{"a record in the authority section", join(header(0, 1, 0, 1, 0), soa, empty), found, "sections"},
		{"a record in the additional section", join(header(0, 1, 0, 0, 1), soa, empty), found, "sections"},
		{"two records in the answer section", join(header(0, 1, 2, 0, 0), soa, empty, empty), formErr, ""},
		{"two records in the authority section", join(header(0, 1, 0, 2, 0), soa, empty, empty), formErr, ""},
		{"three records in the additional section", join(header(0, 1, 0, 0, 3), soa, empty, empty, empty), formErr, "additional"},
		{"trailing octets", join(one, soa, []byte("trailing")), found, "trailing"},
		{"a record that is missing", join(header(0, 1, 1, 0, 0), soa), found, "sections"},

		// Malformed EDNS (RFC 6891 §6.1.1).
		{"OPT", join(header(0, 1, 0, 0, 1), soa, opt("\x00", 1232)), found + " edns0 1232", ""},
		{"two OPT records", join(header(0, 1, 0, 0, 2), soa, opt("\x00", 1232), opt("\x00", 4096)), "QUERY FORMERR 1 0 0 0 edns0 1232", ""},
		{"OPT whose owner is not the root", join(header(0, 1, 0, 0, 1), soa, opt("\x01x\x00", 1232)), "QUERY FORMERR 1 0 0 0 edns0 1232", ""},
		{"OPT in the answer section", join(header(0, 1, 1, 0, 0), soa, opt("\x00", 1232)), found, "sections"},
		{"OPT behind another record", join(header(0, 1, 0, 0, 2), soa, empty, opt("\x00", 1232)), found + " edns0 1232", ""},
		{"OPT cut off", join(header(0, 1, 0, 0, 1), soa, opt("\x00", 1232)[:8]), "QUERY FORMERR 1 0 0 0", "formerr-opt"},
		{"option longer than its OPT", join(header(0, 1, 0, 0, 1), soa, opt("\x00", 1232)[:9], []byte{0, 4, 0, 100, 0, 9}), "QUERY FORMERR 1 0 0 0", "formerr-opt"},
		{"option of three octets", join(header(0, 1, 0, 0, 1), soa, opt("\x00", 1232)[:9], []byte{0, 3, 0, 100, 0}), "QUERY FORMERR 1 0 0 0", "formerr-opt"},
		{"client subnet that makes no sense", join(header(0, 1, 0, 0, 1), soa, opt("\x00", 1232)[:9], []byte{0, 8, 0, 8, 0, 4, 0, 9, 99, 99}), "QUERY FORMERR 1 0 0 0", "subnet"},

		// Names that cannot be read (RFC 1035 §4.1.4, §2.3.4).
		{"question cut off in the name", join(one, []byte(wireZone[:8])), formErr, ""},
		{"question without its type", join(one, []byte(wireZone)), "QUERY REFUSED 1 0 0 0", "question-cut"},
		{"question cut off in the type", join(one, soa[:len(wireZone)+1]), formErr, ""},
		{"question without its class", join(one, soa[:len(wireZone)+2]), "QUERY REFUSED 1 0 0 0", "question-cut"},
		{"question cut off in the class", join(one, soa[:len(wireZone)+3]), formErr, ""},
		{"pointer to itself", join(one, question("\xc0\x0c", dns.TypeSOA, 1)), formErr, ""},
		{"two pointers to each other", join(one, []byte{0xc0, 0x0e, 0xc0, 0x0c}, question("", dns.TypeSOA, 1)), formErr, ""},
		{"pointer behind a label to its start", join(one, question("\x01x\xc0\x0c", dns.TypeSOA, 1)), formErr, ""},
		{"pointer past the end", join(one, question("\xff\xff", dns.TypeSOA, 1)), formErr, ""},
		{"pointer of one octet", join(one, []byte{0xc0}), formErr, ""},
		{"pointer into the header", join(one, question("\xc0\x04", dns.TypeSOA, 1)), "QUERY REFUSED 1 0 0 0", "compressed-question"},
		{"label type 01", join(one, question("\x40xxx\x00", dns.TypeSOA, 1)), formErr, ""},
		{"label type 10", join(one, question("\x80xxx\x00", dns.TypeSOA, 1)), formErr, ""},
		{"name of 257 octets", join(one, question(longName, dns.TypeSOA, 1)), formErr, ""},
		{"name of 320 octets", join(one, question(strings.Repeat("\x3f"+strings.Repeat("x", 63), 5)+"\x00", dns.TypeSOA, 1)), formErr, ""},
		{"zeroes after the header", join(one, make([]byte, 32)), "QUERY REFUSED 1 0 0 0", ""},

		// Classes (RFC 1035 §3.2.4, RFC 8906 §8.1).
		{"class CH", ask1(dns.TypeTXT, dns.ClassCHAOS), "QUERY REFUSED 1 0 0 0", ""},
		{"class HS", ask1(dns.TypeSOA, dns.ClassHESIOD), "QUERY REFUSED 1 0 0 0", ""},
		{"class NONE", ask1(dns.TypeSOA, dns.ClassNONE), "QUERY REFUSED 1 0 0 0", ""},
		{"class ANY", ask1(dns.TypeSOA, dns.ClassANY), "QUERY REFUSED 1 0 0 0", ""},
		{"class 0", ask1(dns.TypeSOA, 0), "QUERY REFUSED 1 0 0 0", ""},
		{"class 4660", ask1(dns.TypeSOA, 4660), "QUERY REFUSED 1 0 0 0", ""},
		{"class CH, flags of EDNS", join(header(0, 1, 0, 0, 1), question(wireZone, dns.TypeTXT, dns.ClassCHAOS), opt("\x00", 4096)[:7], []byte{0xff, 0xff, 0, 0}),
			"QUERY REFUSED 1 0 0 0 edns0 4096 0xff00", "core-errors"},
		{"class CH, CD", join(header(0x0010, 1, 0, 0, 0), question(wireZone, dns.TypeTXT, dns.ClassCHAOS)), "QUERY REFUSED cd 1 0 0 0", "core-errors"},

		// Meta types (RFC 6895 §3.1, RFC 5936 §4.2, RFC 9824 §3.4).
		{"QTYPE OPT", ask1(dns.TypeOPT, 1), "QUERY FORMERR 1 0 0 0", ""},
		{"QTYPE TSIG", ask1(dns.TypeTSIG, 1), "QUERY FORMERR 1 0 0 0", ""},
		{"QTYPE TKEY", ask1(dns.TypeTKEY, 1), "QUERY FORMERR 1 0 0 0", ""},
		{"QTYPE NXNAME", ask1(dns.TypeNXNAME, 1), "QUERY FORMERR 1 0 0 0", ""},
		{"QTYPE MAILA", ask1(dns.TypeMAILA, 1), "QUERY NOTIMP 1 0 0 0", ""},
		{"QTYPE MAILB", ask1(dns.TypeMAILB, 1), "QUERY NOTIMP 1 0 0 0", ""},
		{"QTYPE NXNAME, EDNS", join(header(0, 1, 0, 0, 1), question(wireZone, dns.TypeNXNAME, 1), opt("\x00", 1232)), "QUERY FORMERR 1 0 0 0 edns0 1232 ede30", ""},

		// NOTIFY and UPDATE of the usual form (RFC 1996 §3, RFC 2136 §2).
		{"NOTIFY", join(header(4<<11|0x0400, 1, 0, 0, 0), soa), "NOTIFY REFUSED 1 0 0 0", ""},
		{"NOTIFY with a record", join(header(4<<11|0x0400, 1, 1, 0, 0), soa, empty), "NOTIFY REFUSED 1 0 0 0", ""},
		{"NOTIFY for another zone", join(header(4<<11, 1, 0, 0, 0), question("\x07example\x00", dns.TypeSOA, 1)), "NOTIFY REFUSED 1 0 0 0", ""},
		{"NOTIFY, header alone", header(4<<11, 0, 0, 0, 0), formErr, "formerr-opcode"},
		{"UPDATE", join(header(5<<11, 1, 0, 0, 0), soa), "UPDATE NOTIMP 0 0 0 0", ""},
		{"UPDATE with records", join(header(5<<11, 1, 1, 1, 1), soa, empty, empty, empty), "UPDATE NOTIMP 0 0 0 0", ""},
		{"UPDATE that cannot be read", join(header(5<<11, 1, 1, 1, 1), []byte{0xc0}), "UPDATE NOTIMP 0 0 0 0", ""},
		{"UPDATE, all flags", join(header(5<<11|flagBits, 1, 0, 0, 0), soa), "UPDATE NOTIMP tc rd ra ad cd 0 0 0 0", "formerr-flags"},
	}
	for n := range 12 {
		cases = append(cases, packetCase{fmt.Sprintf("%d octets", n), one[:n], silent, ""})
	}
	for n := range 16 {
		if n == dns.OpcodeQuery || n == dns.OpcodeNotify {
			continue
		}
		want := opcode(n) + " NOTIMP 0 0 0 0"
		cases = append(cases,
			packetCase{fmt.Sprintf("opcode %d, header alone", n), header(uint16(n<<11), 0, 0, 0, 0), want, ""},
			packetCase{fmt.Sprintf("opcode %d", n), join(header(uint16(n<<11), 1, 0, 0, 0), soa), want, ""})
	}
	return cases
}

// Packets of any form: RFC 1035 §4.1, RFC 8906 §8.
func (n *node) testPackets(t *testing.T) {
	for _, tt := range packetCases() {
		t.Run(tt.name, func(t *testing.T) {
			n.both(t, func(t *testing.T, s server, network string) {
				send := ask
				if tt.want == silent {
					send = askInVain
				}
				if got := line(t, tt.packet, send(t, network, s.addr, tt.packet)); got != tt.want {
					t.Errorf("reply %q, want %q", got, tt.want)
				}
			})
		})
	}
}

// A query that is cut off anywhere gets an error and no data, unless it is cut
// between question and OPT record, where CoreDNS takes it for whole.
func (n *node) testPrefixes(t *testing.T) {
	const key = "rsa2048-a._domainkey." + zone + "."
	whole := pack(t, query(key, dns.TypeTXT, edns(1232), options(local(100, 5))))
	between := 12 + len(key) + 1 + 4
	n.both(t, func(t *testing.T, s server, network string) {
		for size := 12; size < len(whole); size++ {
			want := "QUERY FORMERR 0 0 0 0"
			switch {
			case size == 12:
				want = "QUERY SERVFAIL 0 0 0 0" // see header-alone in docs/divergences.md
			case size == between:
				want = "QUERY NOERROR aa 1 1 0 0" // see sections
			case size == between-4 || size == between-2:
				want = "QUERY REFUSED 1 0 0 0" // see question-cut
			case size > between:
				want = "QUERY FORMERR 1 0 0 0"
			}
			packet := whole[:size]
			if got := line(t, packet, ask(t, network, s.addr, packet)); got != want {
				t.Errorf("%d of %d octets: reply %q, want %q", size, len(whole), got, want)
			}
		}
	})
}
