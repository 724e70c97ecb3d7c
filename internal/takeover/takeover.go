// Package takeover reads the configuration of signers that are in service, OpenDKIM, rspamd or a directory of key files,
// and lists the private keys that they sign with: under which domain and selector, and where the key is.
//
// It reads configuration and lists directories; key files it opens only when asked for their contents. What it reads was
// written by others: whatever it cannot make sense of becomes a Problem, and the rest is still listed.
package takeover

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

const (
	// maxTable bounds a file of configuration, maxKey a file with a private key, in octets.
	maxTable = 256 << 20
	maxKey   = 64 << 10
)

// Place says where something stands: a file, and a line of it if Line is not 0.
type Place struct {
	File string
	Line int
}

// String is "file:line".
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Key is a private key of the installation, under the name that it signs with.
type Key struct {
	Domain   dnsname.Domain
	Selector dnsname.Selector
	// InUse says that the configuration has it sign.
	InUse bool
	// Place is where the configuration names the key.
	Place Place
	// File has the private key. It is empty if the configuration itself has it.
	File string

	inline []byte
}

// Read returns the private key as it stands there, and what is known of its file; that is nil for one that stands in
// the configuration. The caller clears the octets.
func (k Key) Read() ([]byte, fs.FileInfo, error) {
	if k.File == "" {
		return slices.Clone(k.inline), nil, nil
	}
	f, err := os.Open(k.File)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s is no file", k.File)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKey+1))
	switch {
	case err != nil:
		return nil, nil, err
	case len(data) > maxKey:
		clear(data)
		return nil, nil, fmt.Errorf("%s is larger than %d KiB: that is no private key", k.File, maxKey>>10)
	}
	return data, info, nil
}

// Format prints the key's name whatever the verb: not what the configuration has inline.
func (k Key) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%s._domainkey.%s", k.Selector, k.Domain) // fmt.State gives no error
}

// Problem is something that is not taken over, or only in part.
type Problem struct {
	Place Place
	Err   error
}

// Error says where, and what.
func (p Problem) Error() string { return p.Place.String() + ": " + p.Err.Error() }

// Unwrap returns what is wrong.
func (p Problem) Unwrap() error { return p.Err }

// Inventory is what was found, in the order of the configuration.
type Inventory struct {
	Keys     []Key
	Problems []Problem
}

func (i *Inventory) problem(at Place, format string, args ...any) {
	i.Problems = append(i.Problems, Problem{at, fmt.Errorf(format, args...)})
}

// add lists a key, after a look at its names. Names that it has already count once.
func (i *Inventory) add(seen map[string]int, domain, selector string, k Key) {
	d, err := dnsname.ParseDomain(domain)
	if err != nil {
		i.problem(k.Place, "%w", err)
		return
	}
	sel, err := dnsname.ParseSelector(selector)
	if err != nil {
		i.problem(k.Place, "%w", err)
		return
	}
	k.Domain, k.Selector = d, sel
	name := seenKey(string(d), string(sel))
	if at, twice := seen[name]; twice {
		if before := &i.Keys[at]; before.File != k.File || string(before.inline) != string(k.inline) {
			i.problem(k.Place, "selector %s of %s is at %s with another key", sel, d, before.Place)
		} else if k.InUse {
			before.InUse = true
		}
		return
	}
	seen[name] = len(i.Keys)
	i.Keys = append(i.Keys, k)
}

// seenKey is what a key is known by while an Inventory is made.
func seenKey(domain, selector string) string { return strings.ToLower(selector + "\x00" + domain) }

// Files is the file system of the installation. Root is put in front of the paths in its configuration; it is for
// configuration that was copied elsewhere. The zero value is the machine's own.
type Files struct{ Root string }

// Path is where a path of the configuration is found. Relative ones are relative to the directory of the file that has
// them, as people mean them.
func (f Files) Path(path, from string) string {
	if !filepath.IsAbs(path) {
		return filepath.Join(filepath.Dir(from), path)
	}
	return filepath.Join(f.Root, path)
}

// read returns a file of the configuration. name is as Path gave it.
func (f Files) read(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, fmt.Errorf("%s is no file", name))
	}
	data, err := io.ReadAll(io.LimitReader(file, maxTable+1))
	switch {
	case err != nil:
		return "", err
	case len(data) > maxTable:
		return "", fmt.Errorf("%s is larger than %d MiB", name, maxTable>>20)
	}
	return strings.TrimPrefix(string(data), "\ufeff"), nil
}

// ErrNothing is returned for a configuration that names no key at all.
var ErrNothing = errors.New("no keys are configured there")
