// Package agent keeps the files of a program that signs mail in step with dkimd:
// tables that say which keys sign, and a file for each key.
//
// # What holds at any moment
//
// A table never names a key whose file is not there whole, whatever operation was
// the last one before a crash. Key files are written first; then the manifest, which
// says after a restart what tables may name; then tables that say where keys are,
// which name all keys that were or will be used; then those that say which keys sign.
// Then the signer is reloaded. What is no longer used goes ten minutes later, in the
// opposite order.
//
// dkimd is told that a key is held when its file is there and the signer was reloaded
// since, and that a key may have signed until ten minutes after no table said so.
package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/signer"
)

// Grace is how long a key's file stays, and the key is taken to sign, after no table
// says so any more: for messages under way, and for signers that look at their
// tables now and then.
const Grace = 10 * time.Minute

// Source is who says what signs; *signer.Client is one, with Watch and Register and
// with Agent.Holds as its Holds.
type Source interface {
	Everything() (signer.Everything, error)
	Confirmed() time.Time
	PrivateKeys(ctx context.Context, names ...string) ([]signer.PrivateKey, error)
	Held(domains ...string)
}

// Options says how to make an Agent. Format and Dir are required.
type Options struct {
	Format Format
	// Dir is for the signer's files, and for nothing else.
	Dir string
	// Owner is the id of the user that they belong to, -1: that of the process. Then
	// Group only may enter the directories, and else read the files; -1: none may.
	Owner, Group int
	// Reload makes the signer read its tables again. Nil: it does so by itself.
	Reload func(context.Context) error
	// CacheDir and CacheKeyFile are for the cache; "" is no cache.
	CacheDir, CacheKeyFile string
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Logger is told of each change. Default: nobody.
	Logger *slog.Logger

	fault func(operation, path string) error // of a test
	many  int                                // see folder, of a test; 0: manyFiles
}

// Agent keeps files in step. Run may be called once; Holds and Stats are safe for
// concurrent use.
type Agent struct {
	o      Options
	folder *folder
	cache  *cache // nil if there is none

	// Only Run uses these.
	entries   []Entry           // of the tables
	refs      []Ref             // that the tables may name
	tables    map[string]table  // as they are in their files
	reload    bool              // the signer has not read them yet
	troubles  map[string]string // what was logged of each kind, and did not pass since
	ended     map[Ref]time.Time // of refs, since when they are of no use any more
	known     cached            // what dkimd last said
	behind    bool              // the cache is not what dkimd last said
	storeTime time.Time         // when it may be written again
	minHold   time.Duration     // the least of entries, very long without any
	until     time.Time         // when the first of entries ends that has a time of its own; zero: none has
	offline   *cached           // what is gone by while dkimd never answered
	untold    map[string]bool   // names of domains of which dkimd has to be told
	gaveUp    bool              // there is no use in asking the cache
	swept     bool              // key files of nobody were removed
	next      time.Time         // when to look again at the latest, zero: no change is due
	wait      time.Duration     // after something failed
	lastNote  time.Time         // when keys in transition were reported

	mu      sync.Mutex
	settled int                        // counts what the signer has read
	keys    map[string]*key            // that are in files, by name
	owned   map[string]map[string]*key // the same by the name of their domain
	stats   Stats
}

// key is a key that is in a file.
type key struct {
	held  bool      // the signer was reloaded since it is there
	signs bool      // a table says so, or did when the signer was last reloaded
	left  time.Time // when signs ended; zero: it never began

	settled int // the last time that a table said so
}

// table is what a file was last seen to hold.
type table struct {
	size int
	sum  [sha256.Size]byte
}

func tableOf(data []byte) table { return table{len(data), sha256.Sum256(data)} }

// Stats is how things stand.
type Stats struct {
	// Domains are those in the tables, Keys those in files.
	Domains, Keys int
	// Synced says that files are as dkimd last said, SyncTime when they last were.
	Synced   bool
	SyncTime time.Time
	// Confirmed is when what dkimd said was last known to be right.
	Confirmed time.Time
	// Reloads, and those that failed; Failures to bring files in step.
	Reloads, ReloadFailures, Failures uint64
	// Expired are domains that are left out since dkimd is away for too long.
	Expired int
}

// dirPattern is what tables can hold without quotes.
var dirPattern = regexp.MustCompile(`^[A-Za-z0-9/._+-]+$`)

// New takes the directories into use. It returns ErrStrange if they hold files of
// others.
func New(o Options) (*Agent, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{o: o, tables: make(map[string]table), troubles: make(map[string]string), ended: make(map[Ref]time.Time), untold: make(map[string]bool), keys: make(map[string]*key), owned: make(map[string]map[string]*key)}
	var err error
	if a.folder, err = openFolder(o.Dir, o.Format.Name, o.Format.tables, o.Owner, o.Group, o.fault); err != nil {
		return nil, err
	}
	if !dirPattern.MatchString(a.folder.dir) {
		return nil, errors.Join(fmt.Errorf("%q cannot stand in tables: use letters, digits and ._+- in the name of the directory", a.folder.dir), a.Close())
	}
	if o.CacheDir != "" {
		if a.cache, err = openCache(o.CacheDir, o.CacheKeyFile, o.fault); err != nil {
			return nil, errors.Join(fmt.Errorf("cache: %w", err), a.Close())
		}
	}
	if o.many > 0 {
		a.folder.many = o.many
		if a.cache != nil {
			a.cache.folder.many = o.many
		}
	}
	if err := a.adopt(); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// Close gives the directories up, and leaves the files as they are.
func (a *Agent) Close() error { return errors.Join(a.folder.close(), a.cache.close()) }

// Holds is what signer.Options.Holds has to be.
func (a *Agent) Holds(domain string) map[string]time.Time {
	now := a.o.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	held := make(map[string]time.Time)
	for name, k := range a.owned[domain] {
		if k.held {
			held[name] = k.lastUse(now)
		}
	}
	return held
}

// lastUse is when the signer may have signed with it at the latest.
func (k *key) lastUse(now time.Time) time.Time {
	switch end := k.left.Add(Grace); {
	case k.signs:
		return now
	case k.left.IsZero():
		return time.Time{}
	case end.Before(now):
		return end
	default:
		return now
	}
}

// passing reports whether what dkimd was told of the key's use is still changing.
func (k *key) passing(now time.Time) bool {
	return !k.left.IsZero() && !k.signs && now.Sub(k.left) < Grace+time.Minute
}

// Stats tells how things stand.
func (a *Agent) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.stats
	s.Keys = len(a.keys)
	return s
}

// Check reports an error while the files are not what dkimd last said.
func (a *Agent) Check(context.Context) error {
	if !a.Stats().Synced {
		return errors.New("the files are not in step, see the log")
	}
	return nil
}

const (
	// look is how often the agent looks whether time alone has changed something.
	look = 250 * time.Millisecond
	// minRetry and maxRetry are how long it waits after something failed.
	minRetry, maxRetry = time.Second, 30 * time.Second
	// maxRest is how long it leaves changes alone after others.
	maxRest = time.Second
	// patience is how long it waits for dkimd before it goes by the cache.
	patience = 3 * time.Second
	// noteInterval is how often dkimd is told of keys that left the tables.
	noteInterval = 30 * time.Second
)

// Run keeps the files in step with source until ctx ends.
func (a *Agent) Run(ctx context.Context, source Source) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	// What was put off is written at the end.
	defer func() {
		a.storeTime = time.Time{}
		a.store(context.WithoutCancel(ctx), a.o.Now())
	}()
	begin := a.o.Now()
	if a.cache != nil && a.cache.problem != nil && !errors.Is(a.cache.problem, errNoCache) {
		a.trouble(ctx, "cache", "the cache cannot be used, and is made anew", a.cache.problem)
	}
	for {
		woken := a.o.Now()
		e, err := source.Everything()
		switch {
		case err == nil:
			a.offline = nil
			a.step(ctx, source, want(e))
		case a.offline == nil && a.o.Now().Sub(begin) >= patience:
			a.goOffline(ctx)
		}
		if a.offline != nil {
			a.step(ctx, nil, *a.offline)
		}
		// After a change the next ones are waited for as long as it took: those that
		// come together are made together, and the signer is not reloaded all the time.
		rest := time.NewTimer(min(maxRest, a.o.Now().Sub(woken)))
		var changed <-chan struct{}
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return
			case <-rest.C:
				changed = e.Changed
			case <-changed:
				again = true
			case <-tick.C:
				again = a.due(ctx, source, begin)
			}
		}
	}
}

// due looks after what time alone brings, and reports whether the files have to be
// looked at.
func (a *Agent) due(ctx context.Context, source Source, begin time.Time) bool {
	now := a.o.Now()
	confirmed := source.Confirmed()
	a.mu.Lock()
	if confirmed.After(a.stats.Confirmed) {
		a.stats.Confirmed = confirmed
	}
	a.mu.Unlock()
	a.note(source, now)
	a.store(ctx, now)
	a.confirm(ctx, confirmed, now)
	if confirmed.IsZero() && a.offline == nil {
		return now.Sub(begin) >= patience && !a.gaveUp
	}
	return !a.next.IsZero() && !now.Before(a.next) || a.expires(confirmed, now)
}

// expires reports whether an entry of the tables must not be used any more.
func (a *Agent) expires(confirmed, now time.Time) bool {
	if a.offline != nil {
		confirmed = a.offline.Confirmed
	}
	return !confirmed.IsZero() && len(a.entries) > 0 && (!now.Before(confirmed.Add(a.minHold)) || !a.until.IsZero() && !now.Before(a.until))
}

// note tells dkimd of keys that are leaving, now and then.
func (a *Agent) note(source Source, now time.Time) {
	if now.Sub(a.lastNote) < noteInterval {
		return
	}
	a.lastNote = now
	owners := make(map[string]bool)
	a.mu.Lock()
	for name, k := range a.keys {
		if k.passing(now) {
			owners[owner(name)] = true
		}
	}
	a.mu.Unlock()
	tell(source, owners)
}

// trouble logs what is wrong, once for each time that it begins.
func (a *Agent) trouble(ctx context.Context, kind, message string, err error) {
	text := message
	if err != nil {
		text = err.Error()
	}
	if a.troubles[kind] == text || ctx.Err() != nil {
		return
	}
	a.troubles[kind] = text
	var attrs []slog.Attr
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	a.o.Logger.LogAttrs(ctx, slog.LevelError, message, attrs...) //nolint:sloglint // it is constant where trouble is called
}

// over forgets a trouble, so that it is logged when it comes again.
func (a *Agent) over(kind string) { delete(a.troubles, kind) }

// want is what everything comes to.
func want(e signer.Everything) cached {
	s := cached{Confirmed: e.Confirmed, Default: entry(e.Default)}
	s.Entries = make([]Entry, 0, len(e.Domains))
	for _, d := range e.Domains {
		if len(d.Keys) > 0 {
			s.Entries = append(s.Entries, entry(d))
		}
	}
	s.sort()
	s.Standby = make([]Ref, 0, len(e.Standby))
	for _, k := range e.Standby {
		s.Standby = append(s.Standby, newRef(k))
	}
	return s
}

func entry(d signer.SigningDomain) Entry {
	e := Entry{Sender: d.Domain, Hold: d.Hold}
	for _, k := range d.Keys {
		e.Refs = append(e.Refs, newRef(k))
	}
	if len(e.Refs) < 2 {
		return e
	}
	slices.SortFunc(e.Refs, func(a, b Ref) int {
		if a.Algorithm != b.Algorithm { // rsa-… before ed25519-…
			if a.Algorithm > b.Algorithm {
				return -1
			}
			return 1
		}
		return compareRefs(a, b)
	})
	return e
}
