package agent

import (
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// cacheKeySize is for AES-256.
const cacheKeySize = 32

// cache is what the agent knows, sealed with AES-256-GCM, for a start while dkimd is
// away. It is no part of what keeps the signer's files right.
type cache struct {
	folder *folder
	aead   cipher.AEAD
	keys   map[string]bool // names of files that are good
	others map[string]bool // of the rest

	found   cached // at the start
	problem error  // why nothing was

	// stored is whether the state of the file is the present one, which is state. Only
	// then may it be said to be confirmed, which it was for confirmed, at written.
	stored             bool
	state              [sha256.Size]byte
	confirmed, written time.Time
}

// cached is what a cache holds but for the keys.
type cached struct {
	Entries []Entry `json:"entries"`
	Default Entry   `json:"default"`
	Standby []Ref   `json:"standby"`
	// Confirmed is in a file of its own, which is written more often.
	Confirmed time.Time `json:"-"`
}

var errNoCache = errors.New("there is none")

const (
	stateName     = "state"
	confirmedName = "confirmed"
)

// openCache opens a cache, and makes the key file if there is none. It returns
// ErrStrange, and an error if the key file can be read by others or holds no key.
func openCache(dir, keyFile string, fault func(operation, path string) error) (*cache, error) {
	key, err := cacheKey(keyFile)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	c := &cache{}
	if c.aead, err = cipher.NewGCM(block); err != nil {
		return nil, err
	}
	if c.folder, err = openFolder(dir, "cache", []string{stateName, confirmedName}, -1, -1, fault); err != nil {
		return nil, err
	}
	if c.others, err = c.folder.keyFiles(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	c.keys = make(map[string]bool)
	if c.found, c.problem = c.load(); c.problem != nil {
		return c, nil
	}
	for _, r := range c.found.refs() {
		file := sealedFile(r.Key)
		if der, err := c.key(r.Key); err == nil {
			clear(der)
			c.keys[file] = true
			delete(c.others, file)
		}
	}
	return c, nil
}

func cacheKey(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return newCacheKey(name)
	}
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others than its owner (mode %04o): chmod 600 it, or remove it together with the cache", name, mode)
	}
	key, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if len(key) != cacheKeySize {
		clear(key)
		return nil, fmt.Errorf("%s holds %d octets, a key has %d: remove it together with the cache", name, len(key), cacheKeySize)
	}
	return key, nil
}

func newCacheKey(name string) (key []byte, err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".cache-key-*") // of mode 0600
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // it has another name by then, unless something failed
	key = make([]byte, cacheKeySize)
	_, _ = rand.Read(key) // never fails
	_, err = tmp.Write(key)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	return key, os.Link(tmp.Name(), name)
}

func (c *cache) close() error {
	if c == nil {
		return nil
	}
	return c.folder.close()
}

// seal seals data so that it opens under that name only.
func (c *cache) seal(name string, data []byte) []byte {
	nonce := make([]byte, c.aead.NonceSize(), c.aead.NonceSize()+len(data)+c.aead.Overhead())
	_, _ = rand.Read(nonce) // never fails
	return c.aead.Seal(nonce, nonce, data, []byte("dkimzone agent cache\x00"+name))
}

func (c *cache) unseal(name string, data []byte) ([]byte, error) {
	n := c.aead.NonceSize()
	if len(data) < n {
		return nil, errors.New("it is too short")
	}
	return c.aead.Open(nil, data[:n], data[n:], []byte("dkimzone agent cache\x00"+name))
}

func (c *cache) read(name string, v any) error {
	sealed, err := os.ReadFile(c.folder.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return errNoCache
	}
	if err != nil {
		return err
	}
	data, err := c.unseal(name, sealed)
	if err != nil {
		return fmt.Errorf("%s: %w", c.folder.path(name), err)
	}
	return json.Unmarshal(data, v)
}

func (c *cache) write(name string, data []byte) error {
	if err := c.folder.write(c.folder.path(name), c.seal(name, data)); err != nil {
		return err
	}
	return c.folder.sync(c.folder.dir)
}

// load reads all but the keys. It returns errNoCache if there never was one.
func (c *cache) load() (cached, error) {
	var s cached
	if err := c.read(stateName, &s); err != nil {
		return cached{}, err
	}
	if err := c.read(confirmedName, &s.Confirmed); err != nil {
		return cached{}, err
	}
	s.sort()
	return s, nil
}

// sort puts Entries in the order of the tables.
func (s cached) sort() {
	slices.SortFunc(s.Entries, func(a, b Entry) int { return cmp.Compare(a.Sender, b.Sender) })
}

// refs are all that s names.
func (s cached) refs() []Ref {
	refs := append(slices.Clone(s.Standby), s.Default.Refs...)
	for _, e := range s.Entries {
		refs = append(refs, e.Refs...)
	}
	return refs
}

// store writes all but the keys.
func (c *cache) store(s cached) error {
	slices.SortFunc(s.Standby, compareRefs)
	state, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(state); !c.stored || sum != c.state {
		c.stored = false
		if err := c.write(stateName, state); err != nil {
			return err
		}
		c.stored, c.state = true, sum
	}
	return c.confirm(s.Confirmed)
}

// confirm notes when what was stored was last known to be right.
func (c *cache) confirm(at time.Time) error {
	data, err := json.Marshal(at.UTC())
	if err != nil {
		return err
	}
	if err := c.write(confirmedName, data); err != nil {
		return err
	}
	c.confirmed = at
	return nil
}

func sealedFile(key string) string { return id(key) + ".sealed" }

// key is a private key, PKCS #8 in DER.
func (c *cache) key(name string) ([]byte, error) {
	path := c.folder.path(keysName, sealedFile(name))
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	der, err := c.unseal(name, sealed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return der, nil
}

// storeKeys brings the keys to those of names, which read has.
func (c *cache) storeKeys(names []string, read func(name string) ([]byte, error)) error {
	wanted := make(map[string]bool, len(names))
	files := make(map[string][]byte)
	for i, name := range names {
		file := sealedFile(name)
		if !wanted[file] && !c.keys[file] {
			der, err := read(name)
			if err != nil {
				return err
			}
			files[file] = c.seal(name, der)
			clear(der)
		}
		wanted[file] = true
		if len(files) < writeBatch && i < len(names)-1 {
			continue
		}
		if err := c.folder.writeKeys(files); err != nil {
			return err
		}
		for file := range files {
			c.keys[file] = true
		}
		clear(files)
	}
	changed := false
	for _, there := range []map[string]bool{c.keys, c.others} {
		for file := range there {
			if wanted[file] {
				continue
			}
			if err := c.folder.remove(c.folder.path(keysName, file)); err != nil {
				return err
			}
			delete(there, file)
			changed = true
		}
	}
	clear(c.others)
	if !changed {
		return nil
	}
	return c.folder.sync(c.folder.path(keysName))
}
