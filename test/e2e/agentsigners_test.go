//go:build interop

package e2e_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

// inDocument demands that docs/signers.md has some lines.
func inDocument(t *testing.T, lines string) {
	t.Helper()
	doc, err := os.ReadFile("../../docs/signers.md")
	if err != nil || !strings.Contains(string(doc), lines) {
		t.Errorf("docs/signers.md does not have these lines: %v\n%s", err, lines)
	}
}

var selectorTag = regexp.MustCompile(`;\s*s=\s*([a-z0-9.-]+)`)

// signs waits until mail is signed with another selector than before, and verifies
// each message.
func (s *standalone) signs(t *testing.T, send func() (string, error), before string) (selector string) {
	t.Helper()
	harness.Eventually(t, time.Minute, "mail is signed with another selector than "+before, func() error {
		text, err := send()
		if err != nil {
			return err
		}
		if v := verifyMail(t, s.dns, text); v.Err != nil || v.Domain != "acme."+zone {
			t.Errorf("%+v in\n%s", v, text)
		}
		if m := selectorTag.FindStringSubmatch(text); m != nil && m[1] != before {
			selector = m[1]
			return nil
		}
		return fmt.Errorf("signed\n%s", text)
	})
	return selector
}

// opendkimLines are what docs/signers.md has as opendkim.conf.
const opendkimLines = `Mode                s
UserID              opendkim
Socket              inet:8891@127.0.0.1
PidFile             /run/opendkim/opendkim.pid
KeyTable            file:/var/lib/dkimd-agent/opendkim/KeyTable
SigningTable        refile:/var/lib/dkimd-agent/opendkim/SigningTable
MultipleSignatures  yes
Canonicalization    relaxed/relaxed
OversignHeaders     From
`

// OpenDKIM signs the mail of a Postfix with what the agent writes, and with the next
// key when it was reloaded.
func TestOpenDKIM(t *testing.T) {
	t.Parallel()
	inDocument(t, opendkimLines)
	s := newSigning(t)
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk")
	home, run, addr := mta.Directory(t, "root"), mta.Directory(t, "opendkim"), harness.Addr(t)
	dir := filepath.Join(home, "keys")
	p := s.startAgent(t, s.signerCert(t, "mx1"), "--format", "opendkim", "--dir", dir, "--user", "opendkim", "--reload-pid-file", filepath.Join(run, "opendkim.pid"))
	first := s.agentSigns(t, p, dir, "")
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(home, "opendkim.conf")
	lines := strings.NewReplacer("/var/lib/dkimd-agent/opendkim", dir, "/run/opendkim", run, "inet:8891@127.0.0.1", "inet:"+port+"@"+host).Replace(opendkimLines)
	if err := os.WriteFile(conf, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	harness.StartSystem(t, "/usr/sbin/opendkim", "-f", "-x", conf)
	harness.Listens(t, "OpenDKIM", addr)
	relay, mails := mta.Sink(t)
	postfix := mta.StartPostfix(t, relay, strings.ReplaceAll(milterLines, "127.0.0.1:8891", addr))
	send := func() (string, error) {
		mta.Submit(t, postfix, nil, mail)
		return mta.Receive(t, mails), nil
	}
	if got := s.signs(t, send, ""); got != first.selector {
		t.Errorf("signed with %s, want %s", got, first.selector)
	}
	second := s.rotateUntil(t, p, dir, first)
	if got := s.signs(t, send, first.selector); got != second.selector {
		t.Errorf("signed with %s, want %s", got, second.selector)
	}
}

// eximLines are what docs/signers.md says to put into a transport.
const eximLines = `  dkim_domain = ${lookup{${lc:${domain:$h_from:}}}lsearch{/var/lib/dkimd-agent/exim/domains}}
  dkim_selector = ${lookup{$dkim_domain}lsearch{/var/lib/dkimd-agent/exim/selectors}}
  dkim_private_key = ${lookup{$dkim_selector._domainkey.$dkim_domain}lsearch{/var/lib/dkimd-agent/exim/paths}}
  dkim_strict = true
`

const eximConf = `primary_hostname = mx.spamtrap.dk
exim_path = %[6]s
deliver_drop_privilege = true
spool_directory = %[1]s
log_file_path = %[1]s/%%slog
local_interfaces = %[2]s
daemon_smtp_ports = %[3]s
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
acl_smtp_rcpt = accept
acl_smtp_data = accept
begin routers
out:
  driver = manualroute
  route_list = * 127.0.0.1::%[4]s byname
  self = send
  transport = out
begin transports
out:
  driver = smtp
  hosts_try_fastopen =
  allow_localhost
%[5]s
`

// eximPrograms are where Exim may be: its package does not go together with Postfix, so
// make interop unpacks it.
var eximPrograms = []string{"../../build/exim/usr/sbin/exim4", "/usr/sbin/exim4"}

// Exim signs with what the agent writes, which it reads for each message.
func TestExim(t *testing.T) {
	t.Parallel()
	inDocument(t, eximLines)
	i := slices.IndexFunc(eximPrograms, func(file string) bool { _, err := os.Stat(file); return err == nil })
	if i < 0 {
		t.Fatal("Exim is missing; make interop unpacks it")
	}
	program, err := filepath.Abs(eximPrograms[i])
	if err != nil {
		t.Fatal(err)
	}
	s := newSigning(t)
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk")
	home, spool, addr := mta.Directory(t, "root"), mta.Directory(t, "Debian-exim"), harness.Addr(t)
	dir := filepath.Join(home, "keys")
	relay, mails := mta.Sink(t)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	_, relayPort, err := net.SplitHostPort(relay)
	if err != nil {
		t.Fatal(err)
	}
	p := s.startAgent(t, s.signerCert(t, "mx1"), "--format", "exim", "--dir", dir, "--group", "Debian-exim")
	conf := filepath.Join(home, "exim.conf")
	text := fmt.Sprintf(eximConf, spool, host, port, relayPort, strings.ReplaceAll(eximLines, "/var/lib/dkimd-agent/exim", dir), program)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, time.Minute, "the tables are there", func() error {
		data, err := os.ReadFile(filepath.Join(dir, "domains"))
		if err == nil && len(data) == 0 {
			err = fmt.Errorf("no domain: %s", p.Output())
		}
		return err
	})
	harness.StartSystem(t, program, "-C", conf, "-bdf", "-q1h")
	harness.Listens(t, "Exim", addr)
	send := func() (string, error) {
		mta.Submit(t, addr, nil, mail)
		return mta.Receive(t, mails), nil
	}
	first := s.signs(t, send, "")
	s.rotate(t)
	second := s.signs(t, send, first)
	t.Logf("%s, then %s", first, second)
}
