//go:build interop

package interop_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gomilter "github.com/emersion/go-milter"

	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

// startAgent starts dkimd agent in a directory of its own, with more flags, and is that
// directory once a table has all domains.
func (m *matrix) startAgent(t *testing.T, format, table string, flags ...string) string {
	t.Helper()
	dir := filepath.Join(mta.Directory(t, "root"), format)
	cert := m.etcd.PKI.Client(t, "agent-"+format, "signer")
	args := []string{
		"agent", "--format", format, "--dir", dir, "--metrics-listen", harness.Addr(t),
		"--tls-ca", cert.CA, "--tls-cert", cert.Cert, "--tls-key", cert.Key,
	}
	for _, d := range m.dkimd {
		args = append(args, "--dkimd", d.grpc)
	}
	p := harness.Start(t, "dkimd agent "+format, harness.Dkimd, nil, append(args, flags...)...)
	harness.Eventually(t, limit, "the agent has written "+table, func() error {
		if err := p.Running(); err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, table))
		if err == nil && !strings.Contains(strings.ReplaceAll(string(text), `\`, ""), "default.dk") { // rspamd's are patterns
			err = fmt.Errorf("it has %q", text)
		}
		return err
	})
	return dir
}

// openDKIMSigner is an OpenDKIM with dkimd agent.
func openDKIMSigner(t *testing.T, m *matrix) func(context.Context, string, string) (string, error) {
	t.Helper()
	addr, run := harness.Addr(t), mta.Directory(t, "opendkim")
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(run, "opendkim.pid")
	dir := m.startAgent(t, "opendkim", "SigningTable", "--user", "opendkim", "--reload-pid-file", pidFile)
	config := documented(t, "MultipleSignatures", "/var/lib/dkimd-agent/opendkim", dir, "8891@127.0.0.1", port+"@"+host, "/run/opendkim/opendkim.pid", pidFile)
	conf := filepath.Join(run, "opendkim.conf")
	if err := os.WriteFile(conf, []byte(config), 0o644); err != nil { // it reads it again after each change
		t.Fatal(err)
	}
	harness.StartSystem(t, "/usr/sbin/opendkim", "-f", "-x", conf)
	harness.Listens(t, "OpenDKIM", addr)
	return func(_ context.Context, _, message string) (string, error) {
		changes, err := milterChanges(addr, "127.0.0.1", message)
		for _, c := range changes {
			if c.Code != gomilter.ActInsertHeader {
				return "", errors.New("OpenDKIM wants another change than a new header field")
			}
			message = c.HeaderName + ": " + strings.ReplaceAll(c.HeaderValue, "\n", "\r\n") + "\r\n" + message
		}
		return message, err
	}
}

const eximSignerConfig = `primary_hostname = mx.spamtrap.dk
spool_directory = DIR
log_file_path = DIR/%slog
local_interfaces = HOST
daemon_smtp_ports = PORT
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
message_size_limit = 20M
acl_smtp_rcpt = accept
deliver_drop_privilege
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = out
begin transports
out:
  driver = smtp
`

// eximSigner is an Exim with dkimd agent.
func eximSigner(t *testing.T, m *matrix) func(context.Context, string, string) (string, error) {
	t.Helper()
	dir := m.startAgent(t, "exim", "domains", "--group", "Debian-exim")
	relay, mails := mta.Sink(t)
	_, port, err := net.SplitHostPort(relay)
	if err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(m.resolver)
	if err != nil {
		t.Fatal(err)
	}
	transport := documented(t, "dkim_private_key", "/var/lib/dkimd-agent/exim", dir)
	addr := startExim(t, host, eximSignerConfig+transport+"  port = "+port+"\n  message_linelength_limit = 100000\n")
	return through(addr, mails)
}

// rspamdFileSigner is an rspamd with dkimd agent.
func rspamdFileSigner(t *testing.T, m *matrix) func(context.Context, string, string) (string, error) {
	t.Helper()
	dir := m.startAgent(t, "rspamd", "signing_table", "--user", "_rspamd")
	return rspamdSigner(mta.StartRspamd(t, m.resolver, "", mta.RspamdSigner("dkim_signing", documented(t, "signing_table", "/var/lib/dkimd-agent/rspamd", dir))))
}
