package milter_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/dkimzone/dkimzone/internal/milter"
	"github.com/dkimzone/dkimzone/signer"
)

const letter = "Received: from a by b\r\nFrom: Joe <joe@example.org>\r\nTo: Jane <jane@example.com>\r\nSubject: Is dinner\r\n ready?\r\n" +
	"Date: Fri, 11 Jul 2003 21:00:37 -0700\r\nMessage-ID: <1@example.org>\r\n\r\nHi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe. \r\n\r\n"

// header is a letter with another header.
func header(lines ...string) string {
	return strings.Join(lines, "\r\n") + "\r\n\r\nHi.\r\n"
}

// All that a mail server may send is signed with each key of its domain, so that
// go-msgauth verifies it.
func TestSigned(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "rsa1", "ed1")
	f := d.filter(t, milter.Options{})
	tests := []struct{ name, text string }{
		{"plain", letter},
		{"empty body", "From: joe@example.org\r\n\r\n"},
		{"body without a line ending", "From: joe@example.org\r\n\r\nHi"},
		{"white space and empty lines only", "From: joe@example.org\r\n\r\n \t\r\n\r\n \r\n"},
		{"8 bit", header("From: Joë <joe@example.org>", "Subject: gr\xfc\xdfe", "Content-Type: text/plain; charset=latin1") + "\xe4\xf6\xfc\r\n"},
		{"odd folds", header("From:joe@example.org", "Subject:  a \r\n\t  b\r\n c ", "To:\r\n jane@example.com")},
		{"empty fields", header("From: joe@example.org", "Subject:", "To: ")},
		{"odd letters", header("FROM: joe@example.org", "sUBJECT: a", "MIME-version: 1.0")},
		{"fields that come again", header("From: joe@example.org", "To: a@example.com", "Subject: 1", "To: b@example.com", "Subject: 2")},
		{"long lines", header("From: joe@example.org", "Subject: "+strings.Repeat("long ", 197)+"1234") + strings.Repeat("y", 998) + "\r\n"},
		{"many references", header("From: joe@example.org", "References: "+strings.Repeat("<1234567890@example.org>\r\n ", 100)+"<2@example.org>")},
		{"a signature that is there", "DKIM-Signature: v=1; a=rsa-sha256; d=example.com\r\n" + letter},
		{"dots", header("From: joe@example.org") + ".\r\n..\r\n"},
	}
	s := f.connect(t, inside) // one session for all
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text, a := send(t, s, inside, tt.text)
			if a.Code != gomilter.ActAccept {
				t.Fatalf("reply %+v", a)
			}
			good := map[string]bool{}
			for _, v := range d.verify(t, text) {
				if v.Domain != "example.org" {
					continue
				}
				if v.Err != nil {
					t.Errorf("%v in\n%s", v.Err, text)
				}
				good[v.Identifier] = true
			}
			if strings.Count(text, "a=rsa-sha256; c=relaxed/relaxed;") != 1 || strings.Count(text, "a=ed25519-sha256;") != 1 || len(good) == 0 {
				t.Errorf("not signed with both:\n%s", text)
			}
			for line := range strings.SplitSeq(strings.TrimSuffix(text, tt.text), "\r\n") {
				if len(line) > 78 {
					t.Errorf("long line %q", line)
				}
			}
		})
	}
}

// What is signed cannot be changed without notice, and From cannot be added.
func TestTampered(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	text, _ := send(t, d.filter(t, milter.Options{OversignHeaders: []string{"Cc"}}).connect(t, inside), inside, letter)
	tests := []struct {
		name, text string
		broken     bool
	}{
		{"as it is", text, false},
		{"another trace", "Received: from b by c\r\n" + text, false},
		{"field that is not signed", "X-Spam: no\r\n" + text, false},
		{"To in another way", strings.Replace(text, "To: Jane <", "to:  Jane\r\n <", 1), false},
		{"subject", strings.Replace(text, "dinner", "supper", 1), true},
		{"body", strings.Replace(text, "lost", "won", 1), true},
		{"another From", "From: eve@example.com\r\n" + text, true},
		{"another Cc", "Cc: eve@example.com\r\n" + text, true},
	}
	for _, tt := range tests {
		v := d.verify(t, tt.text)
		if len(v) != 1 || (v[0].Err != nil) != tt.broken {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}

// Who may sign, and for whom.
func TestWho(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	d.rotate(t, "nokeys.example")
	f := d.filter(t, milter.Options{})
	tests := []struct {
		name   string
		client client
		from   string
		signed bool
	}{
		{"internal", inside, "joe@example.org", true},
		{"internal, IPv6", client{address: "2001:db8::1"}, "joe@example.org", true},
		{"internal, IPv4 in IPv6", client{address: "::ffff:192.0.2.1"}, "joe@example.org", true},
		{"Unix socket", client{}, "joe@example.org", true},
		{"authenticated", client{address: "198.51.100.1", user: "joe"}, "joe@example.org", true},
		{"neither", client{address: "198.51.100.1"}, "joe@example.org", false},
		{"neither, IPv6", client{address: "2001:db9::1"}, "joe@example.org", false},
		{"unknown domain", inside, "joe@unknown.example", false},
		{"domain without keys", inside, "joe@nokeys.example", false},
		{"subdomain", inside, "joe@mail.example.org", false},
		{"no address", inside, "joe", false},
		{"two domains", inside, "joe@example.org, eve@example.com", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := f.connect(t, tt.client)
			for range 2 { // who the client is holds for the whole session
				text, a := send(t, s, tt.client, header("From: "+tt.from))
				if a.Code != gomilter.ActAccept || (len(d.verify(t, text)) == 1) != tt.signed {
					t.Errorf("reply %+v, signed %t:\n%s", a, !tt.signed, text)
				}
			}
		})
	}
	// Being authenticated is for one message, not for the next one of another user.
	s := f.connect(t, client{address: "198.51.100.1"})
	user := client{user: "joe"}
	if text, _ := send(t, s, user, letter); len(d.verify(t, text)) != 1 {
		t.Error("the mail of an authenticated client is not signed")
	}
	if err := s.Macros(gomilter.CodeMail, "{auth_authen}", ""); err != nil {
		t.Fatal(err)
	}
	if text, _ := send(t, s, client{}, letter); len(d.verify(t, text)) != 0 {
		t.Error("the mail after it is signed")
	}
}

// A message is signed with the keys that sign at its end.
func TestRotation(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	s := d.filter(t, milter.Options{}).connect(t, inside)
	for _, selector := range []string{"ed1", "ed2", "rsa3"} {
		begin(t, s, inside, "From: joe@example.org")
		d.rotate(t, "example.org", selector)
		changes, a, err := s.End()
		if err != nil || a.Code != gomilter.ActAccept || len(changes) != 1 || !strings.Contains(changes[0].HeaderValue, "s="+selector+";") {
			t.Errorf("%s: %+v, %+v, %v", selector, a, changes, err)
		}
	}
}

// While dkimd is away mail waits, or goes out unsigned. The session goes on.
func TestTrouble(t *testing.T) {
	t.Parallel()
	for trouble, want := range map[milter.Trouble]gomilter.ActionCode{milter.TempFail: gomilter.ActReplyCode, milter.Accept: gomilter.ActAccept} {
		t.Run(string(trouble), func(t *testing.T) {
			t.Parallel()
			var logged bytes.Buffer
			d := newDkimd(t)
			d.setDown()
			f := d.filter(t, milter.Options{OnTrouble: trouble, Timeout: time.Second, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
			s := f.connect(t, inside)
			for range 2 {
				text, a := send(t, s, inside, letter)
				if text != letter || a.Code != want || (want == gomilter.ActReplyCode && a.SMTPCode != 451) {
					t.Errorf("reply %+v to\n%s", a, text)
				}
			}
			if err := f.stop(); err != nil {
				t.Error(err)
			}
			if n := strings.Count(logged.String(), "cannot sign"); n != 2 {
				t.Errorf("it says so %d times:\n%s", n, logged.String())
			}
		})
	}
}

// A message that is given up leaves nothing to the next one.
func TestAbort(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	s := d.filter(t, milter.Options{}).connect(t, inside)
	begin(t, s, inside, "From: eve@example.com\r\nSubject: x")
	if _, err := s.BodyChunk([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if err := s.Abort(); err != nil {
		t.Fatal(err)
	}
	text, _ := send(t, s, inside, letter)
	if v := d.verify(t, text); len(v) != 1 || v[0].Err != nil {
		t.Errorf("%+v", v)
	}
}

// A message of 64 MB is not kept in memory.
func TestBigMessage(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	s := d.filter(t, milter.Options{}).connect(t, inside)
	begin(t, s, inside, "From: joe@example.org")
	chunk := bytes.Repeat([]byte("0123456789012345678901234567890\r\n"), 1900)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 1000 {
		if _, err := s.BodyChunk(chunk); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d octets of memory for %d of a body", grown, 1000*len(chunk))
	}
	if changes, _, err := s.End(); err != nil || len(changes) != 1 {
		t.Errorf("%+v, %v", changes, err)
	}
}

// Who stops it waits for the message that is being told, and no longer than Grace.
func TestStop(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	f := d.filter(t, milter.Options{Grace: time.Minute})
	f.connect(t, inside) // is idle, nobody waits for it
	s := f.connect(t, inside)
	begin(t, s, inside, "From: joe@example.org")
	lost := f.connect(t, inside)
	begin(t, lost, inside, "From: joe@example.org")
	var stopped sync.WaitGroup
	stopped.Go(func() {
		if err := f.stop(); err != nil {
			t.Error(err)
		}
	})
	if changes, _, err := s.End(); err != nil || len(changes) != 1 {
		t.Errorf("%+v, %v", changes, err)
	}
	_ = lost.Close() // the mail server gives the message up
	stopped.Wait()

	short := d.filter(t, milter.Options{Grace: time.Millisecond})
	begin(t, short.connect(t, inside), inside, "From: joe@example.org")
	if err := short.stop(); err != nil {
		t.Error(err)
	}
}

// Octets that are no milter protocol end their connection, and no other.
func TestGarbage(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	f := d.filter(t, milter.Options{})
	for _, octets := range []string{"GET / HTTP/1.1\r\n\r\n", "\xff\xff\xff\xffO", "\x00\x00\x00\x00", "\x00\x00\x00\x01C", "\x00\x00\x00\x01E", "\x00\x00\x00\x02B\x00", "\x00\x00\x00\x01D"} {
		exchange(t, f.address, octets)
	}
	text, _ := send(t, f.connect(t, inside), inside, letter)
	if v := d.verify(t, text); len(v) != 1 || v[0].Err != nil {
		t.Errorf("%+v", v)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	tests := []struct {
		name string
		o    milter.Options
		want string
	}{
		{"list", milter.Options{SignHeaders: []string{"From", "Subject", "subject"}}, "h=from:from:subject;"},
		{"default", milter.Options{}, "h=from:from:date:subject:to:message-id;"},
		{"oversigned", milter.Options{SignHeaders: []string{"From", "Subject", "List-ID"}, OversignHeaders: []string{"list-id", "Subject"}}, "h=from:from:subject:subject:list-id;"},
	}
	for _, tt := range tests {
		text, _ := send(t, d.filter(t, tt.o).connect(t, inside), inside, letter)
		if got := strings.Join(strings.Fields(text), ""); !strings.Contains(got, tt.want) {
			t.Errorf("%s: not %s:\n%s", tt.name, tt.want, text)
		}
		if v := d.verify(t, text); len(v) != 1 || v[0].Err != nil {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	client, err := signer.New(signer.Options{Addresses: []string{"dkimd.example.net:9443"}, TLS: &tls.Config{}, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() }) // it was never used
	for want, o := range map[string]milter.Options{
		"Client is missing":                  {},
		`not "reject"`:                       {Client: client, OnTrouble: "reject"},
		"from is not among":                  {Client: client, SignHeaders: []string{"Subject"}},
		`not "cut"`:                          {Client: client, LongLines: "cut"},
		"must be 80 at least":                {Client: client, LineLimit: 79},
		"cc is not among":                    {Client: client, SignHeaders: []string{"From"}, OversignHeaders: []string{"Cc"}},
		"no name of a header field":          {Client: client, SignHeaders: []string{"From", "Sub:ject"}},
		"DKIM-Signature cannot be signed (R": {Client: client, SignHeaders: []string{"From", "DKIM-Signature"}},
	} {
		if _, err := milter.New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// exchange sends octets and waits until the filter has closed the connection or
// has answered.
func exchange(t *testing.T, address, octets string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, octets); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q: the connection stays open", octets)
	}
}
