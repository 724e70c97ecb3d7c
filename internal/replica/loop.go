package replica

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	heartbeatInterval = 2 * time.Second
	heartbeatTimeout  = 5 * time.Second
	heartbeatAgain    = time.Second     // without an answer, another member is asked as well
	heartbeatAsked    = 3               // so many, as a cluster has
	hangTimeout       = 5 * time.Second // a watch that brings nothing of what etcd has, or does not begin
	backoffMin        = 200 * time.Millisecond
	backoffMax        = 10 * time.Second
	heldRetryMin      = 5 * time.Second
	heldRetryMax      = 5 * time.Minute

	// Write-to-served times are from 0 to this, whatever clocks say.
	maxServed = 24 * time.Hour
)

// What ends a session; a new one follows.
var (
	errWatchClosed = errors.New("etcd closed the watch")
	errWatchHung   = errors.New("the watch brings nothing although etcd has changes")
	errWatchLate   = errors.New("etcd does not begin the watch")
	errRenewed     = errors.New("new settings")
	errMixed       = errors.New("the endpoints belong to several clusters")
)

// loop follows etcd. One goroutine owns it.
type loop struct {
	*Replica
	persister *persister // nil without a file

	apexKey      string
	recordPrefix string

	clusterID uint64
	rev       int64 // all changes of etcd up to here are in the view
	apexKV    *mvccpb.KeyValue
	listed    bool // the view is a whole zone, if only an old one
	hold      *hold
	passes    uint16 // the mark of the latest pass
	turns     int    // how often a resync began or ended
	warned    map[string]bool
	lost      bool      // the failure was logged
	due       time.Time // of the next periodic pass
	hangs     int       // watches that hung one after the other
	hungAt    int64     // the revision they brought nothing after
	pace      Pace
}

// hold is a resync that waits for an operator.
type hold struct {
	rev       int64
	clusterID uint64
	delay     time.Duration
	next      time.Time
}

func newLoop(r *Replica) *loop {
	return &loop{
		Replica: r, apexKey: schema.ApexKey(r.zone), recordPrefix: schema.RecordPrefix(r.zone),
		warned: make(map[string]bool),
	}
}

// restore takes over what the file says, whose zone object decodes.
func (l *loop) restore(m *meta) {
	l.clusterID, l.rev, l.listed = m.ClusterID, m.Revision, true
	if apex, err := schema.UnmarshalApex(m.Apex); err == nil {
		l.apexKV = &mvccpb.KeyValue{Value: m.Apex, ModRevision: m.ApexRev, Version: m.ApexVersion}
		l.apex.Store(&Apex{Apex: apex, Revision: m.ApexRev, Serial: apex.Serial(m.ApexRev)})
	}
	if m.Held {
		l.hold = &hold{} // its revision is that of the next listing
	}
	l.confirm(m.Confirmed)
	l.update(func(s *Status) {
		s.State, s.Revision, s.ClusterID = Disconnected, l.rev, l.clusterID
	})
}

// run follows etcd until ctx ends.
func (l *loop) run(ctx context.Context) {
	delay := backoffMin
	for {
		began := time.Now()
		err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 2*heartbeatInterval {
			delay = backoffMin
		}
		if errors.Is(err, errRenewed) {
			delay = backoffMin
			continue
		}
		if errors.Is(err, errWatchHung) {
			if l.hungAt != l.rev {
				l.hangs, l.hungAt = 0, l.rev
			}
			l.hangs++
		}
		l.disconnected(ctx, err)
		t := time.NewTimer(jitter(delay))
		select {
		case <-ctx.Done():
		case <-l.renewed:
		case <-t.C:
		}
		t.Stop()
		delay = min(2*delay, backoffMax)
	}
}

// session is what happens between two failures.
type session struct {
	*loop
	client    Client
	interval  time.Duration
	reconcile *time.Timer

	watch       clientv3.WatchChan
	cancelWatch context.CancelFunc
	progress    time.Time // of the watch

	pass       *pass
	cancelPass context.CancelFunc

	behind head // the first answer of etcd that has a change which the view has not
}

// session connects, lists if it must, and watches. It returns when it must
// begin anew.
func (l *loop) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	set := l.settings.Load()
	s := &session{loop: l, client: set.client, interval: set.reconcile, cancelWatch: func() {}, cancelPass: func() {}}
	defer func() { s.cancelWatch(); s.cancelPass() }()

	h := s.head(ctx, s.question())
	if h.err != nil {
		return h.err
	}
	switch cause := s.resyncCause(h); {
	case cause != "":
		s.startPass(ctx, cause)
	default:
		if err := s.startWatch(ctx); err != nil {
			return err
		}
	}
	if err := s.beat(h); err != nil {
		return err
	}

	heads := make(chan head, 1)
	beat := time.NewTimer(jitter(heartbeatInterval))
	defer beat.Stop()
	if latest := time.Now().Add(jitter(s.interval)); l.due.IsZero() || latest.Before(l.due) {
		l.due = latest
	}
	s.reconcile = time.NewTimer(time.Until(l.due))
	defer s.reconcile.Stop()
	defer s.dropComparison()
	for {
		var pages chan page
		if s.pass != nil && !s.pass.complete {
			pages = s.pass.pages
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.renewed:
			return errRenewed
		case resp, ok := <-s.watch:
			err = s.events(ctx, resp, ok)
		case p := <-pages:
			err = s.page(ctx, p)
		case <-beat.C:
			q := s.question()
			go func() { heads <- s.head(ctx, q) }()
			continue
		case h := <-heads:
			beat.Reset(jitter(heartbeatInterval))
			err = s.heartbeat(ctx, h)
		case <-s.reconcile.C:
			s.compare(ctx)
			continue
		}
		if err == nil {
			err = s.finish(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// compareIn sets the time of the next periodic pass, which sessions that end
// before do not put off.
func (s *session) compareIn(d time.Duration) {
	d = jitter(d)
	s.due = time.Now().Add(d)
	s.reconcile.Reset(d)
}

// question is what the answer of etcd to it is judged by.
type question struct {
	seen  int64 // a revision that etcd is at or past
	turns int   // of the loop: the answer says nothing about a zone that was listed since
}

func (s *session) question() question {
	q := question{seen: s.rev, turns: s.turns}
	if s.pass != nil {
		q.seen = max(q.seen, s.pass.rev)
	}
	return q
}

// head is what the zone object says about where etcd is.
type head struct {
	question
	at        time.Time // when it was asked for
	clusterID uint64
	rev       int64
	kv        *mvccpb.KeyValue // nil: there is no zone
	err       error
}

// head asks etcd. A member that is cut off from the others, or stopped, is no
// reason to believe that etcd is gone: the next one is asked as well.
func (s *session) head(ctx context.Context, q question) head {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), heartbeatTimeout)
	defer cancel()
	answers := make(chan head, heartbeatAsked)
	ask := func() {
		at := time.Now()
		resp, err := s.client.Get(ctx, s.apexKey)
		if err != nil {
			answers <- head{question: q, err: err}
			return
		}
		h := head{question: q, at: at, clusterID: resp.Header.GetClusterId(), rev: resp.Header.GetRevision()}
		if len(resp.Kvs) > 0 {
			h.kv = resp.Kvs[0]
		}
		answers <- h
	}
	go ask()
	again := time.NewTicker(heartbeatAgain)
	defer again.Stop()
	for asked := 1; ; {
		select {
		case h := <-answers:
			return h
		case <-again.C:
			if asked < heartbeatAsked {
				asked++
				go ask()
			}
		}
	}
}

// resyncCause is why the zone must be listed, or empty if a watch will do.
func (l *loop) resyncCause(h head) Cause {
	switch {
	case !l.listed:
		return CauseStart
	case h.clusterID != l.clusterID:
		return CauseCluster
	case h.rev < h.seen: // not l.rev: the watch may have been faster than the answer
		return CauseRevision
	case l.hold != nil:
		return CauseHeld
	case l.hangs > 1 && l.hungAt == l.rev:
		return CauseHung
	case l.otherHistory(h):
		return CauseHistory
	}
	return ""
}

// otherHistory reports whether etcd, which is where the view is or past it, had
// another zone object when it was there.
func (l *loop) otherHistory(h head) bool {
	if h.kv == nil || l.apexKV == nil || h.rev < l.rev || h.kv.ModRevision > l.rev {
		return false
	}
	counted := h.kv.Version != 0 && l.apexKV.Version != 0
	return h.kv.ModRevision != l.apexKV.ModRevision || counted && h.kv.Version != l.apexKV.Version
}

// follows reports whether the zone object in events, if it is there, is the next
// one after ours. etcd counts how often a key was written, and each change of a
// zone writes its object.
func (l *loop) follows(events []*clientv3.Event) bool {
	for _, ev := range events {
		if string(ev.Kv.Key) == l.apexKey {
			return l.apexKV == nil || l.apexKV.Version == 0 || ev.Kv.Version == l.apexKV.Version+1
		}
	}
	return true
}

// heartbeat judges what a head says about the watch.
func (s *session) heartbeat(ctx context.Context, h head) error {
	if h.turns != s.turns {
		return nil
	}
	if h.err != nil {
		// The watch may still be alive, or come back by itself.
		s.disconnected(ctx, h.err)
		s.dropComparison()
		return nil
	}
	if s.pass != nil && s.pass.resync {
		return nil // the listing has its own deadlines, and knows more when it is done
	}
	if s.hold != nil {
		s.state(Held)
		if time.Now().After(s.hold.next) || s.hold.accepted(h.kv) {
			s.startPass(ctx, CauseHeld)
		}
		return nil
	}
	if cause := s.resyncCause(h); cause != "" {
		s.startPass(ctx, cause)
		return nil
	}
	return s.beat(h)
}

// beat compares the view with etcd's latest change of the zone.
func (s *session) beat(h head) error {
	if s.watch == nil {
		return nil
	}
	missing := h.kv != nil && h.kv.ModRevision > s.rev ||
		h.kv == nil && s.apexKV != nil && s.apexKV.ModRevision <= h.rev
	if !missing {
		// Every change of a zone touches its object, so there was none up to
		// the revision of the answer.
		s.advance(h.rev)
		s.upToDate(h.at)
		s.commit(false)
		return nil
	}
	if s.behind.at.IsZero() {
		s.behind = h
	}
	if time.Since(s.behind.at) > hangTimeout && time.Since(s.progress) > hangTimeout {
		return errWatchHung
	}
	return nil
}

// upToDate notes that the view had all that etcd had at t.
func (s *session) upToDate(t time.Time) {
	s.behind = head{}
	s.confirm(t)
	if s.apexKV == nil {
		s.state(Missing)
	} else {
		s.state(Synced)
	}
}

// startWatch returns when etcd has begun the watch.
func (s *session) startWatch(ctx context.Context) error {
	watchCtx, cancel := context.WithCancel(ctx)
	s.cancelWatch = cancel
	watch := s.client.Watch
	if c, ok := s.client.(*dialled); ok {
		// A watcher of its own has a gRPC stream of its own. On a shared one that
		// hangs, new watches would join the old ones of other zones.
		w := clientv3.NewWatcher(c.Client)
		s.cancelWatch = func() {
			cancel()
			_ = w.Close() // the context tells
		}
		watch = w.Watch
	}
	late := time.AfterFunc(hangTimeout, cancel)
	// Without a leader a cut-off member would keep the watch open for ever.
	s.watch = watch(clientv3.WithRequireLeader(watchCtx), schema.ZonePrefix(s.zone),
		clientv3.WithPrefix(), clientv3.WithRev(s.rev+1), clientv3.WithCreatedNotify())
	resp, ok := <-s.watch
	if !late.Stop() {
		return errWatchLate
	}
	s.progress, s.behind = time.Now(), head{}
	if ok && resp.Created {
		return nil
	}
	return s.events(ctx, resp, ok)
}

func (s *session) stopWatch() {
	s.cancelWatch()
	s.cancelWatch = func() {}
	s.watch = nil
}

// events applies what the watch brought, one revision at a time.
func (s *session) events(ctx context.Context, resp clientv3.WatchResponse, ok bool) error {
	if !ok {
		return errWatchClosed
	}
	if err := resp.Err(); err != nil {
		if errors.Is(err, rpctypes.ErrCompacted) {
			s.startPass(ctx, CauseCompacted)
			return nil
		}
		return err
	}
	if id := resp.Header.GetClusterId(); id != s.clusterID {
		s.startPass(ctx, CauseCluster)
		return nil
	}
	s.progress = time.Now()
	events := resp.Events
	for len(events) > 0 {
		rev := events[0].Kv.ModRevision
		n := 1
		for n < len(events) && events[n].Kv.ModRevision == rev {
			n++
		}
		if rev > s.rev {
			if s.deletesApex(events[:n]) || s.tooMany(s.deletions(events[:n])) {
				// Not believed without a guard, and not half.
				s.startPass(ctx, CauseDeleted)
				break
			}
			if !s.follows(events[:n]) {
				s.startPass(ctx, CauseHistory)
				break
			}
			if err := s.revision(ctx, rev, events[:n]); err != nil {
				return err
			}
		}
		events = events[n:]
	}
	if s.watch != nil && s.behind.kv != nil && s.rev >= s.behind.kv.ModRevision {
		s.upToDate(s.behind.at)
	}
	s.commit(true)
	return nil
}

func (l *loop) deletesApex(events []*clientv3.Event) bool {
	for _, ev := range events {
		if ev.Type == clientv3.EventTypeDelete && string(ev.Kv.Key) == l.apexKey {
			return true
		}
	}
	return false
}

// deletions is how many records the events would delete.
func (l *loop) deletions(events []*clientv3.Event) int {
	n := 0
	for _, ev := range events {
		if ev.Type == clientv3.EventTypeDelete {
			n++
		}
	}
	return n
}

// revision applies all changes of one revision.
func (s *session) revision(ctx context.Context, rev int64, events []*clientv3.Event) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	served := s.apex.Load()
	var apex *mvccpb.KeyValue
	var written []time.Time
	for _, ev := range events {
		owner, isApex, ok := s.owner(ev.Kv.Key)
		switch {
		case !ok:
			s.invalid(ctx, ev.Kv, errors.New("not a key of this version"))
			continue
		case isApex:
			apex = ev.Kv
			continue
		}
		if s.pass != nil {
			s.pass.touched[string(owner)] = struct{}{}
		}
		if ev.Type == clientv3.EventTypeDelete {
			s.remove(owner)
			continue
		}
		rec, err := schema.UnmarshalPublicRecord(ev.Kv.Value)
		if err != nil {
			s.invalid(ctx, ev.Kv, err) // the last good one stays
			s.view.mark(owner, s.passes)
			continue
		}
		if err := s.put(owner, rec); err != nil {
			return err
		}
		written = append(written, rec.UpdateTime)
	}
	if apex != nil {
		s.setApex(ctx, apex)
	}
	s.journal.commit(s.view, served, s.apex.Load())
	s.advance(rev)
	if tell := s.settings.Load().served; tell != nil {
		now := time.Now()
		for _, t := range written {
			if !t.IsZero() {
				tell(min(max(0, now.Sub(t)), maxServed))
			}
		}
	}
	return nil
}

// put stores a record with the mark of the pass that may be on its way, which
// must not take it for one that etcd lacks.
func (l *loop) put(owner []byte, rec schema.PublicRecord) error {
	l.before(owner)
	if err := l.view.put(owner, rec, l.passes); err != nil {
		return err
	}
	l.persister.note(owner)
	return nil
}

// remove deletes the record at owner.
func (l *loop) remove(owner []byte) {
	l.before(owner)
	l.view.remove(owner)
	l.persister.note(owner)
}

// before keeps what stands at owner for those who still want it. changes is
// locked.
func (l *loop) before(owner []byte) {
	if len(l.snapshots) == 0 && (!l.Loaded() || l.journal.tooMuch) {
		return
	}
	var old *schema.PublicRecord
	if rec, result := l.view.lookup(owner, nil); result == Found {
		old = &rec
	}
	for s := range l.snapshots {
		s.keep(owner, old)
	}
	l.journal.before(owner, old)
}

// setApex serves the zone object in kv. One that does not decode changes
// nothing but the serial.
func (l *loop) setApex(ctx context.Context, kv *mvccpb.KeyValue) {
	apex, err := schema.UnmarshalApex(kv.Value)
	if err != nil {
		l.invalid(ctx, kv, err)
		old := l.apex.Load()
		if old == nil {
			return
		}
		apex = old.Apex
		kv = &mvccpb.KeyValue{Value: l.apexKV.Value, ModRevision: kv.ModRevision, Version: kv.Version}
	}
	l.apexKV = kv
	l.apex.Store(&Apex{Apex: apex, Revision: kv.ModRevision, Serial: apex.Serial(kv.ModRevision)})
}

// owner takes a key apart without allocating; the owner name aliases it.
func (l *loop) owner(key []byte) (owner []byte, apex, ok bool) {
	if string(key) == l.apexKey {
		return nil, true, true
	}
	n := len(l.recordPrefix)
	if len(key) <= n || string(key[:n]) != l.recordPrefix {
		return nil, false, false
	}
	owner = key[n:]
	if len(owner) > maxOwner {
		return nil, false, false
	}
	for i, c := range owner {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '.' && i > 0 && owner[i-1] != '.' && i < len(owner)-1:
		default:
			return nil, false, false
		}
	}
	return owner, false, true
}

// invalid counts a value that cannot be served, and logs each key once.
func (l *loop) invalid(ctx context.Context, kv *mvccpb.KeyValue, err error) {
	l.update(func(s *Status) { s.Invalid++ })
	const enough = 100
	key := string(kv.Key)
	if l.warned[key] || len(l.warned) >= enough {
		return
	}
	l.warned[key] = true
	l.logger.LogAttrs(ctx, slog.LevelError, "value in etcd cannot be served, keeping the one before",
		slog.String("key", key), slog.Int64("revision", kv.ModRevision), slog.Any("error", err))
}

// advance makes rev the revision that is served.
func (l *loop) advance(rev int64) {
	if rev <= l.rev {
		return
	}
	l.rev = rev
	l.update(func(s *Status) { s.Revision = rev })
}

// commit lets the file follow.
func (l *loop) commit(urgent bool) {
	if !l.listed {
		return
	}
	l.Replica.mu.Lock()
	since := l.since
	l.Replica.mu.Unlock()
	m := meta{
		Format: fileFormat, Zone: l.zone, ClusterID: l.clusterID, Revision: l.rev,
		Held: l.hold != nil, Confirmed: since,
	}
	if l.apexKV != nil {
		m.Apex, m.ApexRev, m.ApexVersion = l.apexKV.Value, l.apexKV.ModRevision, l.apexKV.Version
	}
	l.persister.commit(m, urgent)
}

func (l *loop) state(state State) {
	l.update(func(s *Status) { s.State = state })
	if l.lost {
		l.lost = false
		l.logger.LogAttrs(context.Background(), slog.LevelInfo, "following etcd again", slog.Int64("revision", l.rev))
	}
}

// disconnected notes a failure, and logs the first of a row.
func (l *loop) disconnected(ctx context.Context, err error) {
	l.update(func(s *Status) {
		if s.State == Synced || s.State == Missing {
			s.State = Disconnected
		}
	})
	if !l.lost {
		l.lost = true
		l.logger.LogAttrs(ctx, slog.LevelWarn, "following etcd is interrupted, serving what there is", slog.Any("error", err))
	}
}

// jitter spreads d by a fifth in both directions, so that nodes that started
// together do not ask together.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}
