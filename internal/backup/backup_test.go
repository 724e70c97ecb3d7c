package backup_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/dkimzone/dkimzone/internal/backup"
)

func newLocks(t *testing.T) (to, from backup.Lock) {
	t.Helper()
	to, from, _ = newIdentity(t)
	return to, from
}

func newIdentity(t *testing.T) (to, from backup.Lock, id *age.X25519Identity) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if to, err = backup.Recipients(id.Recipient().String()); err != nil {
		t.Fatal(err)
	}
	if from, err = backup.Identities(strings.NewReader("# created: today\n" + id.String() + "\n")); err != nil {
		t.Fatal(err)
	}
	return to, from, id
}

// encrypt is a text as it is, encrypted.
func encrypt(t *testing.T, id *age.X25519Identity, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := age.Encrypt(&out, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func write(t *testing.T, lock backup.Lock, records ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := backup.NewWriter(&out, lock)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func read(file []byte, lock backup.Lock) (records [][]byte, err error) {
	r, err := backup.NewReader(bytes.NewReader(file), lock)
	for err == nil {
		var record []byte
		if record, err = r.Next(); err == nil {
			records = append(records, record)
		}
	}
	if errors.Is(err, io.EOF) && !errors.Is(err, backup.ErrCut) && !errors.Is(err, backup.ErrNoBackup) {
		err = nil
	}
	return records, err
}

func TestBackup(t *testing.T) {
	to, from := newLocks(t)
	records := [][]byte{[]byte("x"), bytes.Repeat([]byte("secret "), 50_000), make([]byte, 127), make([]byte, 128)}
	for n := range len(records) + 1 {
		file := write(t, to, records[:n]...)
		got, err := read(file, from)
		if err != nil || len(got) != n {
			t.Fatalf("%d records read, %v; want %d", len(got), err, n)
		}
		for i := range got {
			if !bytes.Equal(got[i], records[i]) {
				t.Errorf("record %d differs", i)
			}
		}
		if bytes.Contains(file, []byte("secret")) || bytes.Contains(file, []byte("dkimzone")) {
			t.Error("the file shows what is in it")
		}
	}
	w, err := backup.NewWriter(io.Discard, to)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][]byte{nil, make([]byte, backup.MaxRecord+1)} {
		if err := w.Write(r); err == nil {
			t.Errorf("a record of %d octets was written", len(r))
		}
	}
}

func TestPassphrase(t *testing.T) {
	lock, err := backup.Passphrase("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, lock, []byte("x"))
	if got, err := read(file, lock); err != nil || len(got) != 1 {
		t.Errorf("read %q, %v", got, err)
	}
	other, err := backup.Passphrase("another")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(file, other); !errors.Is(err, backup.ErrWrongKey) {
		t.Errorf("with another passphrase: %v, want %v", err, backup.ErrWrongKey)
	}
	if _, err := backup.Passphrase(""); err == nil {
		t.Error("an empty passphrase was accepted")
	}
}

// No file that is not just as it was written reads as a whole one.
func TestDamage(t *testing.T) {
	to, from, id := newIdentity(t)
	file := write(t, to, []byte("first"), bytes.Repeat([]byte{7}, 70_000))
	for n := 0; n < len(file); n += 1 + len(file)/100 {
		if _, err := read(file[:n], from); err == nil {
			t.Fatalf("a file cut to %d of %d octets read as whole", n, len(file))
		}
		changed := bytes.Clone(file)
		changed[n] ^= 1
		if _, err := read(changed, from); err == nil {
			t.Fatalf("a file with octet %d changed read as whole", n)
		}
	}
	if _, err := read(append(bytes.Clone(file), 0), from); err == nil {
		t.Error("a file with an octet more read as whole")
	}
	_, stranger := newLocks(t)
	if _, err := read(file, stranger); !errors.Is(err, backup.ErrWrongKey) {
		t.Errorf("with another identity: %v, want %v", err, backup.ErrWrongKey)
	}
	if _, err := read([]byte("etcd snapshot"), from); !errors.Is(err, backup.ErrNoBackup) {
		t.Errorf("of something else: %v, want %v", err, backup.ErrNoBackup)
	}
	// Something else that was encrypted to the same identity.
	for text, want := range map[string]error{"": backup.ErrCut, "dkimzone backup 1\n": backup.ErrCut, "dkimzone backup 2\n": backup.ErrNoBackup, "dkimzone backup 1\n\xff\xff\xff\xff\x7f": backup.ErrCut, "dkimzone backup 1\n\x00x": backup.ErrCut} {
		if _, err := read(encrypt(t, id, text), from); !errors.Is(err, want) {
			t.Errorf("of %q: %v, want %v", text, err, want)
		}
	}
	for _, text := range []string{"", "AGE-SECRET-KEY-1QQ", "age1qq"} {
		if _, err := backup.Identities(strings.NewReader(text)); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("Identities(%q): %v", text, err)
		}
	}
	if _, err := backup.Recipients("age1"); err == nil {
		t.Error("half a recipient was accepted")
	}
}
