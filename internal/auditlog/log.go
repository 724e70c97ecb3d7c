package auditlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// retryInterval is how often a log that could not be written is tried again.
	retryInterval = time.Second
	// maxWaiting is how many entries of Note wait to be written, at most.
	maxWaiting = 10_000
	// commitEntries is how many entries are written at a time, at most.
	commitEntries = 4096
)

// ErrFailing is wrapped by the errors of a log that cannot be written now.
var ErrFailing = errors.New("audit log cannot be written")

var errClosed = fmt.Errorf("%w: it is closed", ErrFailing)

// Options say where a Log is written and how.
type Options struct {
	// Path is the file; its directory must be there. Rotated ones stand beside it,
	// with the number of their first line appended. Empty: Out.
	Path string
	// Out is written to without a Path. It is neither rotated nor synced, and
	// begins a chain of its own.
	Out io.Writer
	// MaxSize is how large a file gets, in octets; 0: any size.
	MaxSize int64
	// Keep is how many rotated files are kept; 0: all.
	Keep int
	// Sync is how long a line may be only in the memory of the operating system,
	// where it outlives this process but not the machine. 0: Record waits for the
	// disk.
	Sync   time.Duration
	Now    func() time.Time
	Logger *slog.Logger
}

// Log writes entries. It is safe for concurrent use.
//
// One goroutine writes: it takes all entries that wait, writes them at once and,
// with Sync 0, waits for the disk once for all of them. What cannot be written is
// kept and tried again, in order, so that nothing that Record was given is lost
// while the process lives.
type Log struct {
	o    Options
	wake chan struct{} // has room for one
	done chan struct{} // closed when the writer has ended
	lock *os.File

	mu      sync.Mutex
	closed  bool
	waiting []item
	failing error // why the last try failed; nil if it did not
	head    Position
	lost    uint64 // entries of Note that found no room

	// Of the writer only.
	file  *os.File    // nil after a failure
	is    os.FileInfo // of the file that was open last
	size  int64       // of what is written of it
	limit int64       // the size at which it is rotated; 0: none
	dirty time.Time   // since when something is not synced; zero: nothing
	torn  bool        // Out has the beginning of a line
	buf   []byte
}

// item is an entry that waits. stored, if not nil, gets the result of the first
// try.
type item struct {
	entry  Entry
	stored chan<- error
}

// Open opens a log and goes on with its chain. What a crash left of a last line is
// cut off; a file that somebody changed is set aside as it is, and a new one
// begun. Both stand in the log then, and in o.Logger. It fails if another process
// has the log open.
func Open(ctx context.Context, o Options) (*Log, error) {
	l := &Log{o: o, wake: make(chan struct{}, 1), done: make(chan struct{}), limit: o.MaxSize}
	var told *Entry
	if o.Path != "" {
		var err error
		if l.lock, err = lockFile(o.Path + ".lock"); err != nil {
			return nil, fmt.Errorf("audit log %s: %w", o.Path, err)
		}
		if l.head, told, err = resume(o.Path); err == nil {
			err = l.reopen()
		}
		if err != nil {
			_ = l.lock.Close()
			return nil, fmt.Errorf("audit log %s: %w", o.Path, err)
		}
	}
	if l.head.Chain == "" {
		l.head.Chain = newChain()
	}
	go l.run()
	if told != nil {
		o.Logger.LogAttrs(ctx, slog.LevelError, "audit log was not as it was left", slog.Any("found", told.After), slog.String("file", o.Path))
		l.Note(*told)
	}
	if err := l.Record(ctx, Entry{Call: "dkimd/start", Outcome: "OK"}); err != nil {
		return nil, errors.Join(fmt.Errorf("audit log %s: %w", o.Path, err), l.Close(ctx))
	}
	return l, nil
}

// Record adds an entry, whose place in the chain and, if it has none, time it
// sets, and returns when it is stored. An error wraps ErrFailing, or is that of
// ctx; the entry is written all the same as soon as that is possible.
func (l *Log) Record(ctx context.Context, e Entry) error {
	stored := make(chan error, 1)
	if err := l.add(e, stored); err != nil {
		return err
	}
	select {
	case err := <-stored:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w in time: %w", ErrFailing, ctx.Err())
	}
}

// Note adds an entry and does not wait. While the log cannot be written, entries
// beyond some thousands are lost; a later line says how many.
func (l *Log) Note(e Entry) {
	_ = l.add(e, nil) // Ready and the metrics tell
}

// add lets an entry wait. With an error it waits too, unless the log is closed.
func (l *Log) add(e Entry, stored chan<- error) error {
	if e.Time.IsZero() {
		e.Time = l.o.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return errClosed
	case stored == nil && len(l.waiting) >= maxWaiting:
		l.lost++
		lostTotal.Inc()
		return nil
	case l.failing != nil:
		l.waiting = append(l.waiting, item{e, nil})
		return l.failing
	}
	l.waiting = append(l.waiting, item{e, stored})
	l.poke()
	return nil
}

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Ready returns nil if the last try to write succeeded, else an error that wraps
// ErrFailing: what must not happen without an entry must not happen now.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	return l.failing
}

// Head is the place of the last line that is stored.
func (l *Log) Head() Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Close writes what waits, and a last line, and closes the log. It returns what
// could not be written. Close it once.
func (l *Log) Close(ctx context.Context) error {
	l.Note(Entry{Call: "dkimd/stop", Outcome: "OK"})
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.poke()
	select {
	case <-l.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	var err error
	if n := len(l.waiting); n > 0 {
		err = fmt.Errorf("%d entries are not in the audit log: %w", n, l.failing)
	}
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
	}
	return err
}

// run is the writer.
func (l *Log) run() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		l.mu.Lock()
		batch := l.waiting[:min(len(l.waiting), commitEntries)]
		closed, failing := l.closed, l.failing != nil
		l.mu.Unlock()
		var err error
		switch {
		case len(batch) > 0:
			err = l.commit(batch)
		case !l.dirty.IsZero() && (closed || failing || time.Since(l.dirty) >= l.o.Sync):
			err = l.sync()
			l.settle(nil, l.head, err)
		case closed:
			l.closeFile()
			return
		case failing: // it was the sync that failed
			l.settle(nil, l.head, nil)
		}
		l.mu.Lock()
		more := len(l.waiting) > 0 || l.failing != nil
		l.mu.Unlock()
		switch {
		case err != nil && closed:
			l.closeFile()
			return
		case err != nil:
			timer.Reset(retryInterval)
		case more || closed:
			continue
		case !l.dirty.IsZero():
			timer.Reset(max(0, l.o.Sync-time.Since(l.dirty)))
		default:
			timer.Stop()
		}
		select {
		case <-timer.C:
		case <-l.wake:
		}
	}
}

// commit writes a batch, which stands at the head of those that wait.
func (l *Log) commit(batch []item) error {
	begin := time.Now()
	head := l.head // only the writer changes it
	l.buf = l.buf[:0]
	if l.torn {
		l.buf = append(l.buf, '\n')
	}
	first := head.Seq + 1
	for i := range batch {
		e := batch[i].entry // a copy: add may be moving those that wait
		e.Chain, e.Seq, e.Prev = head.Chain, head.Seq+1, head.Hash
		l.buf, head.Hash = e.Append(l.buf)
		l.buf = append(l.buf, '\n')
		head.Seq++
	}
	err := l.write(first)
	l.settle(batch, head, err)
	if err == nil {
		linesTotal.Add(float64(len(batch)))
		octetsTotal.Add(float64(len(l.buf)))
		commitSeconds.Observe(time.Since(begin).Seconds())
	}
	if cap(l.buf) > MaxLine {
		l.buf = nil
	}
	return err
}

// settle takes note of how a try ended and tells those who wait for it.
func (l *Log) settle(batch []item, head Position, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		failuresTotal.Inc()
		failingGauge.Set(1)
		err = fmt.Errorf("%w: %w", ErrFailing, err)
		if l.failing == nil {
			l.o.Logger.LogAttrs(context.Background(), slog.LevelError, "audit log cannot be written: changes are refused", slog.Any("error", err))
		}
		l.failing = err
		for i := range l.waiting { // also those that came meanwhile
			if it := &l.waiting[i]; it.stored != nil {
				it.stored <- err
				it.stored = nil
			}
		}
		return
	}
	if l.failing != nil {
		l.o.Logger.LogAttrs(context.Background(), slog.LevelInfo, "audit log can be written again")
		failingGauge.Set(0)
		l.failing = nil
	}
	l.head = head
	sequence.Set(float64(head.Seq))
	for _, it := range batch {
		if it.stored != nil {
			it.stored <- nil
		}
	}
	rest := copy(l.waiting, l.waiting[len(batch):])
	clear(l.waiting[rest:])
	l.waiting = l.waiting[:rest]
	if l.lost > 0 && len(batch) > 0 {
		l.waiting = append(l.waiting, item{entry: Entry{Time: l.o.Now(), Call: "dkimd/lost", Outcome: "DATA_LOSS", Repeated: l.lost}})
		l.lost = 0
	}
}

// write writes l.buf, whose first line is the first one of the chain.
func (l *Log) write(first uint64) error {
	if l.o.Path == "" {
		n, err := l.o.Out.Write(l.buf)
		l.torn = err != nil && (n > 0 || l.torn)
		return err
	}
	if err := l.prepare(first); err != nil {
		return err
	}
	if _, err := l.file.Write(l.buf); err != nil {
		return l.takeBack(err)
	}
	if l.o.Sync == 0 {
		if err := datasync(l.file); err != nil {
			return l.takeBack(err)
		}
	} else if l.dirty.IsZero() {
		l.dirty = time.Now()
	}
	l.size += int64(len(l.buf))
	return nil
}

// prepare sees to it that there is a file with room.
func (l *Log) prepare(first uint64) error {
	if l.file == nil {
		return l.reopen()
	}
	info, err := os.Stat(l.o.Path)
	if err != nil || !os.SameFile(l.is, info) {
		// Somebody moved it or deleted it. The chain goes on in a new one.
		l.o.Logger.LogAttrs(context.Background(), slog.LevelWarn, "audit log was moved by somebody else", slog.String("file", l.o.Path))
		return l.reopen()
	}
	if info.Size() != l.size {
		l.o.Logger.LogAttrs(context.Background(), slog.LevelError, "audit log was changed by somebody else", slog.String("file", l.o.Path))
		l.size = info.Size()
	}
	if l.limit == 0 || l.size == 0 || l.size+int64(len(l.buf)) <= l.limit {
		return nil
	}
	if err := l.sync(); err != nil {
		return err
	}
	if err := l.rotate(first); err != nil {
		l.o.Logger.LogAttrs(context.Background(), slog.LevelError, "audit log not rotated", slog.Any("error", err))
		l.limit = l.size + l.o.MaxSize // a file that is too long is better than none
		return nil
	}
	return l.reopen()
}

// takeBack leaves no part of a batch in the file. If that does not succeed either,
// reopen does it before the next try.
func (l *Log) takeBack(cause error) error {
	err := l.file.Truncate(l.size)
	l.closeFile()
	return errors.Join(cause, err)
}

// reopen opens the file at its end. If it is the one that was open before, what
// stands there beyond what was written is the beginning of a batch, and goes.
func (l *Log) reopen() error {
	l.closeFile()
	f, err := os.OpenFile(l.o.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && l.is != nil && os.SameFile(l.is, info) {
		if info.Size() > l.size {
			err = f.Truncate(l.size)
		}
	} else if err == nil {
		l.is, l.size, l.limit = info, info.Size(), l.o.MaxSize
		err = syncDir(l.o.Path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.size = min(l.size, info.Size())
	l.file = f
	return nil
}

// rotate gives the file its final name: that of its first line, or, where that
// cannot be told, of the line that comes next.
func (l *Log) rotate(next uint64) error {
	name := next
	if first, err := firstSeq(l.o.Path); err == nil {
		name = first
	}
	if err := os.Rename(l.o.Path, rotatedName(l.o.Path, name)); err != nil {
		return err
	}
	rotationsTotal.Inc()
	l.prune()
	return nil
}

// prune deletes the oldest of the rotated files. What it cannot delete stays.
func (l *Log) prune() {
	if l.o.Keep == 0 {
		return
	}
	files, err := rotated(l.o.Path)
	for i := 0; err == nil && i < len(files)-l.o.Keep; i++ {
		err = os.Remove(files[i])
	}
	if err != nil {
		l.o.Logger.LogAttrs(context.Background(), slog.LevelWarn, "old audit log not deleted", slog.Any("error", err))
	}
}

// sync brings what was written to the disk.
func (l *Log) sync() error {
	if l.file == nil || l.dirty.IsZero() {
		return nil
	}
	if err := datasync(l.file); err != nil {
		return err
	}
	l.dirty = time.Time{}
	return nil
}

func (l *Log) closeFile() {
	if l.file != nil {
		_ = l.file.Close() // all that counts is synced
		l.file = nil
	}
}
