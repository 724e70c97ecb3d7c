package agent_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/agent"
	"github.com/dkimzone/dkimzone/signer"
)

// start is when the tests begin.
var start = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

// hold is for how long what dkimd says is good.
const hold = 24 * time.Hour

// dkimd is a Source that says what a test wants.
type dkimd struct {
	mu      sync.Mutex
	domains map[string][]signer.KeyInfo
	standby []signer.KeyInfo
	def     []signer.KeyInfo
	away    bool
	denied  map[string]error // by name of a key
	confirm time.Time
	der     []byte // of all private keys; nil: each has its own
	changed chan struct{}
	told    []string // domains of which Held was called
}

func newDkimd() *dkimd {
	return &dkimd{
		domains: make(map[string][]signer.KeyInfo), denied: make(map[string]error), confirm: start,
		changed: make(chan struct{}),
	}
}

// set changes something.
func (d *dkimd) set(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	close(d.changed)
	d.changed = make(chan struct{})
}

// Everything implements agent.Source.
func (d *dkimd) Everything() (signer.Everything, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := signer.Everything{Changed: d.changed}
	if d.confirm.IsZero() {
		return e, signer.ErrUnavailable
	}
	e.Confirmed, e.Standby = d.confirm, slices.Clone(d.standby)
	for name, keys := range d.domains {
		e.Domains = append(e.Domains, signer.SigningDomain{Domain: name, Keys: slices.Clone(keys), Hold: hold})
	}
	e.Default = signer.SigningDomain{Keys: slices.Clone(d.def), Hold: hold}
	return e, nil
}

// Confirmed implements agent.Source.
func (d *dkimd) Confirmed() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.confirm
}

// PrivateKeys implements agent.Source.
func (d *dkimd) PrivateKeys(_ context.Context, names ...string) ([]signer.PrivateKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return nil, signer.ErrUnavailable
	}
	var keys []signer.PrivateKey
	for _, name := range names {
		k := signer.PrivateKey{Name: name, Err: d.denied[name]}
		if k.Err == nil && d.der != nil {
			k.PKCS8 = slices.Clone(d.der)
		} else if k.Err == nil {
			k.PKCS8 = private(name)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// Held implements agent.Source.
func (d *dkimd) Held(domains ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.told = append(d.told, domains...)
}

// private is the private key of a name, always the same.
func private(name string) []byte {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name[max(0, len(name)-24):])
	binary.BigEndian.PutUint64(seed[24:], uint64(len(name)))
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		panic(err)
	}
	return der
}

// info is a key of a domain, RSA unless the selector begins with "ed".
func info(domain, selector, id string) signer.KeyInfo {
	k := signer.KeyInfo{Domain: domain, Selector: selector, Algorithm: "rsa-sha256", Name: "brands/acme/domains/" + domain + "/keys/" + id}
	if strings.HasPrefix(selector, "ed") {
		k.Algorithm = "ed25519-sha256"
	}
	return k
}

// clock runs as a test says.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: start} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// world is an agent's surroundings.
type world struct {
	*dkimd
	*clock
	dir     string
	format  agent.Format
	reloads int
	broken  error // of the next reloads
	log     lines
	cache   bool
}

func newWorld(t testing.TB, format string) *world {
	t.Helper()
	f, ok := agent.FormatNamed(format)
	if format == agent.TemplateName {
		f, ok = template(t), true
	}
	if !ok {
		t.Fatal(format)
	}
	w := &world{dkimd: newDkimd(), clock: newClock(), dir: filepath.Join(memory(t), "files"), format: f, cache: true}
	if err := os.WriteFile(w.dir+".cache.key", bytes.Repeat([]byte{7}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// template is the one in testdata.
func template(t testing.TB) agent.Format {
	t.Helper()
	f, err := agent.Template("testdata/template/keys.conf.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// formats are all.
func formats(t testing.TB) []agent.Format {
	t.Helper()
	return append(agent.Formats(), template(t))
}

// memory is a directory that is no disk, where there is one: a file that replaces
// another one waits for the disk.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "agent") //nolint:usetesting // see above
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (w *world) options() agent.Options {
	o := agent.Options{Format: w.format, Dir: w.dir, Owner: -1, Group: -1, Now: w.now, Logger: w.log.logger(), Reload: func(context.Context) error {
		w.locked(func() { w.reloads++ })
		return w.broken
	}}
	if w.cache {
		o.CacheDir, o.CacheKeyFile = w.dir+".cache", w.dir+".cache.key"
	}
	return agent.WithFault(o, unsynced)
}

// unsynced leaves out what takes long and that no test can see.
func unsynced(operation, _ string) error {
	if operation == "sync" {
		return agent.ErrDone
	}
	return nil
}

func (w *world) locked(do func()) { w.dkimd.mu.Lock(); defer w.dkimd.mu.Unlock(); do() }

// open makes an Agent that is closed at the end of the test.
func (w *world) open(t testing.TB) *agent.Agent {
	t.Helper()
	a, err := agent.New(w.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() }) // some tests have closed it
	return a
}

// signing are the files of the keys that OpenDKIM would sign with, by pattern. It
// fails if a table names what is not there.
func signing(dir string) (map[string][]string, error) {
	// In this order, as an agent that runs writes them in the opposite one.
	table, err := os.ReadFile(filepath.Join(dir, "SigningTable"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	names := make(map[string]string)
	keys, err := os.ReadFile(filepath.Join(dir, "KeyTable"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for line := range strings.Lines(string(keys)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		part := strings.Split(value, ":")
		if !ok || len(part) != 3 || names[name] != "" {
			return nil, fmt.Errorf("line %q", line)
		}
		if err := wholeKey(part[2]); err != nil {
			return nil, fmt.Errorf("KeyTable names %w", err)
		}
		names[name] = part[2]
	}
	found := make(map[string][]string)
	for line := range strings.Lines(string(table)) {
		pattern, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || names[name] == "" {
			return nil, fmt.Errorf("SigningTable names %q", line)
		}
		found[pattern] = append(found[pattern], names[name])
	}
	return found, nil
}

func wholeKey(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	block, rest := pem.Decode(data)
	if block == nil || len(rest) > 0 {
		return fmt.Errorf("%s, which is no whole key: %q", file, data)
	}
	_, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	return err
}
