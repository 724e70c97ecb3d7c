//go:build interop

package e2e_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

// milterLines are what docs/signers.md says to put into main.cf.
const milterLines = `smtpd_milters = inet:127.0.0.1:8891
non_smtpd_milters = inet:127.0.0.1:8891
milter_default_action = tempfail
`

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
	relay, mails := mta.Sink(t)
	addr := mta.StartPostfix(t, relay, strings.ReplaceAll(milterLines, "127.0.0.1:8891", listen))

	for name, text := range messages() {
		// A second message in the session is signed as the first one.
		for _, code := range mta.Submit(t, addr, nil, text, text) {
			if code != 250 {
				t.Errorf("%s: reply %d", name, code)
			}
		}
		for range 2 {
			got := mta.Receive(t, mails)
			if v := verifyMail(t, s.dns, got); v.Err != nil || v.Domain != "acme."+zone {
				t.Errorf("%s: %+v in\n%.3000s", name, v, got)
			}
		}
	}
	// An unknown command does not disturb.
	mta.Submit(t, addr, []string{"BREW coffee"}, mail)
	if v := verifyMail(t, s.dns, mta.Receive(t, mails)); v.Err != nil {
		t.Error(v.Err)
	}
	// Mail from elsewhere is not signed, that of a client who authenticated there is.
	mta.Submit(t, addr, []string{"XCLIENT ADDR=198.51.100.7", "EHLO elsewhere.example"}, mail)
	if got := mta.Receive(t, mails); strings.Contains(got, "DKIM-Signature") {
		t.Errorf("mail from elsewhere is signed:\n%s", got)
	}
	// While no dkimd answers the client is to come again.
	s.Process.Kill()
	s.Process.Exit(t, stopLimit)
	if codes := mta.Submit(t, addr, nil, mail); codes[0] != 451 {
		t.Errorf("reply %d without dkimd, want 451", codes[0])
	}
	stop(t, milter)
}
