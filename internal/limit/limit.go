// Package limit bounds what one caller may ask of dkimd, and what all may ask
// together: calls a second, calls at a time and open streams. It remembers a
// bounded number of callers.
package limit

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/authn"
)

// Class is a kind of calls that share a rate.
type Class string

// The classes.
const (
	Read      Class = "read"      // looks at something
	Mutation  Class = "mutation"  // changes something, or makes dkimd ask others, as CheckDomain does
	Provision Class = "provision" // makes keys or takes them in; counted by the key or domain
	Signer    Class = "signer"    // the calls of the Signer service
)

// Classes are all classes.
var Classes = [...]Class{Read, Mutation, Provision, Signer}

// ClassOf is the class of a method, given as "/package.Service/Method". What it
// does not know is a Mutation.
func ClassOf(method string) Class {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if !strings.HasPrefix(service, "dkim.") {
		return Read // health and reflection
	}
	if strings.HasSuffix(service, ".Signer") {
		return Signer
	}
	for _, verb := range []string{"Get", "List", "Watch", "Plan"} {
		if strings.HasPrefix(name, verb) {
			return Read
		}
	}
	name = strings.TrimPrefix(name, "Batch")
	for _, verb := range []string{"Provision", "Publish", "Import"} {
		if strings.HasPrefix(name, verb) {
			return Provision
		}
	}
	return Mutation
}

// Options are the bounds. The zero value of each is no bound.
type Options struct {
	// Rates are calls a second of one caller, by class. A caller who has been
	// quiet may make as many as in two seconds at once.
	Rates map[Class]float64
	// Concurrent is how many unary calls of one caller may be under way at a time.
	Concurrent int
	// Streams is how many streams one caller may have open.
	Streams int
	// Total is how many unary calls of all callers may be under way at a time, and
	// how many streams open.
	Total int
	// Admins subjects administrators to the bounds of one caller too.
	Admins bool
	// Callers is how many callers are told apart; 0 stands for 16384. When that
	// many have called within the last seconds, further ones share one allowance.
	Callers int
	// Now is the clock; nil stands for time.Now.
	Now func() time.Time
}

const (
	defaultCallers = 16384
	// burst is how many seconds' worth of calls may come at once.
	burst = 2
	// minBurst is the least that may come at once, for very low rates.
	minBurst = 10
	// evictLooks is how many of those who were quiet longest are looked at to
	// find one to forget.
	evictLooks = 4
	// busyDelay is when a caller with too many calls under way may try again.
	busyDelay = 250 * time.Millisecond
)

// Limiter keeps account of callers. It is safe for concurrent use.
type Limiter struct {
	o Options

	mu             sync.Mutex
	callers        map[string]*caller
	recent         *list.List // of *caller, who called last first
	rest           *caller    // all who found no place
	calls, streams int        // under way
}

// caller is the account of one caller.
type caller struct {
	key            string
	place          *list.Element // nil: of rest
	buckets        [len(Classes)]bucket
	calls, streams int // under way
}

// bucket holds what a caller may still ask for. It may be negative after a call
// that stands for many.
type bucket struct {
	tokens float64
	at     time.Time // when it held them; zero: it is full
}

// New returns a Limiter. The maps of o must not change any more.
func New(o Options) *Limiter {
	if o.Callers == 0 {
		o.Callers = defaultCallers
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Limiter{o: o, callers: make(map[string]*caller), recent: list.New(), rest: &caller{}}
}

// Refusal is why a call may not be made now.
type Refusal struct {
	Reason string // RATE_LIMITED, TOO_MANY_CALLS, TOO_MANY_STREAMS or OVERLOADED
	Class  Class
	Limit  float64
	// Delay is when to try again.
	Delay time.Duration
}

// Begin enters a call of n keys or domains, 1 for others, into the account of a
// caller. Unless it is refused, done must be called when the call ends.
func (l *Limiter) Begin(who authn.Identity, class Class, n int, stream bool) (done func(), refused *Refusal) {
	now := l.o.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	total, reason := &l.calls, "TOO_MANY_CALLS"
	if stream {
		total, reason = &l.streams, "TOO_MANY_STREAMS"
	}
	if l.o.Total > 0 && *total >= l.o.Total {
		return nil, &Refusal{Reason: "OVERLOADED", Class: class, Limit: float64(l.o.Total), Delay: busyDelay}
	}
	if who.Role == authn.Admin && !l.o.Admins {
		*total++
		return l.end(total, new(int)), nil
	}
	c := l.account(who, now)
	own, limit := &c.calls, l.o.Concurrent
	if stream {
		own, limit = &c.streams, l.o.Streams
	}
	if limit > 0 && *own >= limit {
		return nil, &Refusal{Reason: reason, Class: class, Limit: float64(limit), Delay: busyDelay}
	}
	if rate := l.o.Rates[class]; rate > 0 {
		if delay := c.buckets[place(class)].take(rate, max(n, 1), now); delay > 0 {
			return nil, &Refusal{Reason: "RATE_LIMITED", Class: class, Limit: rate, Delay: delay}
		}
	}
	*total++
	*own++
	return l.end(total, own), nil
}

// end is the function that takes a call out of the counts again, once.
func (l *Limiter) end(counts ...*int) func() {
	var once sync.Once
	return func() {
		once.Do(func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, n := range counts {
				*n--
			}
		})
	}
}

func place(class Class) int {
	for i, c := range Classes {
		if c == class {
			return i
		}
	}
	return 1 // as ClassOf does with what it does not know
}

// take takes n out of a bucket that fills at a rate, if it holds at least one.
// Otherwise it returns how long that takes. So a call that stands for many is
// paid for afterwards.
func (b *bucket) take(rate float64, n int, now time.Time) (delay time.Duration) {
	b.fill(rate, now)
	if b.tokens < 1 {
		return time.Duration((1-b.tokens)/rate*float64(time.Second)) + time.Millisecond
	}
	b.tokens -= float64(n)
	return 0
}

func (b *bucket) fill(rate float64, now time.Time) {
	size := max(burst*rate, minBurst)
	if b.at.IsZero() {
		b.tokens = size
	} else if since := now.Sub(b.at); since > 0 {
		b.tokens = min(size, b.tokens+since.Seconds()*rate)
	}
	b.at = now
}

// full reports whether the bucket holds all it can.
func (b *bucket) full(rate float64, now time.Time) bool {
	if b.at.IsZero() || rate <= 0 {
		return true
	}
	b.fill(rate, now)
	return b.tokens >= max(burst*rate, minBurst)
}

// account finds the account of a caller, or opens one.
func (l *Limiter) account(who authn.Identity, now time.Time) *caller {
	key := accountKey(who)
	if c := l.callers[key]; c != nil {
		l.recent.MoveToFront(c.place)
		return c
	}
	if len(l.callers) >= l.o.Callers && !l.evict(now) {
		return l.rest
	}
	c := &caller{key: key}
	c.place = l.recent.PushFront(c)
	l.callers[key] = c
	callers.Inc()
	return c
}

// evict forgets a caller of whom nothing needs to be known: one with no call
// under way and all allowances unused.
func (l *Limiter) evict(now time.Time) bool {
	for range evictLooks {
		e := l.recent.Back()
		c, _ := e.Value.(*caller)
		if c.idle(l.o.Rates, now) {
			l.recent.Remove(e)
			delete(l.callers, c.key)
			callers.Dec()
			return true
		}
		l.recent.MoveToFront(e) // others may be quiet
	}
	return false
}

func (c *caller) idle(rates map[Class]float64, now time.Time) bool {
	if c.calls > 0 || c.streams > 0 {
		return false
	}
	for i, class := range Classes {
		if !c.buckets[i].full(rates[class], now) {
			return false
		}
	}
	return true
}

// accountKey is what tells callers apart. All who act for a brand are one: their
// number must not raise what a brand may ask for.
func accountKey(who authn.Identity) string {
	if who.Role == authn.Brand {
		return string(who.Role) + "\x00" + who.Brand
	}
	return string(who.Role) + "\x00" + who.Brand + "\x00" + who.Name
}
