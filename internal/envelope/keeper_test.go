package envelope_test

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/envelope"
)

func TestCreateKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kek.key")
	if err := envelope.CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode %04o, want 0600", mode)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(before))); err != nil || len(key) != 32 {
		t.Errorf("file holds %d octets in base64 (%v), want 32", len(key), err)
	}
	if err := envelope.CreateKeyFile(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("second CreateKeyFile: %v, want %v", err, os.ErrExist)
	}
	after, err := os.ReadFile(path)
	if err != nil || string(after) != string(before) {
		t.Errorf("the second CreateKeyFile changed the file (%v)", err)
	}
	other := filepath.Join(dir, "other.key")
	if err := envelope.CreateKeyFile(other); err != nil {
		t.Fatal(err)
	}
	if key, err := os.ReadFile(other); err != nil || string(key) == string(before) {
		t.Errorf("two files hold the same key (%v)", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("directory holds %v (%v), want the two key files only", entries, err)
	}
}

func TestCreateKeyFileErrors(t *testing.T) {
	for _, path := range []string{"", filepath.Join(t.TempDir(), "missing", "kek.key"), t.TempDir() + "/"} {
		if err := envelope.CreateKeyFile(path); err == nil {
			t.Errorf("CreateKeyFile(%q) succeeded", path)
		}
	}
}

func TestOpenKeeper(t *testing.T) {
	dir := t.TempDir()
	file := func(name, contents string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(contents), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IDEyMzQ="
	good := file("good", secret+"\n", 0o600)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil { // as Kubernetes mounts secrets
		t.Fatal(err)
	}
	for _, url := range []string{
		"file://" + good,
		"file://localhost" + good,
		"file://" + link,
		"file://" + file("read only", secret, 0o400),
	} {
		keeper, err := envelope.OpenKeeper(t.Context(), url)
		if err != nil {
			t.Errorf("OpenKeeper(%s): %v", url, err)
			continue
		}
		if err := keeper.Close(); err != nil {
			t.Error(err)
		}
	}

	tests := []struct {
		name, url, want string
	}{
		{"empty", "", "use file:///"},
		{"a path", good, "use file:///"},
		{"another scheme", "ftp://example.net/kek", `"ftp" are not supported; use file:///absolute/path/to/kek.key or awskms://, azurekeyvault://, gcpkms://, hashivault://`},
		{"a password", "hashivault://user:" + secret + "@kek", "no user, no password"},
		{"a key in the URL", "base64key://" + secret, `"base64key" are not supported`},
		{"a broken URL", "base64key://" + secret + "%zz", "use file:///"},
		{"relative", "file:kek.key", "absolute path"},
		{"host", "file://kek.key/x", "absolute path"},
		{"no path", "file://", "absolute path"},
		{"directory by name", "file:///etc/", "absolute path"},
		{"query", "file://" + good + "?mode=0644", "scheme and a path only"},
		{"missing", "file://" + filepath.Join(dir, "missing"), "no such file"},
		{"directory", "file://" + dir, "not a regular file"},
		{"readable by the group", "file://" + file("group", secret, 0o640), "chmod 600"},
		{"readable by all", "file://" + file("all", secret, 0o604), "chmod 600"},
		{"empty file", "file://" + file("empty", "", 0o600), "32 octets in base64"},
		{"not base64", "file://" + file("text", "!"+secret[1:], 0o600), "32 octets in base64"},
		{"31 octets", "file://" + file("short", base64.StdEncoding.EncodeToString(make([]byte, 31)), 0o600), "32 octets in base64"},
		{"33 octets", "file://" + file("long", base64.StdEncoding.EncodeToString(make([]byte, 33)), 0o600), "32 octets in base64"},
		{"two keys", "file://" + file("two", secret+"\n"+secret, 0o600), "32 octets in base64"},
		{"huge", "file://" + file("huge", secret+strings.Repeat("\n", 10000), 0o600), "32 octets in base64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := envelope.OpenKeeper(t.Context(), tt.url)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("OpenKeeper: %v, want an error with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), secret[1:]) {
				t.Errorf("error %q shows the key", err)
			}
		})
	}
	if _, err := envelope.OpenKeeper(t.Context(), "file://"+filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenKeeper of a missing file: %v, want %v", err, os.ErrNotExist)
	}
}
