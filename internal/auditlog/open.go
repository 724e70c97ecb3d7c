package auditlog

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// found is what a file of a log holds.
type found struct {
	head Position
	size int64 // of all good lines from the beginning
	rest int64 // octets after them
	// unfinished: the rest is one line that was not written to its end. Else
	// somebody changed the file.
	unfinished bool
}

// scan checks a file from its beginning and says how far it is good. Lines of
// several chains in one file are not.
func scan(path string) (found, error) {
	f, err := os.Open(path)
	if err != nil {
		return found{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	in := bufio.NewReaderSize(f, 1<<16)
	var at found
	for {
		text, whole, err := readLine(in)
		if err != nil {
			return found{}, err
		}
		place, prev, good := glance(text)
		follows := good && (at.size == 0 || place.Chain == at.head.Chain && place.Seq == at.head.Seq+1 && prev == at.head.Hash)
		if !whole || !follows {
			info, err := f.Stat()
			if err != nil {
				return found{}, err
			}
			at.rest = info.Size() - at.size
			at.unfinished = !whole && at.rest > 0
			return at, nil
		}
		at.head = place
		at.size += int64(len(text)) + 1
	}
}

// rotatedDigits is the length of the number in the name of a rotated file, that
// of its first line. Names in order are files in order.
const rotatedDigits = 12

// rotatedName is the name under which a file is kept whose first line is first.
func rotatedName(path string, first uint64) string {
	return fmt.Sprintf("%s.%0*d", path, rotatedDigits, first)
}

// rotated are the files that path was rotated to, oldest first.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if !ok || len(number) < rotatedDigits || strings.Trim(number, "0123456789") != "" || !e.Type().IsRegular() {
			continue
		}
		names = append(names, filepath.Join(filepath.Dir(path), e.Name()))
	}
	slices.SortFunc(names, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return names, nil
}

// resume finds where the log goes on and mends the end of its file. told is the
// line that the log gets of it, if anything had to be done.
func resume(path string) (head Position, told *Entry, _ error) {
	at, err := scan(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Position{}, nil, err
	}
	if at.size == 0 { // a new file: the chain goes on from the one before
		older, err := rotated(path)
		if err != nil {
			return Position{}, nil, err
		}
		if len(older) > 0 {
			last := older[len(older)-1]
			before, err := scan(last)
			if err != nil {
				return Position{}, nil, err
			}
			at.head = before.head
		}
	}
	if at.rest == 0 {
		return at.head, nil, nil
	}
	told = &Entry{Call: "dkimd/mend", Outcome: "OK"}
	if at.unfinished {
		told.After = map[string]string{"unfinished_octets_cut": fmt.Sprint(at.rest)}
		return at.head, told, truncate(path, at.size)
	}
	// What somebody changed is kept as it is.
	aside, err := setAside(path, at.head.Seq+1)
	if err != nil {
		return Position{}, nil, err
	}
	told.Outcome, told.Reason = "DATA_LOSS", "LOG_BROKEN"
	told.After = map[string]string{"kept_as": filepath.Base(aside), "good_until_line": fmt.Sprint(at.head.Seq)}
	return at.head, told, nil
}

// firstSeq is the place of the first line of a file.
func firstSeq(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	text, _, err := readLine(bufio.NewReader(f))
	if err != nil {
		return 0, err
	}
	at, _, ok := glance(text)
	if !ok {
		return 0, ErrMalformed
	}
	return at.Seq, nil
}

// setAside renames a broken file so that neither rotation nor pruning takes it.
func setAside(path string, line uint64) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.broken-%d-%d", path, line, n)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			return aside, os.Rename(path, aside)
		} else if err != nil {
			return "", err
		}
	}
}

func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// newChain draws the name of a chain.
func newChain() string {
	var b [chainDigits / 2]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
