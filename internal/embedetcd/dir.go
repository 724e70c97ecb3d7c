package embedetcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

var (
	// ErrInUse is wrapped by errors about a data directory that is open already.
	ErrInUse = errors.New("data directory is in use by another process")

	// ErrUnusableDir is wrapped by errors about a data directory that cannot
	// be created, written to or read.
	ErrUnusableDir = errors.New("data directory is not usable")
)

const (
	dirMode   = 0o700
	lockFile  = "dkimzone.lock"
	memberDir = "member"

	// newMark is a file in the member directory from before its first start
	// until that start is complete. An etcd that is stopped in between never
	// elects a leader again.
	newMark = "dkimzone.new"
)

// openDir prepares dir and takes its lock. etcd waits for ever for a database
// that another process holds, and ends the process on many faults of the
// directory, so these are found here.
func openDir(dir string) (*fileutil.LockedFile, error) {
	if dir == "" {
		return nil, fmt.Errorf("%w: no path given", ErrUnusableDir)
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusableDir, err)
	}
	lock, err := fileutil.TryLockFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, fileutil.PrivateFileMode)
	switch {
	case errors.Is(err, fileutil.ErrLocked):
		return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnusableDir, err)
	}
	if err := prepareMember(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// prepareMember makes a new member directory, or checks the one there is.
func prepareMember(dir string) error {
	member := filepath.Join(dir, memberDir)
	mark := filepath.Join(member, newMark)
	if _, err := os.Stat(mark); err == nil {
		// Its first start was cut short, so nobody ever wrote to it.
		if err := os.RemoveAll(member); err != nil {
			return fmt.Errorf("%w: %w", ErrUnusableDir, err)
		}
	}
	if err := os.MkdirAll(member, dirMode); err != nil {
		return fmt.Errorf("%w: %w", ErrUnusableDir, err)
	}
	entries, err := os.ReadDir(member)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnusableDir, err)
	}
	if len(entries) > 0 {
		return checkMember(dir)
	}
	if err := os.WriteFile(mark, nil, fileutil.PrivateFileMode); err != nil {
		return fmt.Errorf("%w: %w", ErrUnusableDir, err)
	}
	return nil
}

// markComplete records that the member can be started again. It must be on
// disk before the first write is acknowledged, since the mark's being there
// says that there were none.
func markComplete(dir string) error {
	member := filepath.Join(dir, memberDir)
	err := os.Remove(filepath.Join(member, newMark))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := os.Open(member)
	if err != nil {
		return err
	}
	return errors.Join(fileutil.Fsync(d), d.Close())
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return nil // ours already, or someone else's: its mode is not ours to change
	}
	return os.Chmod(dir, dirMode)
}

// checkMember finds a stock etcd on the directory, which does not know our
// lock, and a database that etcd could not open.
func checkMember(dir string) error {
	member := filepath.Join(dir, memberDir)
	for _, sub := range []string{member, filepath.Join(member, "snap"), filepath.Join(member, "wal")} {
		err := fileutil.IsDirWriteable(sub)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", ErrUnusableDir, err)
		}
	}
	file := filepath.Join(member, "snap", "db")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(file, fileutil.PrivateFileMode, &bbolt.Options{ReadOnly: true, Timeout: time.Millisecond})
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return fmt.Errorf("%w: %s", ErrInUse, dir)
	case err != nil:
		return fmt.Errorf("%w: %s: %w", ErrUnusableDir, file, err)
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnusableDir, file, err)
	}
	return nil
}
