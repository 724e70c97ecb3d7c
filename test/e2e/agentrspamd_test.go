//go:build interop

package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/test/harness"
)

// rspamdLines are what docs/signers.md has as local.d/dkim_signing.conf.
const rspamdLines = `key_table = "/var/lib/dkimd-agent/rspamd/key_table";
signing_table = "regexp;/var/lib/dkimd-agent/rspamd/signing_table";
`

// rspamd signs with what the agent writes, and sees changes by itself.
func TestRspamd(t *testing.T) {
	t.Parallel()
	inDocument(t, rspamdLines)
	s := newSigning(t)
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk")
	home, addr := openDirectory(t), harness.Addr(t)
	dir, run := filepath.Join(home, "keys"), filepath.Join(home, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "_rspamd", run).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := s.startAgent(t, s.signerCert(t, "mx1"), "--format", "rspamd", "--dir", dir, "--user", "_rspamd")
	harness.Eventually(t, startLimit, "the tables are there", func() error {
		data, err := os.ReadFile(filepath.Join(dir, "signing_table"))
		if err == nil && len(data) == 0 {
			err = fmt.Errorf("no domain: %s", p.Output())
		}
		return err
	})
	// Debian's setting is that maps are looked at every 30 s.
	conf := filepath.Join(home, "rspamd.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `options {
    filters = "dkim";
    pidfile = "%[1]s/rspamd.pid";
    map_watch_interval = 5min;
    map_file_watch_multiplier = 0.1;
}
logging { type = "console"; level = "info"; }
worker "normal" { bind_socket = "%[2]s"; count = 1; task_timeout = 1min; }
modules { path = "/usr/share/rspamd/plugins/dkim_signing.lua"; }
dkim_signing {
%[3]s}
`, run, addr, strings.ReplaceAll(rspamdLines, "/var/lib/dkimd-agent/rspamd", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	startProgram(t, "/usr/bin/rspamd", "-f", "--insecure", "-u", "_rspamd", "-g", "_rspamd", "--var=DBDIR="+run, "--var=RUNDIR="+run, "--var=LOGDIR="+run, "-c", conf)
	listening(t, addr)
	send := func() (string, error) { return rspamdSigned(t, addr, mail) }
	first := s.signs(t, send, "")
	s.rotate(t)
	second := s.signs(t, send, first)
	t.Logf("%s, then %s", first, second)
	capitals := strings.Replace(mail, "joe@spamtrap.dk", "Joe@SpamTrap.DK", 1)
	if got := s.signs(t, func() (string, error) { return rspamdSigned(t, addr, capitals) }, first); got != second {
		t.Errorf("signed with %s, want %s", got, second)
	}
	for _, other := range []string{"joe@sub.spamtrap.dk", "joe@spamtrapxdk", "joe@spamtrap.dk.example"} {
		if text, err := rspamdSigned(t, addr, strings.Replace(mail, "joe@spamtrap.dk", other, 1)); err == nil {
			t.Errorf("mail of %s is signed:\n%s", other, text)
		}
	}
}

// rspamdSigned is a message of a user as rspamd has it sent.
func rspamdSigned(t *testing.T, addr, message string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/checkv2", strings.NewReader(message))
	if err != nil {
		return "", err
	}
	req.Header.Set("User", "joe")
	req.Header.Set("From", "joe@spamtrap.dk")
	req.Header.Set("IP", "192.0.2.1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var doc struct {
		Signature string `json:"dkim-signature"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", fmt.Errorf("%w: %s", err, body)
	}
	if doc.Signature == "" {
		return "", fmt.Errorf("no signature in %s", body)
	}
	return "DKIM-Signature: " + doc.Signature + "\r\n" + message, nil
}
