package auditlog

import (
	"errors"
	"os"
	"syscall"
)

// lockFile opens and locks a file until it is closed.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errors.New("another process writes it")
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// datasync brings a file's content to the disk. A device that has none is fine.
func datasync(f *os.File) error {
	err := syscall.Fdatasync(int(f.Fd()))
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EROFS) {
		return nil
	}
	return err
}
