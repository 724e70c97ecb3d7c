package conformance_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/miekg/dns"
)

const okSOA = "QUERY NOERROR aa 1 1 0 0"

// framed is a packet with its length before it.
func framed(packet []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
}

func soaQuery(id int) *dns.Msg {
	return query(zone+".", dns.TypeSOA, func(m *dns.Msg) { m.Id = uint16(id) })
}

// TCP: RFC 7766 §6.2.1, §6.2.1.1, §6.2.3 and §8.
func (n *node) testTCP(t *testing.T) {
	// expect reads the replies to the queries with IDs from first up to last, in
	// any order.
	expect := func(t *testing.T, l *link, first, last int) {
		t.Helper()
		seen := make(map[int]bool)
		for range last - first {
			reply, err := l.receive(t)
			if err != nil {
				t.Fatalf("after %d of %d replies: %v", len(seen), last-first, err)
			}
			id := int(binary.BigEndian.Uint16(reply))
			if id < first || id >= last || seen[id] {
				t.Fatalf("reply with ID %d, which is not waited for", id)
			}
			seen[id] = true
			if got := line(t, pack(t, soaQuery(id)), reply); got != okSOA {
				t.Errorf("reply %q, want %q", got, okSOA)
			}
		}
	}
	write := func(t *testing.T, l *link, b []byte) {
		t.Helper()
		if _, err := l.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range n.servers {
		t.Run(s.name, func(t *testing.T) {
			t.Run("many queries in turn", func(t *testing.T) {
				l := dial(t, "tcp", s.addr)
				for id := range 500 {
					l.send(t, pack(t, soaQuery(id)))
					expect(t, l, id, id+1)
				}
			})
			t.Run("pipelined", func(t *testing.T) {
				l := dial(t, "tcp", s.addr)
				var all []byte
				for id := range 200 {
					all = append(all, framed(pack(t, soaQuery(id)))...)
				}
				write(t, l, all)
				expect(t, l, 0, 200)
			})
			t.Run("split everywhere", func(t *testing.T) {
				b := framed(pack(t, soaQuery(7)))
				l := dial(t, "tcp", s.addr)
				for i := 1; i < len(b); i++ {
					write(t, l, b[:i])
					write(t, l, b[i:])
					expect(t, l, 7, 8)
				}
			})
			t.Run("octet by octet", func(t *testing.T) {
				l := dial(t, "tcp", s.addr)
				for _, c := range framed(pack(t, soaQuery(8))) {
					write(t, l, []byte{c})
				}
				expect(t, l, 8, 9)
			})
			t.Run("half-close", func(t *testing.T) {
				l := dial(t, "tcp", s.addr)
				for id := range 3 {
					l.send(t, pack(t, soaQuery(id)))
				}
				if err := l.Conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				expect(t, l, 0, 3)
				if _, err := l.receive(t); !errors.Is(err, io.EOF) {
					t.Errorf("after the last reply: %v, want the end of the connection", err)
				}
			})
			t.Run("half-close within a message", func(t *testing.T) {
				l := dial(t, "tcp", s.addr)
				l.send(t, pack(t, soaQuery(1)))
				write(t, l, framed(pack(t, soaQuery(2)))[:9])
				if err := l.Conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				expect(t, l, 1, 2)
				if _, err := l.receive(t); !closed(err) {
					t.Errorf("after the last reply: %v, want the end of the connection", err)
				}
			})
			t.Run("a message that cannot be read between others", func(t *testing.T) {
				l := dial(t, "tcp", s.addr)
				bad := join(header(0, 1, 0, 0, 0), []byte{0xc0})
				write(t, l, join(framed(pack(t, soaQuery(1))), framed(bad), framed(header(0x8000, 0, 0, 0, 0)), framed(nil), framed(pack(t, soaQuery(2)))))
				expect(t, l, 1, 2)
				reply, err := l.receive(t)
				if err != nil {
					t.Fatal(err)
				}
				if got := line(t, bad, reply); got != "QUERY FORMERR 0 0 0 0" {
					t.Errorf("reply %q", got)
				}
				expect(t, l, 2, 3)
			})
			t.Run("the longest message", func(t *testing.T) {
				l := dial(t, "tcp", s.addr)
				q := soaQuery(9)
				q.SetEdns0(1232, false)
				q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{}}
				q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: bytes.Repeat([]byte{0}, dns.MaxMsgSize-1-q.Len())}}
				packet := pack(t, q)
				l.send(t, packet)
				reply, err := l.receive(t)
				if err != nil {
					t.Fatal(err)
				}
				if got := line(t, packet, reply); len(packet) != dns.MaxMsgSize-1 || got != okSOA+" edns0 1232" {
					t.Errorf("reply to %d octets %q", len(packet), got)
				}
			})
			t.Run("connections side by side", func(t *testing.T) {
				var links []*link
				for range 50 {
					l := dial(t, "tcp", s.addr)
					write(t, l, framed(pack(t, soaQuery(1)))[:5]) // none of them is done
					links = append(links, l)
				}
				last := dial(t, "tcp", s.addr)
				last.send(t, pack(t, soaQuery(2)))
				expect(t, last, 2, 3)
				for _, l := range links {
					write(t, l, framed(pack(t, soaQuery(1)))[5:])
					expect(t, l, 1, 2)
				}
			})
		})
	}
}
