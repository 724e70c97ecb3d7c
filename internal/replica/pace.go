package replica

import "time"

const (
	workSlice = time.Millisecond
	breath    = 50 * time.Microsecond
)

// Pace is for long work beside the answering of queries, which may not wait for
// it: on a single CPU the Go runtime looks for packets only when nothing else
// wants to run, or every 10 ms. The zero value is ready to use. A Pace belongs to
// one goroutine.
type Pace struct {
	until time.Time
}

// Step is called often, between small pieces of the work. Once in a millisecond
// of work it sleeps for a moment.
func (p *Pace) Step() {
	if now := time.Now(); now.Before(p.until) {
		return
	}
	if !p.until.IsZero() {
		time.Sleep(breath)
	}
	p.until = time.Now().Add(workSlice)
}
