package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

// A backup of one installation becomes another, which serves and signs the same.
// Between them the key-encryption key is rotated.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t)
	own, _, _ := strings.Cut(s.dns, ":")
	s.ctl(t, "zone", "create", "mail.example.org", "--name-server", "ns1.mail.example.org="+own)
	s.ctl(t, "brand", "create", "acme", "--zone", zone)
	s.ctl(t, "brand", "create", "org", "--zone", "mail.example.org")
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--wait")
	s.ctl(t, "domain", "provision", "org", "ed.example", "--algorithm", "ed25519", "--wait")

	// Another key-encryption key takes the place of the first one.
	s.stop(t)
	next := filepath.Join(t.TempDir(), "next.key")
	if r := harness.Run(t, t.TempDir(), harness.Dkimd, nil, "pki", "kek", next); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	first := "file://" + filepath.Join(s.dataDir, "kek.key")
	s.start(t, "--kek-url", "file://"+next, "--kek-url-previous", first)
	if out := s.ctl(t, "kek", "rotate", "--to", "file://"+next); !strings.Contains(out, "done: 2 data keys wrapped") {
		t.Errorf("kek rotate printed %q", out)
	}
	s.ctl(t, "domain", "provision", "acme", "later.example", "--algorithm", "ed25519", "--wait")
	s.stop(t)
	checkLine(t, s.fails(t), "key-encryption key", "not the one that the stored keys were wrapped with")
	s.start(t, "--kek-url", "file://"+next)

	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(identity, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dkim.backup")
	s.ctl(t, "backup", file, "--recipient", id.Recipient().String())
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup has mode %v (%v), want 0600", info.Mode(), err)
	}
	keys := map[*dkimv1.Key][3]string{}
	for _, d := range [][3]string{{"acme", "spamtrap.dk", "selector1"}, {"acme", "spamtrap.dk", "selector2"}, {"org", "ed.example", "selector1"}, {"acme", "later.example", "selector2"}} {
		keys[s.key(t, d[0], d[1], d[2])] = d
	}
	serial, err := soaSerial(s.dns, zone)
	if err != nil {
		t.Fatal(err)
	}
	checkFailed(t, s.run(t, "restore", file, "--identity", identity), 1, "[STORE_NOT_EMPTY]")
	if out := s.ctl(t, "restore", file, "--identity", identity, "--dry-run"); !strings.Contains(out, "is whole") {
		t.Errorf("restore --dry-run printed %q", out)
	}
	s.stop(t)

	// Elsewhere, with the wrong key-encryption key at first.
	n := newStandalone(t)
	n.start(t)
	checkFailed(t, n.run(t, "restore", file, "--identity", identity), 1, "[WRONG_KEY_ENCRYPTION_KEY]")
	n.stop(t)
	n.start(t, "--kek-url", "file://"+next)
	cut := filepath.Join(t.TempDir(), "cut.backup")
	whole, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(cut, whole[:len(whole)*2/3], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	checkFailed(t, n.run(t, "restore", cut, "--identity", identity), 1, "not complete")
	n.ctl(t, "restore", file, "--identity", identity)
	for k, d := range keys {
		got := n.key(t, d[0], d[1], d[2])
		if diff := cmp.Diff(k, got, protocmp.Transform(), protocmp.IgnoreFields(k, "revision")); diff != "" {
			t.Errorf("%s of %s (-want +got):\n%s", d[2], d[1], diff)
		}
		waitTXT(t, n.dns, k.GetOwnerName(), k.GetRecord()) // name servers are not waited for
	}
	after, err := soaSerial(n.dns, zone)
	if err != nil || int32(after-serial) <= 0 {
		t.Errorf("serial goes from %d to %d (%v)", serial, after, err)
	}
	// The wait needs serials that follow the restored ones.
	n.ctl(t, "domain", "provision", "acme", "new.example", "--algorithm", "ed25519", "--wait")
	n.ctl(t, "domain", "delete", "acme", "later.example", "--yes", "--wait")
	n.stop(t)
	n.start(t, "--kek-url", "file://"+next)
	if again, err := soaSerial(n.dns, zone); err != nil || int32(again-after) <= 0 {
		t.Errorf("serial after a restart is %d (%v), it was %d", again, err, after)
	}
	n.stop(t)
}
