//go:build interop

package e2e_test

import (
	"bytes"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
)

// milterLines are what docs/signers.md says to put into main.cf.
const milterLines = `smtpd_milters = inet:127.0.0.1:8891
non_smtpd_milters = inet:127.0.0.1:8891
milter_default_action = tempfail
`

const mainCF = `compatibility_level = 3.6
myhostname = mx.spamtrap.dk
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [127.0.0.1]:%[2]s
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = /dev/stdout
disable_dns_lookups = yes
smtpd_peername_lookup = no
mynetworks = 0.0.0.0/0
smtpd_authorized_xclient_hosts = 127.0.0.1
message_size_limit = 20000000
`

const masterCF = `%[1]s inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

// sink takes mail for whomever.
func sink(t *testing.T) (addr string, mails <-chan string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
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
	defer c.Close()
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

// startPostfix starts Postfix with our milter, and is where it listens.
func startPostfix(t *testing.T, milter, relay string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "postfix") //nolint:usetesting // its daemons are other users, who do not reach t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	addr := harness.Addr(t)
	_, relayPort, _ := net.SplitHostPort(relay)
	for name, text := range map[string]string{
		"main.cf":   fmt.Sprintf(mainCF, dir, relayPort) + strings.ReplaceAll(milterLines, "127.0.0.1:8891", milter),
		"master.cf": fmt.Sprintf(masterCF, addr),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"queue", "data"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "postfix", filepath.Join(dir, "data")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var log bytes.Buffer
	cmd := exec.Command("postfix", "-c", dir, "start-fg")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		out, err := exec.Command("postfix", "-c", dir, "stop").CombinedOutput()
		if err != nil {
			t.Errorf("stop Postfix: %v: %s", err, out)
		}
		_ = cmd.Wait() // it tells of the signal that stop sent
		if t.Failed() {
			t.Logf("Postfix:\n%s", log.String())
		}
	})
	harness.Eventually(t, startLimit, "Postfix listens", func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return addr
}

// submit sends messages in one SMTP session, after some commands, and is the reply
// to each.
func submit(t *testing.T, addr string, before []string, texts ...string) (codes []int) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := textproto.NewConn(nc)
	defer c.Close()
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	cmd := func(want int, line string) {
		t.Helper()
		if line != "" {
			if err := c.PrintfLine("%s", line); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := c.ReadResponse(want); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	cmd(220, "")
	cmd(250, "EHLO client.example")
	for _, line := range before {
		cmd(0, line)
	}
	for _, text := range texts {
		cmd(250, "MAIL FROM:<joe@spamtrap.dk> BODY=8BITMIME")
		cmd(250, "RCPT TO:<jane@example.com>")
		cmd(354, "DATA")
		w := c.DotWriter()
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		code, _, err := c.ReadResponse(0)
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, code)
	}
	return codes
}

// messages are of all shapes.
func messages() map[string]string {
	from := "From: Joe <joe@spamtrap.dk>\r\nTo: Jane <jane@example.com>\r\n"
	return map[string]string{
		"plain":      mail,
		"8 bit":      from + "Subject: gr\xfc\xdfe\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xe4\xf6\xfc\r\n",
		"multipart":  from + "MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary=x\r\n\r\n--x\r\n\r\na\r\n--x\r\nContent-Type: text/html\r\n\r\n<p>b\r\n--x--\r\n",
		"empty body": from + "Subject: nothing\r\n\r\n",
		"folded":     from + "Subject: a \r\n\t b\r\n   c\r\nReferences: " + strings.Repeat("<1234567890@example.org>\r\n ", 60) + "<2@example.org>\r\n\r\n.\r\n..\r\nHi \t\r\n\r\n\r\n",
		"long lines": from + "Subject: long\r\n\r\n" + strings.Repeat(strings.Repeat("x y  ", 190)+"\r\n", 20),
		"over 998":   from + "Subject: longer\r\n\r\n" + strings.Repeat("x y  ", 2000) + "\r\n" + strings.Repeat("0123456789", 1000) + "\r\n" + strings.Repeat("z", 999) + "\r\n",
		"long field": from + "Subject: " + strings.Repeat("0123456789", 150) + "\r\nReferences: <1@example.org>\r\n <" + strings.Repeat("2", 1200) + "@example.org>\r\n\r\nHi.\r\n",
		"fields":     "to: a@example.com\r\nFROM : joe@spamtrap.dk\r\nSubject:\r\nX-Other: 1\r\n\r\nHi.\r\n",
		"10 MB":      from + "Subject: big\r\n\r\n" + strings.Repeat("The quick brown fox jumps over the lazy dog.\r\n", 10_000_000/46),
	}
}

// Postfix of Debian has its mail signed by dkimd milter. What it then sends is
// verified with what the name server serves.
func TestPostfix(t *testing.T) {
	if _, err := exec.LookPath("postfix"); err != nil {
		t.Fatal("Postfix is missing; make interop installs it")
	}
	doc, err := os.ReadFile("../../docs/signers.md")
	if err != nil || !strings.Contains(string(doc), milterLines) {
		t.Errorf("docs/signers.md does not have these lines: %v\n%s", err, milterLines)
	}
	s := newSigning(t)
	listen := harness.Addr(t)
	milter := s.startMilter(t, listen, "", certFlags(s.signerCert(t, "mx1"))...)
	relay, mails := sink(t)
	addr := startPostfix(t, listen, relay)

	for name, text := range messages() {
		// A second message in the session is signed as the first one.
		for _, code := range submit(t, addr, nil, text, text) {
			if code != 250 {
				t.Errorf("%s: reply %d", name, code)
			}
		}
		for range 2 {
			got := receive(t, mails)
			if v := verifyMail(t, s.dns, got); v.Err != nil || v.Domain != "acme."+zone {
				t.Errorf("%s: %+v in\n%.3000s", name, v, got)
			}
		}
	}
	// An unknown command does not disturb.
	submit(t, addr, []string{"BREW coffee"}, mail)
	if v := verifyMail(t, s.dns, receive(t, mails)); v.Err != nil {
		t.Error(v.Err)
	}
	// Mail from elsewhere is not signed, that of a client who authenticated there is.
	submit(t, addr, []string{"XCLIENT ADDR=198.51.100.7", "EHLO elsewhere.example"}, mail)
	if got := receive(t, mails); strings.Contains(got, "DKIM-Signature") {
		t.Errorf("mail from elsewhere is signed:\n%s", got)
	}
	// While no dkimd answers the client is to come again.
	s.Process.Kill()
	s.Process.Exit(t, stopLimit)
	if codes := submit(t, addr, nil, mail); codes[0] != 451 {
		t.Errorf("reply %d without dkimd, want 451", codes[0])
	}
	stop(t, milter)
}

func receive(t *testing.T, mails <-chan string) string {
	t.Helper()
	select {
	case text := <-mails:
		return text
	case <-time.After(time.Minute):
		t.Fatal("no mail comes")
		return ""
	}
}
