package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	manifestName = "manifest.json"
	keysName     = "keys"
	// unfinished is the end of the name of a file that is being written.
	unfinished = ".tmp"
)

// keyFilePattern is what the names of files with keys look like.
var keyFilePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*\.(pem|sealed)$`)

// ErrStrange says that a directory holds what no agent wrote there.
var ErrStrange = errors.New("the directory is not the agent's alone")

// folder is a directory with tables and, below it, files with keys. Each file is
// replaced whole. It is used by one process at a time.
type folder struct {
	dir   string
	group int // that may read, -1: none
	owner int // of files, -1: that of the process, and then the group may read them
	lock  *os.File
	man   manifest
	torn  bool // the manifest may end in the middle of a line
	many  int  // from how many files on the whole file system is synced
	// fault is called before each operation on a file. Tests let it fail, or be left
	// out by errDone.
	fault func(operation, path string) error
}

// errDone says that an operation need not be carried out.
var errDone = errors.New("done")

// do carries out an operation on a file.
func (f *folder) do(operation, path string, carryOut func() error) error {
	err := f.fault(operation, path)
	if errors.Is(err, errDone) {
		return nil
	}
	if err != nil {
		return err
	}
	return carryOut()
}

// openFolder takes a directory into use, which is empty, or not there, or was used
// with the same format before. Unfinished files and tables of other names are
// removed. It returns ErrStrange.
func openFolder(dir, format string, tables []string, owner, group int, fault func(operation, path string) error) (*folder, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	f := &folder{dir: abs, owner: owner, group: group, many: manyFiles, fault: fault}
	if f.fault == nil {
		f.fault = func(string, string) error { return nil }
	}
	if err := f.open(format, tables); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *folder) open(format string, tables []string) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	f.lock = lock
	if err := lockFile(lock); err != nil {
		return fmt.Errorf("%s: is another agent at work there? %w", f.dir, err)
	}
	if err := f.readManifest(format); err != nil {
		return err
	}
	allowed := append(slices.Clone(tables), f.man.Tables...)
	if err := f.check(allowed); err != nil {
		return err
	}
	if err := f.permit(f.dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(f.path(keysName), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := f.permit(f.path(keysName), 0o700); err != nil {
		return err
	}
	return f.clean(format, tables, allowed)
}

func (f *folder) close() error {
	if f.lock == nil {
		return nil
	}
	return f.lock.Close()
}

func (f *folder) path(name ...string) string {
	return filepath.Join(append([]string{f.dir}, name...)...)
}

func (f *folder) readManifest(format string) error {
	info, err := os.Lstat(f.path(manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no file", ErrStrange, f.path(manifestName))
	}
	if err := f.loadManifest(); err != nil {
		return err
	}
	if f.man.Format != format {
		return fmt.Errorf("%w: %s holds files for %s, not for %s: choose another, or empty it", ErrStrange, f.dir, f.man.Format, format)
	}
	return nil
}

// check refuses a directory with other files than those of an agent.
func (f *folder) check(tables []string) error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), unfinished)
		known := name == manifestName || f.man.Format != "" && slices.Contains(tables, name)
		if e.Name() == keysName {
			known = e.IsDir()
		} else if !e.Type().IsRegular() {
			known = false
		}
		if !known {
			return fmt.Errorf("%w: %s was there before: choose a directory that is empty or that does not exist", ErrStrange, f.path(e.Name()))
		}
	}
	entries, err = os.ReadDir(f.path(keysName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || f.man.Format == "" || !keyFilePattern.MatchString(strings.TrimSuffix(e.Name(), unfinished)) {
			return fmt.Errorf("%w: %s is no file of an agent: take it away", ErrStrange, f.path(keysName, e.Name()))
		}
	}
	return nil
}

// clean removes what a process that was ended left, and what is of no use any more.
func (f *folder) clean(format string, tables, allowed []string) error {
	if err := f.setTables(format, slices.Compact(slices.Sorted(slices.Values(allowed)))); err != nil {
		return err
	}
	for _, dir := range []string{f.dir, f.path(keysName)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			stale := dir == f.dir && slices.Contains(allowed, e.Name()) && !slices.Contains(tables, e.Name())
			if stale || strings.HasSuffix(e.Name(), unfinished) {
				if err := f.remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return f.setTables(format, slices.Sorted(slices.Values(tables)))
}

// permit sets who may use a file or directory. Directories stay those of the process:
// who reads files cannot exchange them.
func (f *folder) permit(path string, mode fs.FileMode) error {
	owner := -1
	if mode&0o100 == 0 {
		owner = f.owner
	}
	if owner >= 0 || f.group >= 0 {
		if err := os.Chown(path, owner, f.group); err != nil {
			return err
		}
	}
	if f.group >= 0 && owner < 0 {
		mode |= mode & 0o500 >> 3 // the group reads and enters
	}
	return os.Chmod(path, mode)
}

// write replaces a file. The directory has to be synced after it.
func (f *folder) write(path string, data []byte) error {
	return f.replace(path, data, true)
}

func (f *folder) replace(path string, data []byte, sync bool) error {
	tmp := path + unfinished
	err := f.writeTo(tmp, data, sync)
	if err == nil && sync {
		err = f.rename(path)
	}
	if err != nil {
		_ = f.remove(tmp) // makes room on a full disk; the next start does it too
	}
	return err
}

// rename gives a file that was written its name.
func (f *folder) rename(path string) error {
	return f.do("rename", path, func() error { return os.Rename(path+unfinished, path) })
}

func (f *folder) writeTo(tmp string, data []byte, sync bool) (err error) {
	if err := f.fault("create", tmp); err != nil {
		return err
	}
	file, err := f.create(tmp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := f.fault("write", tmp); err != nil {
		_, _ = file.Write(data[:len(data)/2]) // as when the disk is full
		return err
	}
	if _, err := file.Write(data); err != nil {
		return err
	}
	if err := f.permit(tmp, 0o600); err != nil || !sync {
		return err
	}
	return f.do("sync", tmp, file.Sync)
}

// create makes a file that was not there, as another one may have it open.
func (f *folder) create(tmp string) (*os.File, error) {
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if !errors.Is(err, fs.ErrExist) {
		return file, err
	}
	if err := os.Remove(tmp); err != nil {
		return nil, err
	}
	return os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// manyFiles is from how many files on it is quicker to have the whole file system get
// to the disk than one file after the other.
const manyFiles = 20

// writeKeys writes files into the directory of keys, and gives none its name before all
// are on the disk whole. data is cleared.
func (f *folder) writeKeys(files map[string][]byte) error {
	defer func() {
		for _, data := range files {
			clear(data)
		}
	}()
	if len(files) == 0 {
		return nil
	}
	dir, many := f.path(keysName), len(files) >= f.many
	names := slices.Sorted(maps.Keys(files))
	for i, name := range names {
		if err := f.replace(filepath.Join(dir, name), files[name], !many); err != nil {
			for _, before := range names[:i] {
				_ = f.remove(filepath.Join(dir, before) + unfinished)
			}
			return err
		}
	}
	if many {
		if err := f.do("sync", f.dir, func() error { return syncAll(f.lock, dir) }); err != nil {
			return err
		}
		for _, name := range names {
			if err := f.rename(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return f.sync(dir)
}

func (f *folder) remove(path string) error {
	return f.do("remove", path, func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// sync makes what was renamed and removed in a directory last.
func (f *folder) sync(dir string) error {
	return f.do("sync", dir, func() error {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	})
}

// keyFiles are the names of the files with keys.
func (f *folder) keyFiles() (map[string]bool, error) {
	entries, err := os.ReadDir(f.path(keysName))
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(entries))
	for _, e := range entries {
		names[e.Name()] = true
	}
	return names, nil
}
