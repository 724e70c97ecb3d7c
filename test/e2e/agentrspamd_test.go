//go:build interop

package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
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
	dir := filepath.Join(mta.Directory(t, "root"), "keys")
	p := s.startAgent(t, s.signerCert(t, "mx1"), "--format", "rspamd", "--dir", dir, "--user", "_rspamd")
	harness.Eventually(t, startLimit, "the tables are there", func() error {
		data, err := os.ReadFile(filepath.Join(dir, "signing_table"))
		if err == nil && len(data) == 0 {
			err = fmt.Errorf("no domain: %s", p.Output())
		}
		return err
	})
	// Debian's setting is that maps are looked at every 30 s.
	addr := mta.StartRspamd(t, "", "    map_watch_interval = 5min;\n    map_file_watch_multiplier = 0.1;\n",
		mta.RspamdSigner("dkim_signing", strings.ReplaceAll(rspamdLines, "/var/lib/dkimd-agent/rspamd", dir)))
	send := func(message string) (string, error) {
		r, err := mta.AskRspamd(t.Context(), addr, mta.Submitted, message)
		if err == nil && len(r.Signatures) == 0 {
			err = errors.New("it is not signed")
		}
		return r.Add(message), err
	}
	sendMail := func() (string, error) { return send(mail) }
	first := s.signs(t, sendMail, "")
	s.rotate(t)
	second := s.signs(t, sendMail, first)
	t.Logf("%s, then %s", first, second)
	capitals := strings.Replace(mail, "joe@spamtrap.dk", "Joe@SpamTrap.DK", 1)
	if got := s.signs(t, func() (string, error) { return send(capitals) }, first); got != second {
		t.Errorf("signed with %s, want %s", got, second)
	}
	for _, other := range []string{"joe@sub.spamtrap.dk", "joe@spamtrapxdk", "joe@spamtrap.dk.example"} {
		if text, err := send(strings.Replace(mail, "joe@spamtrap.dk", other, 1)); err == nil {
			t.Errorf("mail of %s is signed:\n%s", other, text)
		}
	}
}
