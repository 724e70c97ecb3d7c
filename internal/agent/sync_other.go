//go:build !linux

package agent

import (
	"errors"
	"os"
	"path/filepath"
)

// syncAll has the unfinished files of dir get to the disk.
func syncAll(_ *os.File, dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*"+unfinished))
	for _, name := range names {
		file, openErr := os.Open(name)
		if openErr != nil {
			return openErr
		}
		err = errors.Join(err, file.Sync(), file.Close())
	}
	return err
}
