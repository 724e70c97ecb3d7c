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

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets/localsecrets"
)

// maxKeyFile is more than a key file needs.
const maxKeyFile = 1024

// openFile opens a key of 32 octets in base64 in a file that only its owner may
// read. Its errors do not show the URL.
func openFile(_ context.Context, u *url.URL) (*keyEncryptionKey, error) {
	switch {
	case u.Opaque != "" || (u.Host != "" && u.Host != "localhost") || !filepath.IsAbs(u.Path) || strings.HasSuffix(u.Path, "/"):
		return nil, errors.New("the URL names no file by an absolute path; use file:///absolute/path/to/kek.key")
	case u.RawQuery != "":
		return nil, errors.New("the URL must be a scheme and a path only; use file:///absolute/path/to/kek.key")
	}
	key, err := readKeyFile(u.Path)
	if err != nil {
		return nil, err
	}
	defer clear(key[:])
	return &keyEncryptionKey{
		label: "file://" + u.Path, keeper: localsecrets.NewKeeper(key),
		judge: func(err error) error {
			if gcerrors.Code(err) == gcerrors.Unknown { // all that it says of a ciphertext
				return ErrWrongKey
			}
			return nil
		},
	}, nil
}

func readKeyFile(path string) (key [32]byte, err error) {
	f, err := os.Open(path) //nolint:gosec // G703: whoever starts the process names it
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
