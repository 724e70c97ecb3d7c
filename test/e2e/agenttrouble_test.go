package e2e_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

// keyPath is how a file of a key is named in any table.
var keyPath = regexp.MustCompile(`/[A-Za-z0-9/._+-]+\.pem`)

// sound reports an error if a table of an agent names a key that is not there whole.
func sound(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() || e.Name() == "manifest.json" || strings.HasSuffix(e.Name(), ".tmp") {
			continue
		}
		table, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		for _, file := range keyPath.FindAllString(string(table), -1) {
			data, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("%s: %w", e.Name(), err)
			}
			block, _ := pem.Decode(data)
			if block == nil {
				return fmt.Errorf("%s names %s, which is no PEM", e.Name(), file)
			}
			if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
				return fmt.Errorf("%s names %s: %w", e.Name(), file, err)
			}
		}
	}
	return nil
}

// content is all that files below a directory hold.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found[strings.TrimPrefix(path, dir)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// names waits until a table has all domains.
func names(t *testing.T, p *harness.Process, table string, domains ...string) {
	t.Helper()
	harness.Eventually(t, time.Minute, "the table names all domains", func() error {
		if err := p.Running(); err != nil {
			return err
		}
		text, err := os.ReadFile(table)
		for _, d := range domains {
			if err == nil && !bytes.Contains(text, []byte(d+":")) {
				err = fmt.Errorf("%s is missing", d)
			}
		}
		return err
	})
}

// says waits until an agent has logged some words.
func says(t *testing.T, p *harness.Process, what ...string) {
	t.Helper()
	harness.Eventually(t, time.Minute, "the agent says it", func() error {
		for _, text := range what {
			if !strings.Contains(p.Output(), text) {
				return fmt.Errorf("it does not say %q", text)
			}
		}
		return p.Running()
	})
}

// dkimd agent leaves no table that names a missing key, and takes nothing away that may
// be used, whatever happens to it, its disk, its token and dkimd.
func TestAgentTroubles(t *testing.T) {
	t.Parallel()
	s := newSigning(t)
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--algorithm", "ed25519")
	t.Run("token", s.agentToken)
	t.Run("full disk", s.agentFullDisk)
	t.Run("killed", s.agentKilled)
	t.Run("dkimd away", s.agentAlone) // the last one: it ends dkimd
}

// agentToken lets an agent run whose token is revoked, and start with tokens that are no
// use.
func (s *standalone) agentToken(t *testing.T) {
	made := &dkimv1.Token{}
	s.read(t, made, "token", "create", "--role", "signer", "--subject", "mx1")
	auditor := &dkimv1.Token{}
	s.read(t, auditor, "token", "create", "--role", "auditor")
	home := t.TempDir()
	dir, file := filepath.Join(home, "exim"), filepath.Join(home, "token")
	start := func(token string) *harness.Process {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		return harness.Start(t, "dkimd agent", harness.Dkimd, nil, "agent", "--metrics-listen", "", "--dkimd", s.grpc,
			"--tls-ca", filepath.Join(s.dataDir, "pki", "ca.crt"), "--token-file", file, "--format", "exim", "--dir", dir)
	}
	p := start(made.GetSecret())
	names(t, p, filepath.Join(dir, "domains"), "spamtrap.dk")
	before := content(t, dir)

	// It is revoked: what comes then is not handed out, and the rest stays.
	s.ctl(t, "token", "revoke", path.Base(made.GetName()), "--yes")
	s.ctl(t, "domain", "provision", "acme", "token.dk", "--algorithm", "ed25519")
	says(t, p, "private keys do not come", "the credentials are not valid")
	if err := sound(dir); err != nil {
		t.Error(err)
	}
	for name, text := range content(t, dir) {
		if strings.HasSuffix(name, ".pem") && before[name] == "" {
			t.Errorf("a token that was revoked has got %s", name)
		}
		delete(before, name)
		if name == "/domains" && !strings.Contains(text, "spamtrap.dk: ") {
			t.Errorf("the table is %s", text)
		}
	}
	if len(before) > 0 {
		t.Errorf("gone: %v", before)
	}
	stop(t, p)
	before = content(t, dir)
	for name, token := range map[string]string{
		"revoked": made.GetSecret(), "of nobody": made.GetSecret()[:20] + strings.Repeat("A", 36), "of an auditor": auditor.GetSecret(),
	} {
		p := start(token)
		says(t, p, "watch of signing keys interrupted", "going by the cache")
		if name == "of an auditor" {
			says(t, p, "PermissionDenied")
		} else {
			says(t, p, "Unauthenticated")
		}
		stop(t, p)
		if diff := cmp.Diff(before, content(t, dir)); diff != "" {
			t.Errorf("a token %s: the files changed (-before +after):\n%s", name, diff)
		}
		if strings.Contains(p.Output(), token) {
			t.Errorf("a token %s is in the log", name)
		}
	}
}

// agentFullDisk fills the disk, and makes room again.
func (s *standalone) agentFullDisk(t *testing.T) {
	disk := harness.SmallDisk(t)
	dir, cache, filler := filepath.Join(disk, "exim"), filepath.Join(t.TempDir(), "cache"), filepath.Join(disk, "filler")
	metrics, failures := harness.Addr(t), regexp.MustCompile(`\ndkimd_agent_failures_total ([3-9]|\d\d)`)
	p := s.startAgent(t, s.signerCert(t, "mx1"), "--format", "exim", "--dir", dir, "--cache-dir", cache, "--metrics-listen", metrics)
	table := filepath.Join(dir, "domains")
	names(t, p, table, "spamtrap.dk")
	full, err := os.OpenFile(filler, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = full.Write(block)
	}
	if err := full.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	s.ctl(t, "domain", "provision", "acme", "full.dk", "--algorithm", "ed25519")
	says(t, p, "no space left on device")
	harness.Eventually(t, time.Minute, "it was tried three times", func() error {
		if err := sound(dir); err != nil {
			t.Error(err)
		}
		_, body, err := get(t, "http://"+metrics+"/metrics")
		if err == nil && !failures.MatchString(body) {
			err = errors.New(body)
		}
		return err
	})
	if n := strings.Count(p.Output(), "the files are not in step"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, p.Output())
	}
	if after, err := os.ReadFile(table); err != nil || !bytes.Equal(before, after) {
		t.Errorf("on a full disk the table has become %q: %v", after, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	names(t, p, table, "spamtrap.dk", "full.dk")
	if err := sound(dir); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "keys", "*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	stop(t, p)
}

// agentKilled kills an agent again and again while it writes.
func (s *standalone) agentKilled(t *testing.T) {
	var domains []string
	for i := range 40 {
		domains = append(domains, fmt.Sprintf("killed%02d.dk", i))
	}
	list := filepath.Join(t.TempDir(), "domains.txt")
	if err := os.WriteFile(list, []byte(strings.Join(domains, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ctl(t, "domain", "provision", "acme", "--from-file", list, "--algorithm", "ed25519")
	cert := s.signerCert(t, "mx1")
	dir := filepath.Join(t.TempDir(), "exim")
	// After so many files of all kinds.
	seen := make(map[int]bool)
	for _, after := range []int{1, 5, 20, 40, 41, 60, 80, 82, 84, 85} {
		p := s.startAgent(t, cert, "--format", "exim", "--dir", dir)
		harness.Eventually(t, time.Minute, "the agent has written some files", func() error {
			if n := files(dir); n < after {
				return fmt.Errorf("%d files", n)
			}
			return p.Running()
		})
		p.Kill()
		if err := sound(dir); err != nil {
			t.Errorf("killed after %d files: %v", after, err)
		}
		seen[files(dir)] = true
		if after%2 == 0 { // the next one goes on with what is there
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("files when it was killed: %v", slices.Sorted(maps.Keys(seen)))
	metrics := harness.Addr(t)
	p := s.startAgent(t, cert, "--format", "exim", "--dir", dir, "--metrics-listen", metrics)
	harness.Eventually(t, time.Minute, "the agent is ready", func() error {
		if status, body, _ := get(t, "http://"+metrics+"/readyz"); status != 200 {
			return fmt.Errorf("/readyz says %d %s", status, body)
		}
		return p.Running()
	})
	names(t, p, filepath.Join(dir, "domains"), domains...)
	if err := sound(dir); err != nil {
		t.Error(err)
	}
	stop(t, p)
}

// files counts those below a directory.
func files(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { // what is not there, or no longer, does not count
		if err == nil && !d.IsDir() {
			n++
		}
		return nil
	})
	return n
}

// agentAlone starts agents while no dkimd is there: without a cache, with a whole one, and
// with one that lacks half of a key, or half of what says which keys sign. Then dkimd is
// back.
func (s *standalone) agentAlone(t *testing.T) {
	cert, home := s.signerCert(t, "mx1"), t.TempDir()
	start := func(name string) *harness.Process {
		return s.startAgent(t, cert, "--format", "exim", "--dir", filepath.Join(home, name))
	}
	agents, before := make(map[string]*harness.Process), make(map[string]map[string]string)
	for _, name := range []string{"none", "whole", "key", "state"} {
		agents[name] = start(name)
	}
	for name, p := range agents {
		names(t, p, filepath.Join(home, name, "domains"), "spamtrap.dk")
		stop(t, p)
		before[name] = content(t, filepath.Join(home, name))
	}
	s.Kill()

	if err := os.RemoveAll(filepath.Join(home, "none.cache")); err != nil {
		t.Fatal(err)
	}
	sealed, err := filepath.Glob(filepath.Join(home, "key.cache", "keys", "*.sealed"))
	if err != nil || len(sealed) < 2 {
		t.Fatalf("%v, %v", sealed, err)
	}
	halve(t, sealed[0])
	halve(t, filepath.Join(home, "state.cache", "state"))
	for name := range agents {
		agents[name] = start(name)
	}
	says(t, agents["none"], "the files stay as they are", "there is none")
	says(t, agents["whole"], "going by the cache")
	says(t, agents["key"], "going by the cache")
	says(t, agents["state"], "the cache cannot be used", "the files stay as they are")
	for name, p := range agents {
		if name != "state" { // it sees dkimd come back
			stop(t, p)
		}
		if diff := cmp.Diff(before[name], content(t, filepath.Join(home, name))); diff != "" {
			t.Errorf("cache %s: the files changed (-before +after):\n%s", name, diff)
		}
	}

	// Without files, only what half a key is for is missing.
	dir := filepath.Join(home, "key")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	agents["key"] = start("key")
	says(t, agents["key"], "private keys do not come")
	hasKeys := func(dir string, want int) {
		t.Helper()
		harness.Eventually(t, time.Minute, "the keys are there", func() error {
			there, err := filepath.Glob(filepath.Join(dir, "keys", "*.pem"))
			if err == nil && len(there) != want {
				err = fmt.Errorf("%d of %d", len(there), want)
			}
			return err
		})
		if err := sound(dir); err != nil {
			t.Error(err)
		}
	}
	hasKeys(dir, len(sealed)-1)

	s.start(t, "--allow-key-fetch", "mx1")
	for _, name := range []string{"key", "state"} {
		dir := filepath.Join(home, name)
		names(t, agents[name], filepath.Join(dir, "domains"), "spamtrap.dk")
		hasKeys(dir, len(sealed))
		stop(t, agents[name])
	}
}

// halve leaves half of a file.
func halve(t *testing.T, file string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}
