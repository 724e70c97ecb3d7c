package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/schema"
)

func fileRecords(n int) map[string]schema.PublicRecord {
	rng := rand.New(rand.NewPCG(5, 6))
	records := make(map[string]schema.PublicRecord, n)
	for i := range n {
		key := make([]byte, rng.IntN(600))
		for j := range key {
			key[j] = byte(rng.Uint32())
		}
		records[ownerName(i)] = schema.PublicRecord{PublicKey: key, TTL: rng.Uint32(), Testing: i%3 == 0, SameDomain: i%5 == 0}
	}
	return records
}

func putAll(t testing.TB, v *view, records map[string]schema.PublicRecord) []string {
	t.Helper()
	var names []string
	for name, rec := range records {
		mustPut(t, v, name, rec)
		names = append(names, name)
	}
	return names
}

func testMeta(rev int64) meta {
	return meta{Format: fileFormat, Zone: testZone, ClusterID: 77, Revision: rev, Confirmed: time.Unix(1700000000, 0).UTC()}
}

func openTestFile(t testing.TB, dir string) *file {
	t.Helper()
	f, aside, err := openFile(dir, testZone)
	if err != nil || aside != nil {
		t.Fatalf("openFile: %v, set aside: %v", err, aside)
	}
	t.Cleanup(func() { _ = f.close() })
	return f
}

// reload reads what dir holds now.
func reload(t testing.TB, dir string) (map[string]schema.PublicRecord, *meta) {
	t.Helper()
	f := openTestFile(t, dir)
	v := openView(t)
	m, err := f.load(v)
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	return contents(v), m
}

func TestFileKeepsRecords(t *testing.T) {
	dir := t.TempDir()
	f, v := openTestFile(t, dir), openView(t)
	if m, err := f.load(v); m != nil || err != nil {
		t.Fatalf("load of a new file: %v, %v", m, err)
	}
	want := fileRecords(3000)
	names := putAll(t, v, want)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"save", func() error { return f.save(v, names, testMeta(1)) }},
		{"save of changes", func() error {
			changed := names[:100]
			for i, name := range changed {
				if i%2 == 0 {
					v.remove([]byte(name))
					delete(want, name)
					continue
				}
				want[name] = schema.PublicRecord{TTL: 7, PublicKey: []byte("new")}
				mustPut(t, v, name, want[name])
			}
			return f.save(v, append(changed, "never._domainkey"), testMeta(2))
		}},
		{"reopen", f.reopen},
		{"replace", func() error { return f.replace(v, testMeta(2)) }},
		{"save after replace", func() error {
			mustPut(t, v, "late._domainkey", schema.PublicRecord{TTL: 9})
			want["late._domainkey"] = schema.PublicRecord{TTL: 9, PublicKey: []byte{}}
			return f.save(v, []string{"late._domainkey"}, testMeta(2))
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	got, m := reload(t, dir)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	wantMeta := testMeta(2)
	wantMeta.Records = len(want)
	if diff := cmp.Diff(&wantMeta, m); diff != "" {
		t.Errorf("meta (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(dir, testZone+".db.new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new file is left over: %v", err)
	}
}

// writeFile leaves a good file of n records in dir and returns its path.
func writeFile(t testing.TB, dir string, n int) string {
	t.Helper()
	f, v := openTestFile(t, dir), openView(t)
	putAll(t, v, fileRecords(n))
	apex := apexValue(t)
	m := testMeta(2)
	m.Apex, m.ApexRev = apex, 2
	if err := f.replace(v, m); err != nil {
		t.Fatal(err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	return f.path
}

func edit(t testing.TB, path string, fn func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fn(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func editBolt(t testing.TB, path string, fn func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func editMeta(t testing.TB, path string, fn func(*meta)) {
	t.Helper()
	editBolt(t, path, func(tx *bolt.Tx) error {
		m, err := readMeta(tx)
		if err != nil {
			return err
		}
		fn(m)
		return writeMeta(tx, *m)
	})
}

// A file that cannot be trusted is set aside, and what etcd has is served.
func TestDamagedFile(t *testing.T) {
	first := diskKey(ownerName(0))
	tests := []struct {
		name   string
		damage func(t *testing.T, path string)
	}{
		{"empty", func(t *testing.T, path string) { edit(t, path, func([]byte) []byte { return []byte("x") }) }},
		{"garbage", func(t *testing.T, path string) {
			edit(t, path, func(b []byte) []byte { return bytes.Repeat([]byte("garbage "), len(b)/8) })
		}},
		{"truncated", func(t *testing.T, path string) { edit(t, path, func(b []byte) []byte { return b[:len(b)/2] }) }},
		{"truncated to its head", func(t *testing.T, path string) {
			edit(t, path, func(b []byte) []byte { return b[:2*os.Getpagesize()] })
		}},
		{"pages of zeros", func(t *testing.T, path string) {
			edit(t, path, func(b []byte) []byte { clear(b[4*os.Getpagesize():]); return b })
		}},
		{"octet of a key flipped", func(t *testing.T, path string) {
			edit(t, path, func(b []byte) []byte {
				// Copies that are out of use may be in the file, too.
				for i := 0; ; {
					j := bytes.Index(b[i:], []byte(ownerName(7)))
					if j < 0 {
						return b
					}
					i += j + len(ownerName(7))
					b[i+valueHead+2] ^= 1
				}
			})
		}},
		{"another zone", func(t *testing.T, path string) { editMeta(t, path, func(m *meta) { m.Zone = "example.org" }) }},
		{"later format", func(t *testing.T, path string) { editMeta(t, path, func(m *meta) { m.Format++ }) }},
		{"number of records", func(t *testing.T, path string) { editMeta(t, path, func(m *meta) { m.Records-- }) }},
		{"apex", func(t *testing.T, path string) { editMeta(t, path, func(m *meta) { m.Apex = []byte{0xff} }) }},
		{"meta octet flipped", func(t *testing.T, path string) {
			editBolt(t, path, func(tx *bolt.Tx) error {
				b := bytes.Clone(tx.Bucket(metaBucket).Get(metaKey))
				b[len(b)-10] ^= 1
				return tx.Bucket(metaBucket).Put(metaKey, b)
			})
		}},
		{"meta is no JSON", func(t *testing.T, path string) {
			editBolt(t, path, func(tx *bolt.Tx) error {
				b := binary.LittleEndian.AppendUint32(nil, crc32.Checksum([]byte("{"), castagnoli))
				return tx.Bucket(metaBucket).Put(metaKey, append(b, '{'))
			})
		}},
		{"no meta", func(t *testing.T, path string) {
			editBolt(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket(metaBucket) })
		}},
		{"no records", func(t *testing.T, path string) {
			editBolt(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket(recordBucket) })
		}},
		{"record is missing", func(t *testing.T, path string) {
			editBolt(t, path, func(tx *bolt.Tx) error { return tx.Bucket(recordBucket).Delete(first) })
		}},
		{"record out of order", func(t *testing.T, path string) {
			editBolt(t, path, func(tx *bolt.Tx) error {
				b := tx.Bucket(recordBucket)
				val := bytes.Clone(b.Get(first))
				wrong := bytes.Clone(first)
				wrong[0]++
				return errors.Join(b.Delete(first), b.Put(wrong, val))
			})
		}},
		{"record with unknown flags", func(t *testing.T, path string) {
			editBolt(t, path, func(tx *bolt.Tx) error {
				val := []byte{0x88, 0, 0, 0, 0}
				val = binary.LittleEndian.AppendUint32(val, checksum(first[1:], val))
				return tx.Bucket(recordBucket).Put(first, val)
			})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := writeFile(t, dir, 500)
			tt.damage(t, path)
			var log bytes.Buffer
			f := newFakeEtcd()
			f.write(zoneOf(t, 20))
			h := follow(t, f, func(c *Config) { c.Dir, c.Logger = dir, slog.New(slog.NewTextHandler(&log, nil)) })
			if err := h.WaitRevision(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			wantKey(t, h, 7, "key7")
			if s := h.Status(); s.Records != 20 || s.FileErrors != 1 {
				t.Errorf("status = %+v", s)
			}
			if err := h.Release(); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(log.String(), "set aside"); n != 1 {
				t.Errorf("%d log lines, want 1:\n%s", n, log.String())
			}
			if _, err := os.Stat(path + ".corrupt"); err != nil {
				t.Error(err)
			}
			if got, m := reload(t, dir); len(got) != 20 || m == nil || m.Revision < 2 {
				t.Errorf("new file has %d records, %+v", len(got), m)
			}
		})
	}
}

// Whatever octets are flipped, a file that loads has the records it had.
func TestFlippedOctets(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, dir, 300)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := fileRecords(300)
	rng := rand.New(rand.NewPCG(11, 12))
	for range 50 {
		i := rng.IntN(len(good))
		b := bytes.Clone(good)
		b[i] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, _, err := openFile(dir, testZone)
		if err != nil {
			t.Fatalf("octet %d: %v", i, err)
		}
		v := newView()
		m, err := f.load(v)
		if err == nil && m != nil {
			if diff := cmp.Diff(want, contents(v)); diff != "" {
				t.Errorf("octet %d: records (-want +got):\n%s", i, diff)
			}
		}
		_ = f.close()
		if err := v.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A write that ends in the middle leaves the state of the transaction before.
func TestCrashBetweenBatches(t *testing.T) {
	dir := t.TempDir()
	f, v := openTestFile(t, dir), openView(t)
	records := fileRecords(100)
	names := putAll(t, v, records)
	if err := f.save(v, names, testMeta(5)); err != nil {
		t.Fatal(err)
	}
	// The process dies with a transaction and a new file half done.
	tx, err := f.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Bucket(recordBucket).Delete(diskKey(names[0])); err != nil {
		t.Fatal(err)
	}
	crashed := t.TempDir()
	edit(t, f.path, func(b []byte) []byte {
		if err := os.WriteFile(filepath.Join(crashed, testZone+".db"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(crashed, testZone+".db.new"), b[:len(b)/3], 0o600); err != nil {
			t.Fatal(err)
		}
		return b
	})
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	got, m := reload(t, crashed)
	if diff := cmp.Diff(records, got); diff != "" || m.Revision != 5 {
		t.Errorf("revision %d, records (-want +got):\n%s", m.Revision, diff)
	}
	again := openTestFile(t, crashed)
	if err := again.replace(v, testMeta(6)); err != nil {
		t.Errorf("replace with a file left over: %v", err)
	}
}

func TestFileInUse(t *testing.T) {
	dir := t.TempDir()
	db, err := bolt.Open(filepath.Join(dir, testZone+".db"), 0o600, nil) // stands for another process
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	defer RegisterInProcess(t.Name(), newFakeEtcd())()
	cfg := Config{Zone: testZone, Dir: dir, Etcd: etcdclient.Config{Endpoints: []string{InProcessScheme + t.Name()}}}
	if h, err := Acquire(cfg); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Acquire = %v, %v; want ErrInUse", h, err)
	}
}

func TestDirNotWritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer RegisterInProcess(t.Name(), newFakeEtcd())()
	cfg := Config{Zone: testZone, Dir: file, Etcd: etcdclient.Config{Endpoints: []string{InProcessScheme + t.Name()}}}
	if h, err := Acquire(cfg); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Acquire = %v, %v; want an error that names %s", h, err, file)
	}
}

func FuzzDecodeValue(f *testing.F) {
	owner := []byte("selector1-spamtrap-dk._domainkey")
	f.Add([]byte{})
	f.Add(encodeValue(owner, schema.PublicRecord{TTL: 3600, PublicKey: []byte("key")}))
	f.Add(encodeValue(owner, schema.PublicRecord{KeyType: 1, Testing: true, SameDomain: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rec, err := decodeValue(owner, b); err == nil {
			if again := encodeValue(owner, rec); !bytes.Equal(again, b) {
				t.Errorf("%x became %x", b, again)
			}
		}
		// With a good checksum, so that what is behind it is reached.
		sealed := binary.LittleEndian.AppendUint32(bytes.Clone(b), checksum(owner, b))
		rec, err := decodeValue(owner, sealed)
		if err != nil {
			if !errors.Is(err, errCorrupt) {
				t.Errorf("decodeValue: %v, want errCorrupt", err)
			}
			return
		}
		if again := encodeValue(owner, rec); !bytes.Equal(again, sealed) {
			t.Errorf("%x became %x", sealed, again)
		}
	})
}

// FuzzLoad changes a piece of a good file: nothing may panic, and what loads is
// a zone's worth of records.
func FuzzLoad(f *testing.F) {
	path := writeFile(f, f.TempDir(), 60)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte("garbage"), uint32(1<<30))
	f.Add(uint32(os.Getpagesize()), []byte{0xff, 0xff}, uint32(1<<30))
	f.Add(uint32(3*os.Getpagesize()), []byte{}, uint32(3*os.Getpagesize()+100))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, size uint32) {
		b := bytes.Clone(good)
		copy(b[int(at)%len(b):], patch)
		b = b[:min(int(size), len(b))]
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, testZone+".db"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, _, err := openFile(dir, testZone)
		if err != nil {
			t.Fatalf("openFile: %v", err)
		}
		defer file.close() //nolint:errcheck // a damaged file
		v := openView(t)
		if m, err := file.load(v); err == nil && m != nil && v.len() != m.Records {
			t.Errorf("%d records loaded of %d", v.len(), m.Records)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{200_000, 2_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			v, _ := benchView(b, n)
			f := openTestFile(b, dir)
			if err := f.replace(v, testMeta(2)); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				v := newView()
				if err := f.reopen(); err != nil {
					b.Fatal(err)
				}
				if m, err := f.load(v); err != nil || m.Records != n {
					b.Fatal(m, err)
				}
				if err := v.close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
