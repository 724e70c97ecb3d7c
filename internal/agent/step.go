package agent

import (
	"cmp"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/dkimzone/dkimzone/signer"
)

const pemType = "PRIVATE KEY"

// adopt takes over what an earlier process left in the directory.
func (a *Agent) adopt() error {
	now := a.o.Now()
	for r := range a.folder.man.refs {
		if a.keys[r.Key] == nil {
			if _, err := a.readKey(r.Key); err != nil {
				continue // it is fetched anew if it is still of use
			}
			if err := a.folder.permit(r.path(a.folder.dir), 0o600); err != nil {
				return err
			}
			a.add(r.Key, &key{left: now}) // until then it may have signed
		}
		a.ended[r] = now
		a.refs = append(a.refs, r)
	}
	for _, name := range a.o.Format.tables {
		data, err := os.ReadFile(a.folder.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := a.folder.permit(a.folder.path(name), 0o600); err != nil {
			return err
		}
		a.tables[name] = tableOf(data)
		a.reload = true // nobody knows whether the signer was reloaded since
	}
	return nil
}

func (a *Agent) readKey(name string) ([]byte, error) {
	data, err := os.ReadFile(Ref{Key: name}.path(a.folder.dir))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	clear(data)
	if block == nil || block.Type != pemType {
		return nil, errors.New("it holds no key")
	}
	return block.Bytes, nil
}

func (a *Agent) add(name string, k *key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[name] = k
	if a.owned[owner(name)] == nil {
		a.owned[owner(name)] = make(map[string]*key)
	}
	a.owned[owner(name)][name] = k
}

func (a *Agent) drop(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.keys, name)
	delete(a.owned[owner(name)], name)
	if len(a.owned[owner(name)]) == 0 {
		delete(a.owned, owner(name))
	}
}

// step brings the files to what s says, as far as it can. source is nil when s is
// from the cache.
func (a *Agent) step(ctx context.Context, source Source, s cached) {
	a.next = time.Time{}
	complete, err := a.apply(ctx, source, s)
	if ctx.Err() != nil {
		return
	}
	now := a.o.Now()
	a.mu.Lock()
	a.stats.Domains, a.stats.Synced = len(a.entries), err == nil && complete
	if a.stats.Synced {
		a.stats.SyncTime = now
	}
	if err != nil {
		a.stats.Failures++
	}
	a.mu.Unlock()
	if err != nil {
		a.trouble(ctx, "files", "the files are not in step", err)
	} else {
		a.over("files")
	}
	if err != nil || !complete {
		a.wait = min(maxRetry, max(minRetry, 2*a.wait))
		a.next = now.Add(a.wait)
		return
	}
	a.wait = 0
	for _, at := range a.ended {
		if due := at.Add(Grace); a.next.IsZero() || due.Before(a.next) {
			a.next = due
		}
	}
}

// apply is step; complete says that no key is missing.
func (a *Agent) apply(ctx context.Context, source Source, s cached) (complete bool, err error) {
	now := a.o.Now()
	wanted, expired := a.valid(ctx, s, now)
	refs := make(map[Ref]bool, len(a.refs))
	for _, e := range wanted {
		for _, r := range e.Refs {
			refs[r] = true
		}
	}
	for _, r := range slices.Concat(s.Default.Refs, s.Standby) {
		if a.checked(r) == nil {
			refs[r] = true
		}
	}
	complete, err = a.obtain(ctx, source, refs)
	if err != nil {
		return false, err
	}
	entries := a.choose(wanted, now)
	def := s.Default
	def.Refs = a.there(slices.DeleteFunc(slices.Clone(def.Refs), func(r Ref) bool { return !refs[r] }))
	for _, e := range entries { // of earlier ones that stay
		for _, r := range e.Refs {
			refs[r] = true
		}
	}
	changed, err := a.write(ctx, entries, def, refs, now)
	if err != nil {
		return false, err
	}
	a.known, a.entries = s, entries
	a.minHold, a.until = forever, time.Time{}
	for _, e := range entries {
		switch {
		case e.until.IsZero():
			a.minHold = min(a.minHold, e.Hold)
		case a.until.IsZero() || e.until.Before(a.until):
			a.until = e.until
		}
	}
	a.mu.Lock()
	a.stats.Expired = expired
	a.mu.Unlock()
	if changed {
		a.o.Logger.LogAttrs(ctx, slog.LevelInfo, "files in step", slog.Int("domains", len(entries)), slog.Int("keys", len(a.keys)), slog.Int("expired", expired))
	}
	a.settle(entries, def, now)
	err = a.sweep()
	if source != nil {
		tell(source, a.untold)
		clear(a.untold)
		a.behind = true
		if a.cache != nil {
			a.cache.stored = false
		}
		a.store(ctx, now)
	}
	return complete, err
}

// forever is longer than anything holds.
const forever = 100 * 365 * 24 * time.Hour

// checked is Ref.check, which takes long, for those that may not have passed it before.
func (a *Agent) checked(r Ref) error {
	if a.folder.man.refs[r] {
		return nil
	}
	return r.check()
}

// checkEntry refuses what must not come into a table.
func (a *Agent) checkEntry(e Entry) error {
	if _, ok := a.find(e.Sender); !ok {
		if err := checkDomain(e.Sender); err != nil {
			return err
		}
	}
	for _, r := range e.Refs {
		if err := a.checked(r); err != nil {
			return err
		}
	}
	return nil
}

// find is the entry of a sender in the tables.
func (a *Agent) find(sender string) (Entry, bool) {
	i, ok := slices.BinarySearchFunc(a.entries, sender, func(e Entry, s string) int { return cmp.Compare(e.Sender, s) })
	if !ok {
		return Entry{}, false
	}
	return a.entries[i], true
}

// valid are the entries of s that can be used, each sender once, in their order.
func (a *Agent) valid(ctx context.Context, s cached, now time.Time) (entries []Entry, expired int) {
	entries = make([]Entry, 0, len(s.Entries))
	for _, e := range s.Entries {
		if err := a.checkEntry(e); err != nil {
			a.trouble(ctx, "invalid "+e.Sender, "dkimd named what cannot be a domain or key: left out", err)
			continue
		}
		if !now.Before(e.validUntil(s.Confirmed)) {
			expired++
			continue
		}
		entries = append(entries, e)
	}
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Sender == b.Sender }), expired
}

const (
	// fetchBatch is how many keys dkimd is asked for at a time.
	fetchBatch = 100
	// writeBatch is how many files with keys are written at a time.
	writeBatch = 2000
)

// obtain puts keys into files that are not there. An error is one of the disk.
func (a *Agent) obtain(ctx context.Context, source Source, refs map[Ref]bool) (complete bool, err error) {
	missing := make(map[string]bool)
	for r := range refs {
		if a.keys[r.Key] == nil {
			missing[r.Key] = true
		}
	}
	if len(missing) == 0 {
		a.over("keys")
		return true, nil
	}
	names := slices.Sorted(maps.Keys(missing))
	complete = true
	files := make(map[string][]byte)
	var added []string
	for len(names) > 0 && ctx.Err() == nil {
		n := min(len(names), fetchBatch)
		keys, err := a.fetch(ctx, source, names[:n])
		if names = names[n:]; err != nil {
			keys, names = []signer.PrivateKey{{Err: err}}, nil
		}
		for _, k := range keys {
			if k.Err != nil {
				complete = false
				if !errors.Is(k.Err, signer.ErrNotSigning) { // else it was replaced meanwhile
					a.trouble(ctx, "keys", "private keys do not come: other keys of their domains sign as long as they may, or none", k.Err)
				}
				continue
			}
			files[keyFile(k.Name)] = pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: k.PKCS8})
			clear(k.PKCS8)
			added = append(added, k.Name)
		}
		if len(files) < writeBatch && len(names) > 0 {
			continue
		}
		if err := a.folder.writeKeys(files); err != nil {
			return false, err
		}
		for _, name := range added {
			a.add(name, &key{})
		}
		clear(files)
		added = nil
	}
	if complete {
		a.over("keys")
	}
	return complete, nil
}

// fetch has dkimd hand out keys, or takes them from the cache.
func (a *Agent) fetch(ctx context.Context, source Source, names []string) ([]signer.PrivateKey, error) {
	if source != nil {
		return source.PrivateKeys(ctx, names...)
	}
	var keys []signer.PrivateKey
	for _, name := range names {
		der, err := a.cache.key(name)
		keys = append(keys, signer.PrivateKey{Name: name, PKCS8: der, Err: err})
	}
	return keys, nil
}

// choose are the entries of the tables: those that are wanted, with the keys that are
// there. Where none is, the entry stays that was there before, as long as that may.
func (a *Agent) choose(wanted []Entry, now time.Time) []Entry {
	entries := make([]Entry, 0, len(wanted))
	for _, e := range wanted {
		e.Refs = a.there(e.Refs)
		if len(e.Refs) == 0 {
			old, ok := a.find(e.Sender)
			old.until = old.validUntil(a.known.Confirmed)
			if !ok || !now.Before(old.until) {
				continue
			}
			e = old
		}
		entries = append(entries, e)
	}
	return entries
}

// there are those of refs whose keys are in files.
func (a *Agent) there(refs []Ref) []Ref {
	missing := func(r Ref) bool { return a.keys[r.Key] == nil }
	if !slices.ContainsFunc(refs, missing) {
		return refs
	}
	return slices.DeleteFunc(slices.Clone(refs), missing)
}

// write brings the tables to entries, and reloads the signer. wanted are the refs
// that may come to be named.
func (a *Agent) write(ctx context.Context, entries []Entry, def Entry, wanted map[Ref]bool, now time.Time) (changed bool, err error) {
	for r := range wanted {
		delete(a.ended, r)
	}
	refs := make([]Ref, 0, len(wanted))
	for r := range wanted {
		if a.keys[r.Key] != nil {
			refs = append(refs, r)
		}
	}
	for _, r := range a.refs {
		if wanted[r] || a.keys[r.Key] == nil {
			continue
		}
		if _, ok := a.ended[r]; !ok {
			a.ended[r] = now
		}
		if now.Sub(a.ended[r]) < Grace {
			refs = append(refs, r)
		}
	}
	slices.SortFunc(refs, compareRefs)
	view := View{Dir: a.folder.dir, Entries: entries, Default: def, Refs: refs}
	tables, err := a.o.Format.render(view)
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.o.Format.Name, err)
	}
	if err := a.folder.noteRefs(refs); err != nil {
		return false, err
	}
	a.use(append(entries, def))
	for i, name := range a.o.Format.tables {
		now := tableOf(tables[i])
		if old, ok := a.tables[name]; ok && old == now {
			continue
		}
		delete(a.tables, name)
		a.reload, changed = true, true
		if err := a.folder.write(a.folder.path(name), tables[i]); err != nil {
			return false, err
		}
		if err := a.folder.sync(a.folder.dir); err != nil {
			return false, err
		}
		a.tables[name] = now
	}
	a.refs = refs
	return changed, a.reloadSigner(ctx)
}

func (a *Agent) reloadSigner(ctx context.Context) error {
	if !a.reload || a.o.Reload == nil {
		a.reload = false
		return nil
	}
	err := a.o.Reload(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.stats.ReloadFailures++
		return fmt.Errorf("reload the signer: %w", err)
	}
	a.stats.Reloads++
	a.reload = false
	return nil
}

// use notes that keys may sign from now on.
func (a *Agent) use(entries []Entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range entries {
		for _, r := range e.Refs {
			a.keys[r.Key].signs = true
		}
	}
}

// settle notes that the signer goes by entries.
func (a *Agent) settle(entries []Entry, def Entry, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settled++
	for _, e := range append(entries, def) {
		for _, r := range e.Refs {
			a.keys[r.Key].settled = a.settled
		}
	}
	for name, k := range a.keys {
		if k.signs && k.settled != a.settled {
			k.signs, k.left = false, now
			a.untold[owner(name)] = true
		}
		if !k.held {
			k.held = true
			a.untold[owner(name)] = true
		}
	}
}

// tell has dkimd told of domains.
func tell(source Source, owners map[string]bool) {
	if len(owners) > 0 {
		source.Held(slices.Sorted(maps.Keys(owners))...)
	}
}

// sweep removes the keys that no table names any more.
func (a *Agent) sweep() error {
	named := make(map[string]bool, len(a.refs))
	for _, r := range a.refs {
		named[r.Key] = true
	}
	var gone []string
	for name := range a.keys {
		if !named[name] {
			gone = append(gone, name)
		}
	}
	files := make(map[string]bool)
	for _, name := range gone {
		files[keyFile(name)] = true
	}
	if !a.swept {
		there, err := a.folder.keyFiles()
		if err != nil {
			return err
		}
		for name := range a.keys {
			delete(there, keyFile(name))
		}
		maps.Copy(files, there)
	}
	for name := range files {
		if err := a.folder.remove(a.folder.path(keysName, name)); err != nil {
			return err
		}
	}
	if len(files) > 0 {
		if err := a.folder.sync(a.folder.path(keysName)); err != nil {
			return err
		}
	}
	for _, name := range gone {
		a.untold[owner(name)] = true
		a.drop(name)
	}
	maps.DeleteFunc(a.ended, func(r Ref, _ time.Time) bool {
		_, current := slices.BinarySearchFunc(a.refs, r, compareRefs)
		return !current
	})
	a.swept = true
	return a.folder.forgetRefs(a.refs)
}
