package envelope

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"gocloud.dev/secrets"
	"gocloud.dev/secrets/localsecrets"
)

// maxKeyFile is more than a key file needs.
const maxKeyFile = 1024

// OpenKeeper opens the keeper of the key-encryption key that url names. So far
// that is a file: "file:///etc/dkimzone/kek.key" is a file of 32 octets in
// base64, as [CreateKeyFile] makes it, which only its owner may read. An error
// wraps os.ErrNotExist when there is no such file; no error shows a key, nor
// the url, which may contain one. The caller closes the keeper.
func OpenKeeper(_ context.Context, rawURL string) (*secrets.Keeper, error) {
	path, err := keyFilePath(rawURL)
	if err != nil {
		return nil, err
	}
	key, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	defer clear(key[:])
	return localsecrets.NewKeeper(key), nil
}

func keyFilePath(rawURL string) (string, error) {
	const supported = "use file:///absolute/path/to/kek.key"
	u, err := url.Parse(rawURL)
	switch {
	case err != nil || u.Scheme == "":
		return "", fmt.Errorf("key-encryption key: not a URL; %s", supported)
	case u.Scheme != "file":
		return "", fmt.Errorf("key-encryption key: URLs of scheme %q are not supported; %s", u.Scheme, supported)
	case u.Opaque != "" || (u.Host != "" && u.Host != "localhost") || !filepath.IsAbs(u.Path) || strings.HasSuffix(u.Path, "/"):
		return "", fmt.Errorf("key-encryption key: the URL names no file by an absolute path; %s", supported)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("key-encryption key: the URL must be a scheme and a path only; %s", supported)
	}
	return u.Path, nil
}

func readKeyFile(path string) (key [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return key, err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return key, err
	}
	if !info.Mode().IsRegular() {
		return key, fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return key, fmt.Errorf("%s can be read or written by others than its owner (mode %04o); chmod 600 it", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return key, err
	}
	defer clear(data)
	decoded, err := base64.StdEncoding.Strict().AppendDecode(nil, bytes.TrimSpace(data))
	defer clear(decoded)
	if err != nil || len(data) > maxKeyFile || len(decoded) != len(key) {
		return key, fmt.Errorf("%s does not hold 32 octets in base64", path)
	}
	return [32]byte(decoded), nil
}

// CreateKeyFile makes a key-encryption key and writes it, for [OpenKeeper], to
// a new file of mode 0600. It is whole and on disk when CreateKeyFile returns.
// The error wraps os.ErrExist when there is a file of that name, which is left
// as it is. Who loses this file loses all sealed keys: it needs a backup, apart
// from the store's.
func CreateKeyFile(path string) error {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	defer clear(key[:])
	text := append(base64.StdEncoding.AppendEncode(nil, key[:]), '\n')
	defer clear(text)
	if err := writeNew(path, text); err != nil {
		return fmt.Errorf("create key-encryption key: %w", err)
	}
	return nil
}

// writeNew links a finished file to its name, so that a file of that name is
// never a partial one.
func writeNew(path string, data []byte) error {
	dir, name := filepath.Split(path)
	if name == "" {
		return errors.New("no file name given")
	}
	temp, err := os.CreateTemp(filepath.Clean(dir), "."+name+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }() // at worst it stays
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Sync()
	}
	if err := errors.Join(err, temp.Close()); err != nil {
		return err
	}
	err = os.Link(temp.Name(), path)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
