package replica

import (
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Bounds of the journal, the last one that is reached counts.
const (
	maxJournalEntries = 100_000
	maxJournalOctets  = 16 << 20
	changeOverhead    = 200 // octets of a change in memory besides names and keys
)

// Change is what became of one record. Nil is no record.
type Change struct {
	Owner    string
	Old, New *schema.PublicRecord
}

// Diff is what changed in a zone between two revisions.
type Diff struct {
	Old, New *Apex
	Changes  []Change // one for each owner name, in no order
}

// journal is what the watch brought lately, one entry for each revision of the
// zone, without gaps. It is guarded by the replica's changes.
type journal struct {
	entries []Diff
	octets  int

	open    map[string]*schema.PublicRecord // what the names changed since the last entry had
	tooMuch bool                            // open is not everything
}

// before notes that owner is about to change.
func (j *journal) before(owner []byte, old *schema.PublicRecord) {
	if j.tooMuch {
		return
	}
	if _, ok := j.open[string(owner)]; ok {
		return
	}
	if j.open == nil {
		j.open = make(map[string]*schema.PublicRecord)
	}
	if len(j.open) >= maxJournalEntries {
		j.stop()
		return
	}
	j.open[string(owner)] = old
}

// clear forgets all: what follows does not follow from it.
func (j *journal) clear() { *j = journal{} }

// stop forgets all, and takes no note of changes until it is cleared.
func (j *journal) stop() { *j = journal{tooMuch: true} }

// commit makes an entry of what changed. v is as it is after the changes.
func (j *journal) commit(v *view, before, after *Apex) {
	if len(j.open) == 0 && !j.tooMuch && before == after {
		return
	}
	// Without another revision the serial is the same for another zone.
	if j.tooMuch || before == nil || after == nil || after.Revision <= before.Revision {
		j.clear()
		return
	}
	if n := len(j.entries); n > 0 && j.entries[n-1].New != before {
		j.entries, j.octets = nil, 0
	}
	d := Diff{Old: before, New: after}
	for owner, old := range j.open {
		c := Change{Owner: owner, Old: old}
		if rec, result := v.lookup([]byte(owner), nil); result == Found {
			c.New = &rec
		}
		if !c.none() {
			d.Changes = append(d.Changes, c)
		}
	}
	j.open = nil
	j.entries = append(j.entries, d)
	j.octets += d.octets()
	drop := 0
	for j.octets > maxJournalOctets || len(j.entries)-drop > maxJournalEntries {
		j.octets -= j.entries[drop].octets()
		j.entries[drop] = Diff{} // for the garbage collector
		drop++
	}
	j.entries = j.entries[drop:]
}

// none reports whether there is nothing to see of c.
func (c Change) none() bool {
	if c.Old == nil || c.New == nil {
		return c.Old == c.New
	}
	return equal(*c.Old, *c.New)
}

func (d Diff) octets() int {
	n := changeOverhead
	for _, c := range d.Changes {
		n += changeOverhead + len(c.Owner)
		for _, rec := range []*schema.PublicRecord{c.Old, c.New} {
			if rec != nil {
				n += len(rec.PublicKey)
			}
		}
	}
	return n
}

// Since returns what changed since the zone had the serial, and whether that is
// known.
func (r *Replica) Since(serial uint32) (Diff, bool) {
	r.changes.Lock()
	defer r.changes.Unlock()
	entries := r.journal.entries
	first := len(entries) - 1
	for first >= 0 && entries[first].Old.Serial != serial {
		first--
	}
	if first < 0 {
		return Diff{}, false
	}
	d := Diff{Old: entries[first].Old, New: entries[len(entries)-1].New}
	at := make(map[string]int)
	for _, e := range entries[first:] {
		for _, c := range e.Changes {
			if i, ok := at[c.Owner]; ok {
				d.Changes[i].New = c.New
				continue
			}
			at[c.Owner] = len(d.Changes)
			d.Changes = append(d.Changes, c)
		}
	}
	kept := d.Changes[:0]
	for _, c := range d.Changes {
		if !c.none() {
			kept = append(kept, c)
		}
	}
	d.Changes = kept
	return d, true
}
