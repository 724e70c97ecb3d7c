package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows on a terminal how far something is. Elsewhere it writes a line
// for every so many steps, or nothing. It is safe for concurrent use.
type progress struct {
	bar   *progressbar.ProgressBar
	plain io.Writer // nil: nothing
	every int
	what  string
	total int

	mu   sync.Mutex
	done int
}

// newProgress is for something short: nothing is written but to a terminal.
func (r *run) newProgress(total int, what string) *progress {
	p := &progress{what: what, total: total}
	if isTerminal(r.Stderr) {
		p.bar = newBar(r.Stderr, total, what)
	}
	return p
}

// newCounts is for something long, which writes a line for every so many steps
// where there is no terminal.
func (r *run) newCounts(total int, what string, every int) *progress {
	p := r.newProgress(total, what)
	p.plain, p.every = r.Stderr, every
	return p
}

func newBar(w io.Writer, total int, what string) *progressbar.ProgressBar {
	return progressbar.NewOptions(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowCount(),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetRenderBlankState(true),
		progressbar.OptionClearOnFinish(),
	)
}

func (p *progress) step() { p.add(1) }

// add is n steps at once.
func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.done
	p.done += n
	switch {
	case p.bar != nil:
		_ = p.bar.Add(n) // a bar that cannot be drawn is no failure
	case p.plain != nil && p.done/p.every > before/p.every && p.done < p.total:
		_, _ = fmt.Fprintf(p.plain, "%d of %d %s\n", p.done, p.total, p.what)
	}
}

// finish clears the line.
func (p *progress) finish() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
