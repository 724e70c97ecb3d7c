package harness_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
)

// greeter sends its name on each connection and then what it is sent.
func greeter(t *testing.T, name string) string {
	t.Helper()
	l := harness.Listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.WriteString(c, name); err == nil {
					io.Copy(c, c) //nolint:errcheck // ends with the connection
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	p := harness.StartProxy(t, greeter(t, "a"))
	open := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// read returns one octet, or the error of not getting one for so long.
	read := func(c net.Conn, limit time.Duration) (string, error) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		n, err := c.Read(b[:])
		return string(b[:n]), err
	}
	const soon, moment = 10 * time.Second, 50 * time.Millisecond
	want := func(c net.Conn, octet string) {
		t.Helper()
		if got, err := read(c, soon); got != octet || err != nil {
			t.Fatalf("read %q, %v; want %q", got, err, octet)
		}
	}
	silent := func(c net.Conn) {
		t.Helper()
		if got, err := read(c, moment); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read %q, %v; want nothing", got, err)
		}
	}
	echo := func(c net.Conn, octet string) {
		t.Helper()
		if _, err := io.WriteString(c, octet); err != nil {
			t.Fatal(err)
		}
	}

	first := open()
	want(first, "a")
	echo(first, "1")
	want(first, "1")

	p.Blackhole()
	echo(first, "2")
	silent(first)
	second := open()
	silent(second)
	p.Restore()
	want(first, "2")
	want(second, "a")
	if n := p.Conns(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}

	p.Hang()
	echo(first, "3")
	silent(first)
	third := open()
	want(third, "a")

	p.Cut()
	for _, c := range []net.Conn{first, second, third, open()} {
		if got, err := read(c, soon); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %q, %v; want the connection closed", got, err)
		}
	}
	p.Restore()
	p.SetTarget(greeter(t, "b"))
	want(open(), "b")
}
