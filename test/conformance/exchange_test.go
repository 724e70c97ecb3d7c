package conformance_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// silent is the line of no reply at all.
const silent = "silent"

// query is a question as a name server gets it from a resolver.
func query(name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.Id = 0x1234
	m.RecursionDesired = false
	for _, fn := range edit {
		fn(m)
	}
	return m
}

func edns(size uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, false) } }

func pack(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// link is a way to a server that keeps packets apart.
type link struct {
	net.Conn
	network string
}

func dial(t *testing.T, network, addr string) *link {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: ioLimit}).DialContext(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &link{conn, network}
}

func (l *link) send(t *testing.T, packet []byte) {
	t.Helper()
	if l.network == "tcp" {
		packet = append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
	}
	if _, err := l.Write(packet); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next packet, or io.EOF when the server has closed the
// connection.
func (l *link) receive(t *testing.T) ([]byte, error) {
	t.Helper()
	if err := l.SetReadDeadline(time.Now().Add(ioLimit)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	if l.network == "udp" {
		n, err := l.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(l, buf[:2]); err != nil {
		return nil, err
	}
	buf = buf[:binary.BigEndian.Uint16(buf)]
	_, err := io.ReadFull(l, buf)
	return buf, err
}

// probeID begins the message IDs of probes. No test uses them for anything else.
const probeID = 0xff00

// probes is how many questions are answered before a packet counts as one that
// gets no reply. The server answers UDP packets side by side, so that the first
// probe may well be faster.
const probes = 20

// ask sends packet and returns the reply to it, and fails if there is another.
func ask(t *testing.T, network, addr string, packet []byte) []byte {
	t.Helper()
	l := dial(t, network, addr)
	defer l.Close()
	l.send(t, packet)
	reply, err := l.receive(t)
	if err != nil {
		t.Fatalf("%s: reading the reply to %x: %v", network, packet, err)
	}
	if more := l.probe(t, 2); more != nil {
		t.Fatalf("%s: second reply to %x: %x", network, packet, more)
	}
	return reply
}

// askInVain sends packet, which is to get no reply, and returns the one that it
// gets all the same. That the server does not answer shows in its answers to
// what was sent afterwards.
func askInVain(t *testing.T, network, addr string, packet []byte) []byte {
	t.Helper()
	l := dial(t, network, addr)
	defer l.Close()
	l.send(t, packet)
	return l.probe(t, probes)
}

// probe asks n questions and returns the first reply to something else.
func (l *link) probe(t *testing.T, n int) []byte {
	t.Helper()
	for i := range n {
		l.send(t, pack(t, query(zone+".", dns.TypeSOA, func(m *dns.Msg) { m.Id = probeID | uint16(i) })))
		got, err := l.receive(t)
		if err != nil {
			t.Fatalf("%s: probe %d: %v", l.network, i, err)
		}
		if len(got) < 2 || binary.BigEndian.Uint16(got) != probeID|uint16(i) {
			return got
		}
	}
	return nil
}

func closed(err error) bool {
	return errors.Is(err, io.EOF) || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && strings.Contains(err.Error(), "reset")
}

// line writes a reply as one line: opcode, rcode, header flags, the number of
// records by section, and the OPT record with its size, flags and options. What
// every reply must have is checked on the way.
func line(t *testing.T, request, reply []byte) string {
	t.Helper()
	if reply == nil {
		return silent
	}
	if len(reply) < 12 || len(request) < 2 || string(reply[:2]) != string(request[:2]) || reply[2]&0x80 == 0 {
		t.Fatalf("reply %x to %x: not a response with its ID", reply, request)
	}
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("reply %x: %v", reply, err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", opcode(m.Opcode), rcode(m.Rcode))
	flags := binary.BigEndian.Uint16(reply[2:])
	for _, f := range []struct {
		bit  uint16
		name string
	}{{1 << 10, "aa"}, {1 << 9, "tc"}, {1 << 8, "rd"}, {1 << 7, "ra"}, {1 << 6, "z"}, {1 << 5, "ad"}, {1 << 4, "cd"}} {
		if flags&f.bit != 0 {
			b.WriteString(" " + f.name)
		}
	}
	extra := slices.DeleteFunc(slices.Clone(m.Extra), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	fmt.Fprintf(&b, " %d %d %d %d", len(m.Question), len(m.Answer), len(m.Ns), len(extra))
	if opt := m.IsEdns0(); opt != nil {
		fmt.Fprintf(&b, " edns%d %d", opt.Version(), opt.UDPSize())
		if flags := opt.Hdr.Ttl & 0xffff; flags != 0 {
			fmt.Fprintf(&b, " %#04x", flags)
		}
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				fmt.Fprintf(&b, " ede%d", e.InfoCode)
				continue
			}
			fmt.Fprintf(&b, " option%d", o.Option())
		}
	}
	if len(m.Extra)-len(extra) > 1 {
		t.Errorf("reply %x has several OPT records", reply)
	}
	// 0x20: a question that comes back is the one that was asked, to the octet.
	if len(m.Question) == 1 {
		name, end, err := dns.UnpackDomainName(request, 12)
		if err != nil {
			t.Fatalf("a question came back from %x, which has none: %x", request, reply)
		}
		q := m.Question[0]
		asked := question("", q.Qtype, q.Qclass)
		if q.Name != name || !bytes.HasPrefix(append(request[end:len(request):len(request)], 0, 0, 0, 0), asked) {
			t.Errorf("question of %x is not that of %x", reply, request)
		}
	}
	return b.String()
}

func opcode(n int) string {
	if name, ok := dns.OpcodeToString[n]; ok {
		return name
	}
	return fmt.Sprintf("OPCODE%d", n)
}

func rcode(n int) string {
	if n == dns.RcodeBadVers { // in a TSIG record the same number is BADSIG
		return "BADVERS"
	}
	return dns.RcodeToString[n]
}

// records writes records as one would in a zone file.
func records(section []dns.RR) []string {
	var out []string
	for _, rr := range section {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	return out
}

// both runs a test for each server block, over UDP and TCP.
func (n *node) both(t *testing.T, fn func(t *testing.T, s server, network string)) {
	t.Helper()
	for _, s := range n.servers {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(s.name+" "+network, func(t *testing.T) { fn(t, s, network) })
		}
	}
}
