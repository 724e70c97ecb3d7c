package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
)

// manifest is what a folder holds, so that it is known after a restart. Its file is a
// line with the format and tables, and a line for each Ref. Lines are added, so that
// a change of one key does not write those of all others.
type manifest struct {
	Format string   `json:"format"`
	Tables []string `json:"tables"`

	// refs are all that tables may name, and some that they no longer do.
	refs map[Ref]bool
}

// loadManifest reads the manifest. A last line that is not whole is left out: no table
// names its key yet.
func (f *folder) loadManifest() error {
	file, err := os.Open(f.path(manifestName))
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it is only read
	lines := json.NewDecoder(file)
	if err := lines.Decode(&f.man); err != nil {
		return fmt.Errorf("%s cannot be read, empty the directory: %w", file.Name(), err)
	}
	f.man.refs = make(map[Ref]bool)
	for {
		var r Ref
		if err := lines.Decode(&r); err != nil {
			f.torn = !errors.Is(err, io.EOF)
			return nil
		}
		if r.check() == nil {
			f.man.refs[r] = true
		}
	}
}

// setTables notes which tables may be there.
func (f *folder) setTables(format string, tables []string) error {
	if f.man.Format == format && slices.Equal(f.man.Tables, tables) && !f.torn {
		return nil
	}
	f.man.Format, f.man.Tables = format, tables
	return f.writeManifest(f.man.refs)
}

// writeManifest writes all of it anew.
func (f *folder) writeManifest(refs map[Ref]bool) error {
	data, err := manifestLines(f.man, slices.SortedFunc(maps.Keys(refs), compareRefs))
	if err != nil {
		return err
	}
	if err := f.write(f.path(manifestName), data); err != nil {
		return err
	}
	f.man.refs, f.torn = refs, false
	return f.sync(f.dir)
}

func manifestLines(head any, refs []Ref) ([]byte, error) {
	var out bytes.Buffer
	lines := json.NewEncoder(&out)
	if head != nil {
		if err := lines.Encode(head); err != nil {
			return nil, err
		}
	}
	for _, r := range refs {
		if err := lines.Encode(r); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// noteRefs notes what tables may name.
func (f *folder) noteRefs(refs []Ref) error {
	var added []Ref
	for _, r := range refs {
		if !f.man.refs[r] {
			added = append(added, r)
		}
	}
	if len(added) == 0 {
		return nil
	}
	if f.torn || len(added) > len(f.man.refs) {
		all := make(map[Ref]bool, len(f.man.refs)+len(added))
		maps.Copy(all, f.man.refs)
		for _, r := range added {
			all[r] = true
		}
		return f.writeManifest(all)
	}
	data, err := manifestLines(nil, added)
	if err != nil {
		return err
	}
	if err := f.extend(f.path(manifestName), data); err != nil {
		f.torn = true
		return err
	}
	for _, r := range added {
		f.man.refs[r] = true
	}
	return nil
}

// forgetRefs leaves out what is not in refs, which is what tables may name, once that
// is most of it: until then it does no harm, as the keys are not there.
func (f *folder) forgetRefs(refs []Ref) error {
	const few = 1000
	if len(f.man.refs) <= 2*len(refs)+few {
		return nil
	}
	all := make(map[Ref]bool, len(refs))
	for _, r := range refs {
		all[r] = true
	}
	return f.writeManifest(all)
}

// extend adds to the end of a file.
func (f *folder) extend(path string, data []byte) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := f.fault("write", path); err != nil {
		_, _ = file.Write(data[:len(data)/2]) // as when the disk is full
		return err
	}
	if _, err := file.Write(data); err != nil {
		return err
	}
	return f.do("sync", path, file.Sync)
}
