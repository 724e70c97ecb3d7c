package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// syncLines is how many lines a power cut may take back at most, unless a
// journal says something else.
const syncLines = 100

// journal is the file that keeps which lines of another are done, so that an
// interrupted run can go on. Its first line says what was done with them.
type journal struct {
	file      *os.File
	done      map[string]bool
	syncEvery int
	pending   int // lines not yet synced
}

// openJournal opens or creates the file. title stands for all that the done
// lines depend on: a file with another one is refused.
func openJournal(path, title string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot keep what is done: %w", err)
	}
	j := &journal{file: f, done: make(map[string]bool), syncEvery: syncLines}
	if err := j.load(path, title); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func (j *journal) load(path, title string) error {
	data, err := io.ReadAll(j.file)
	if err != nil {
		return fmt.Errorf("read what is done: %w", err)
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1] // a power cut may have left half a line
	have, rest, found := strings.Cut(string(data), "\n")
	if found && have != title {
		return fmt.Errorf("%s keeps what is done of another run (%q, now %q): remove it to begin anew, or use the same command", path, have, title)
	}
	for text := range strings.Lines(rest) {
		j.done[strings.TrimSuffix(text, "\n")] = true
	}
	if err := j.file.Truncate(int64(len(data))); err != nil {
		return fmt.Errorf("repair %s: %w", path, err)
	}
	if _, err := j.file.Seek(int64(len(data)), io.SeekStart); err != nil {
		return fmt.Errorf("read what is done: %w", err)
	}
	if !found {
		return j.write(title + "\n")
	}
	return nil
}

// add keeps that a line is done.
func (j *journal) add(text string) error {
	j.done[text] = true
	return j.addLines(text+"\n", 1)
}

// addLines keeps n lines, without a place in done: memory is for those that an
// earlier run has done.
func (j *journal) addLines(text string, n int) error {
	if n == 0 {
		return nil
	}
	if err := j.write(text); err != nil {
		return err
	}
	if j.pending += n; j.pending < j.syncEvery {
		return nil
	}
	return j.sync()
}

func (j *journal) write(text string) error {
	if _, err := j.file.WriteString(text); err != nil {
		return fmt.Errorf("keep what is done: %w", err)
	}
	return nil
}

func (j *journal) sync() error {
	j.pending = 0
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("keep what is done: %w", err)
	}
	return nil
}

// end removes the file when everything is done, and else keeps it for a later run.
func (j *journal) end(complete bool) error {
	if complete {
		return errors.Join(j.file.Close(), os.Remove(j.file.Name()))
	}
	return errors.Join(j.sync(), j.file.Close())
}
