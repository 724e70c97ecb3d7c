package pki

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// readPrivate reads a file that nobody but its owner may read.
func readPrivate(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others than its owner (mode %04o): make a new one if it may have been seen, else chmod 600 it", file, mode)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	return data, nil
}

// replaceFile puts a whole new file in the place of an old one or of none: at
// every moment, also after a power cut, there is one or the other.
func replaceFile(file string, data []byte, mode os.FileMode) error {
	return place(file, data, mode, os.Rename)
}

// createFile creates a whole file with mode 0600. Its error wraps os.ErrExist
// when there is one of that name.
func createFile(file string, data []byte) error {
	return place(file, data, 0o600, os.Link)
}

func place(file string, data []byte, mode os.FileMode, move func(from, to string) error) (err error) {
	dir, name := filepath.Split(file)
	temp, err := os.CreateTemp(dir, "."+name+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // after a rename it is gone
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Chmod(mode)
	}
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := move(temp.Name(), file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}
