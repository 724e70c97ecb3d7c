package replica

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	reconcileRetry = time.Minute
	// So many records may be deleted whatever the share.
	deletionFloor = 10
)

// pass compares the view with a listing of the zone. It collects differences,
// which are applied at its end: the listing needs no memory of its own, and
// what is served stays as it was until all of it is known.
//
// A resync has the watch stopped. A periodic pass, the comparison, has it
// running, and leaves alone what the watch touched meanwhile. It is right only as
// long as both tell of one history, so it is dropped when etcd turns out to have
// gone back, and when following etcd is interrupted: a backup may be put in place
// then.
type pass struct {
	cause    Cause
	resync   bool
	direct   bool // nothing is served yet, so differences are applied at once
	mark     uint16
	pages    chan page
	complete bool
	began    time.Time
	seen     int64 // a revision that the listing is of or past, unless etcd goes back

	clusterID uint64
	rev       int64
	apexKV    *mvccpb.KeyValue
	puts      []change
	touched   map[string]struct{}
}

type change struct {
	owner string
	rec   schema.PublicRecord
}

// compare begins a periodic pass, if there is a watch for it to run beside.
func (s *session) compare(ctx context.Context) {
	if s.lost {
		s.compareSoon()
		return
	}
	s.compareIn(s.interval)
	if s.pass == nil && s.watch != nil {
		s.startPass(ctx, CausePeriodic)
	}
}

// dropComparison forgets a periodic pass that is under way.
func (s *session) dropComparison() {
	if s.pass == nil || s.pass.resync {
		return
	}
	s.cancelPass()
	s.pass = nil
	s.compareSoon()
}

func (s *session) compareSoon() { s.compareIn(min(s.interval, reconcileRetry)) }

func (s *session) startPass(ctx context.Context, cause Cause) {
	s.cancelPass()
	s.passes++
	if s.passes == 0 {
		s.passes = 1
	}
	p := &pass{
		cause: cause, resync: cause != CausePeriodic, direct: !s.Loaded(), mark: s.passes,
		pages: make(chan page), began: time.Now(), seen: s.rev, touched: make(map[string]struct{}),
	}
	if p.resync {
		s.turns++
		s.stopWatch()
		if cause != CauseHeld { // of a hold, its begin and its end are told
			s.logger.LogAttrs(ctx, slog.LevelInfo, "listing the zone", slog.String("cause", string(cause)))
		}
	}
	s.update(func(st *Status) { st.Resyncs[cause]++ })
	s.pass = p
	ctx, s.cancelPass = context.WithCancel(ctx)
	var bounds []string
	if !p.direct {
		bounds = s.view.divide(servingPageKeys, &s.pace)
		for i, owner := range bounds {
			bounds[i] = schema.RecordKey(s.zone, owner)
		}
	}
	go list(ctx, s.client, schema.ZonePrefix(s.zone), bounds, p.pages)
}

// page compares one page with the view.
func (s *session) page(ctx context.Context, pg page) error {
	p := s.pass
	if pg.err != nil {
		if p.resync {
			return pg.err
		}
		s.dropComparison() // the watch goes on
		return nil
	}
	if pg.rev != 0 {
		if p.clusterID != 0 && pg.clusterID != p.clusterID || !p.resync && pg.clusterID != s.clusterID {
			return errMixed
		}
		if !p.resync && pg.rev < p.seen {
			s.startPass(ctx, CauseRevision)
			return nil
		}
		p.clusterID, p.rev = pg.clusterID, pg.rev
	}
	if p.direct {
		s.changes.Lock()
		defer s.changes.Unlock()
	}
	for _, kv := range pg.kvs {
		s.pace.Step()
		owner, isApex, ok := s.owner(kv.Key)
		switch {
		case !ok:
			s.invalid(ctx, kv, errors.New("not a key of this version"))
			continue
		case isApex:
			p.apexKV = kv
			continue
		}
		rec, err := schema.UnmarshalPublicRecord(kv.Value)
		if err != nil {
			s.invalid(ctx, kv, err)
			s.view.mark(owner, p.mark)
			continue
		}
		switch {
		case s.view.matches(owner, rec, p.mark):
		case p.direct:
			if err := s.put(owner, rec); err != nil {
				return err
			}
		default:
			p.puts = append(p.puts, change{string(owner), rec})
		}
	}
	p.complete = !pg.more
	return nil
}

// finish applies a pass that has seen the whole zone, if it is time to.
func (s *session) finish(ctx context.Context) error {
	p := s.pass
	if p == nil || !p.complete || !p.resync && s.rev < p.rev {
		return nil // a periodic pass is judged when the watch is as far as it is
	}
	s.pass = nil
	s.cancelPass()
	if p.resync {
		s.turns++
	} else {
		p.puts = untouched(p.puts, p.touched)
	}
	gone := p.apexKV == nil && s.apexKV != nil && (p.resync || s.apexKV.ModRevision <= p.rev)
	deletions := s.view.countUnmarked(p.mark, &s.pace)
	if gone {
		deletions = s.view.len()
	}
	if !p.direct && s.tooMany(deletions) {
		if h := s.holdFor(p); !h.accepted(p.apexKV) {
			s.keep(ctx, h, deletions)
			return nil
		}
	}
	s.letGo(ctx, deletions)
	s.changes.Lock()
	defer s.changes.Unlock()
	if p.resync || len(p.puts)+deletions > 0 {
		// What was listed need not follow from what the serials stood for.
		s.journal.stop()
		defer s.journal.clear()
	}
	if err := s.applyPass(ctx, p, gone); err != nil {
		return err
	}
	if !p.resync {
		if n := len(p.puts) + deletions; n > 0 {
			s.update(func(st *Status) { st.Repairs += uint64(n) }) //nolint:gosec // above 0
			s.logger.LogAttrs(ctx, slog.LevelError, "records differed from etcd although the watch was on, repaired", slog.Int("records", n))
		}
		s.commit(true)
		return nil
	}
	s.clusterID, s.rev, s.listed = p.clusterID, p.rev, true
	s.update(func(st *Status) { st.Revision, st.ClusterID = p.rev, p.clusterID })
	s.upToDate(p.began)
	s.commit(true)
	return s.startWatch(ctx)
}

// applyPass makes the view what the listing said: first what is new, then what
// is gone, then the zone object with its serial.
func (s *session) applyPass(ctx context.Context, p *pass, gone bool) error {
	for _, c := range p.puts {
		s.pace.Step()
		if err := s.put([]byte(c.owner), c.rec); err != nil {
			return err
		}
	}
	if gone {
		s.apex.Store(nil) // before its names go, which must not be denied
		s.apexKV = nil
	}
	for i := range shardCount {
		s.pace.Step()
		for _, name := range s.view.unmarked(i, p.mark) {
			s.pace.Step()
			s.remove([]byte(name))
		}
	}
	if p.apexKV != nil && (p.resync || s.apexKV == nil || p.apexKV.ModRevision > s.apexKV.ModRevision) {
		s.setApex(ctx, p.apexKV)
	}
	return nil
}

// tooMany reports whether so many deletions need an operator's word.
func (s *session) tooMany(deletions int) bool {
	return deletions > deletionFloor && float64(deletions) > s.settings.Load().maxDeletion*float64(s.view.len())
}

// holdFor returns the hold that p goes on with, or the one it begins.
func (s *session) holdFor(p *pass) *hold {
	if h := s.hold; h != nil && h.rev != 0 && h.rev <= p.rev && h.clusterID == p.clusterID {
		return h
	}
	return &hold{rev: p.rev, clusterID: p.clusterID}
}

// accepted reports whether an operator has accepted the deletions of h.
func (h *hold) accepted(apexKV *mvccpb.KeyValue) bool {
	if apexKV == nil {
		return false
	}
	apex, err := schema.UnmarshalApex(apexKV.Value)
	return err == nil && h.rev != 0 && apex.AcceptDeletionsRevision >= h.rev
}

// keep leaves everything as it is, and sets the time for another look.
func (s *session) keep(ctx context.Context, h *hold, deletions int) {
	if s.hold != h {
		s.logger.LogAttrs(ctx, slog.LevelError, "resync is held, serving the old records: it would delete too many; to confirm, set accept_deletions_revision of the zone",
			slog.Int("deletions", deletions), slog.Int("records", s.view.len()), slog.Int64("revision", h.rev))
	}
	h.delay = min(max(2*h.delay, heldRetryMin), heldRetryMax)
	h.next = time.Now().Add(jitter(h.delay))
	s.hold = h
	s.stopWatch()
	s.update(func(st *Status) { st.HeldRevision, st.HeldRecords = h.rev, deletions })
	s.state(Held)
	s.commit(true)
}

// letGo ends a hold.
func (s *session) letGo(ctx context.Context, deletions int) {
	if s.hold == nil {
		return
	}
	s.hold = nil
	s.logger.LogAttrs(ctx, slog.LevelWarn, "resync is no longer held", slog.Int("deletions", deletions))
	s.update(func(st *Status) { st.HeldRevision, st.HeldRecords = 0, 0 })
}

func untouched(puts []change, touched map[string]struct{}) []change {
	kept := puts[:0]
	for _, c := range puts {
		if _, ok := touched[c.owner]; !ok {
			kept = append(kept, c)
		}
	}
	return kept
}
