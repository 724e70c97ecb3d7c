//go:build interop

package e2e_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

// sendmailLines are what docs/signers.md says to put into sendmail.mc.
const sendmailLines = "INPUT_MAIL_FILTER(`dkimd', `S=inet:8891@127.0.0.1, F=T, T=S:30s;R:30s;E:1m')dnl\n"

// sendmailMC makes everything else local: %[1]s is a directory, %[2]s and %[3]s are the ports
// where it listens and where it sends to.
const sendmailMC = "OSTYPE(`linux')dnl\n" +
	"define(`QUEUE_DIR', `%[1]s/queue')dnl\n" +
	"define(`confPID_FILE', `%[1]s/pid')dnl\n" +
	"define(`STATUS_FILE', `%[1]s/statistics')dnl\n" +
	"define(`ALIAS_FILE', `%[1]s/aliases')dnl\n" +
	"define(`confSERVICE_SWITCH_FILE', `%[1]s/service.switch')dnl\n" +
	"define(`confDOMAIN_NAME', `mx.spamtrap.dk')dnl\n" +
	"define(`confRUN_AS_USER', `root')dnl\n" +
	"define(`confTO_IDENT', `0')dnl\n" +
	"define(`confQUEUE_LA', `1000')dnl\n" + // on a busy machine it would not send
	"define(`confREFUSE_LA', `1000')dnl\n" +
	"define(`confDELAY_LA', `1000')dnl\n" +
	"define(`SMART_HOST', `esmtp:[127.0.0.1]')dnl\n" +
	"define(`ESMTP_MAILER_ARGS', `TCP $h %[3]s')dnl\n" +
	"FEATURE(`accept_unresolvable_domains')dnl\n" +
	"FEATURE(`nocanonify')dnl\n" +
	"FEATURE(`promiscuous_relay')dnl\n" +
	"FEATURE(`no_default_msa')dnl\n" +
	"DAEMON_OPTIONS(`Name=MTA, Addr=%[4]s, Port=%[2]s')dnl\n"

// startSendmail starts Sendmail, from where make interop unpacked it, and is where it listens.
func startSendmail(t *testing.T, milter, relay string) string {
	t.Helper()
	root, err := filepath.Abs("../../build/sendmail")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); err != nil {
		t.Fatalf("Sendmail is missing; make interop unpacks it: %v", err)
	}
	dir := t.TempDir()
	addr := harness.Addr(t)
	ip, port, _ := net.SplitHostPort(addr)
	_, relayPort, _ := net.SplitHostPort(relay)
	host, milterPort, _ := net.SplitHostPort(milter)
	mc := fmt.Sprintf(sendmailMC, dir, port, relayPort, ip) + strings.ReplaceAll(sendmailLines, "8891@127.0.0.1", milterPort+"@"+host) + "MAILER(`smtp')dnl\n"
	for name, text := range map[string]string{"sendmail.mc": mc, "service.switch": "hosts files\naliases files\n", "aliases": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "queue"), 0o700); err != nil {
		t.Fatal(err)
	}
	cf := filepath.Join(root, "usr/share/sendmail/cf")
	config, err := exec.Command("m4", "-D_CF_DIR_="+cf+"/", filepath.Join(cf, "m4/cf.m4"), filepath.Join(dir, "sendmail.mc")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sendmail.cf"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	// It waits for a minute if the machine's name has no dot.
	cmd := exec.Command("unshare", "--uts", "sh", "-c", `hostname mx.spamtrap.dk && exec "$@"`, "sh",
		filepath.Join(root, "usr/libexec/sendmail/sendmail"), "-bD", "-C", filepath.Join(dir, "sendmail.cf"), "-X", filepath.Join(dir, "talk"))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Errorf("stop Sendmail: %v", err)
		}
		_ = cmd.Wait() // it tells of the signal
		if t.Failed() {
			talk, _ := os.ReadFile(filepath.Join(dir, "talk"))
			t.Logf("Sendmail:\n%s\n%.20000s", log.String(), talk)
		}
	})
	harness.Eventually(t, startLimit, "Sendmail listens", func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return addr
}

// Sendmail of Debian has its mail signed by dkimd milter.
func TestSendmail(t *testing.T) {
	doc, err := os.ReadFile("../../docs/signers.md")
	if err != nil || !strings.Contains(string(doc), sendmailLines) {
		t.Errorf("docs/signers.md does not have these lines: %v\n%s", err, sendmailLines)
	}
	s := newSigning(t)
	listen := harness.Addr(t)
	// L=990 is what its SMTP mailers have.
	milter := s.startMilter(t, listen, "", append([]string{"--long-lines", "unsigned", "--line-limit", "990"}, certFlags(s.signerCert(t, "mx1"))...)...)
	relay, mails := mta.Sink(t)
	addr := startSendmail(t, listen, relay)
	for name, text := range messages() {
		for _, code := range mta.Submit(t, addr, nil, text, text) {
			if code != 250 {
				t.Errorf("%s: reply %d", name, code)
			}
		}
		for range 2 {
			got := mta.Receive(t, mails)
			if name == "over 998" || name == "long field" {
				if strings.Contains(got, "DKIM-Signature") {
					t.Errorf("%s is signed", name)
				}
				continue
			}
			if v := verifyMail(t, s.dns, got); v.Err != nil || v.Domain != "acme."+zone {
				t.Errorf("%s: %+v in\n%.3000s", name, v, got)
			}
		}
	}
	stop(t, milter)
}
