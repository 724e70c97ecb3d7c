// Package mta has mail come and go on loopback: a receiver that takes all of it, a
// client that sends, and a Postfix of the system between them.
package mta

import (
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

// Sink takes mail for whomever, until the end of the test. What comes is in mails,
// with CRLF at the ends of lines.
func Sink(tb testing.TB) (addr string, mails <-chan string) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ln.Close() })
	got := make(chan string, 100)
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go take(textproto.NewConn(nc), got)
		}
	}()
	return ln.Addr().String(), got
}

func take(c *textproto.Conn, got chan<- string) {
	defer c.Close() //nolint:errcheck // nothing is lost
	reply := func(s string) bool { return c.PrintfLine("%s", s) == nil }
	for ok := reply("220 sink.example"); ok; {
		line, err := c.ReadLine()
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.ToUpper(line), " "); verb {
		case "EHLO":
			ok = reply("250-sink.example") && reply("250-SIZE 100000000") && reply("250 8BITMIME")
		case "DATA":
			ok = reply("354 go on")
			text, err := c.ReadDotBytes()
			if err != nil {
				return
			}
			got <- strings.ReplaceAll(string(text), "\n", "\r\n")
			ok = ok && reply("250 taken")
		case "QUIT":
			reply("221 bye")
			return
		default:
			ok = reply("250 fine")
		}
	}
}

// Receive is the next mail of a sink.
func Receive(tb testing.TB, mails <-chan string) string {
	tb.Helper()
	select {
	case text := <-mails:
		return text
	case <-time.After(time.Minute):
		tb.Fatal("no mail comes")
		return ""
	}
}

// Submit sends messages in one SMTP session, after some commands, and is the reply
// to each.
func Submit(tb testing.TB, addr string, before []string, texts ...string) []int {
	tb.Helper()
	c, err := Dial(addr)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	for _, line := range before {
		if _, _, err := c.Command(0, line); err != nil {
			tb.Fatal(err)
		}
	}
	codes := make([]int, 0, len(texts))
	for _, text := range texts {
		code, _, err := c.Send(text)
		if err != nil {
			tb.Fatal(err)
		}
		codes = append(codes, code)
	}
	return codes
}

// Conn is an SMTP session with a server, for one goroutine.
type Conn struct {
	nc   net.Conn
	text *textproto.Conn
}

// sendLimit is for a command, or a message with the reply to it.
const sendLimit = time.Minute

// Dial begins a session.
func Dial(addr string) (*Conn, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &Conn{nc, textproto.NewConn(nc)}
	if _, _, err := c.reply(220); err == nil {
		if _, _, err = c.Command(250, "EHLO client.example"); err == nil {
			return c, nil
		}
	}
	c.Close()
	return nil, fmt.Errorf("%s greets with something else: %w", addr, err)
}

// Close ends the session.
func (c *Conn) Close() { _ = c.text.Close() } // nothing is lost

// Command sends a line and reads the reply, of the code that is wanted, or of
// any for 0.
func (c *Conn) Command(want int, line string) (code int, reply string, err error) {
	if err := c.text.PrintfLine("%s", line); err != nil {
		return 0, "", err
	}
	if code, reply, err = c.reply(want); err != nil {
		return code, reply, fmt.Errorf("%s: %w", line, err)
	}
	return code, reply, nil
}

func (c *Conn) reply(want int) (code int, text string, err error) {
	if err := c.nc.SetDeadline(time.Now().Add(sendLimit)); err != nil {
		return 0, "", err
	}
	return c.text.ReadResponse(want)
}

// Send sends a message of joe@spamtrap.dk to jane@example.com and is the reply to
// it.
func (c *Conn) Send(message string) (code int, reply string, err error) {
	for _, line := range []string{"MAIL FROM:<joe@spamtrap.dk> BODY=8BITMIME", "RCPT TO:<jane@example.com>"} {
		if _, _, err := c.Command(250, line); err != nil {
			return 0, "", err
		}
	}
	if _, _, err := c.Command(354, "DATA"); err != nil {
		return 0, "", err
	}
	w := c.text.DotWriter()
	if _, err := w.Write([]byte(message)); err != nil {
		return 0, "", err
	}
	if err := w.Close(); err != nil {
		return 0, "", err
	}
	return c.reply(0)
}
