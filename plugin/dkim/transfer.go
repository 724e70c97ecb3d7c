package dkim

import (
	"fmt"
	"slices"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/transfer"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/replica"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	// transferBatch is how many records go to the transfer plugin at once.
	transferBatch = 100
	// transferStall is how long a client may take for what fits into a message.
	// What changes meanwhile is kept for it, so it may not take for ever.
	transferStall = 30 * time.Second
	// maxTransfers is how many full transfers of a zone may run at once.
	maxTransfers = 8
)

// Transfer is what the transfer plugin calls. With serial 0 it sends the zone as of
// one revision, otherwise what changed since, if that is known and less.
func (d *DKIM) Transfer(name string, serial uint32) (<-chan []dns.RR, error) {
	z := d.zoneNamed(name)
	if z == nil {
		return nil, transfer.ErrNotAuthoritative
	}
	rep := z.replica.Load()
	apex := z.apex.of(rep, z.name)
	if apex == nil {
		return nil, plugin.Error(pluginName, fmt.Errorf("transfer of %s: %w", z.name, replica.ErrNotLoaded))
	}
	if serial != 0 && !newer(apex.Serial, serial) {
		ch := make(chan []dns.RR, 1)
		ch <- []dns.RR{apex.newSOA(z.name)}
		close(ch)
		transfers.WithLabelValues(z.name, transferCurrent).Inc()
		return ch, nil
	}
	if serial != 0 {
		if rrs := z.difference(rep, serial); rrs != nil {
			ch := make(chan []dns.RR, 1)
			ch <- rrs
			close(ch)
			transfers.WithLabelValues(z.name, transferIncremental).Inc()
			return ch, nil
		}
	}
	if z.sending.Add(1) > maxTransfers {
		z.sending.Add(-1)
		transfers.WithLabelValues(z.name, transferRefused).Inc()
		return nil, plugin.Error(pluginName, fmt.Errorf("transfer of %s: %d are on their way", z.name, maxTransfers))
	}
	snap, err := rep.Snapshot()
	if err != nil {
		z.sending.Add(-1)
		return nil, plugin.Error(pluginName, fmt.Errorf("transfer of %s: %w", z.name, err))
	}
	ch := make(chan []dns.RR)
	go func() {
		defer z.sending.Add(-1)
		defer close(ch)
		defer snap.Close()
		kind := transferFull
		if err := z.sendAll(ch, snap); err != nil {
			// Without the last SOA the client knows that this is not all.
			log.Warningf("Transfer of %s ends early: %v", z.name, err)
			kind = transferFailed
		}
		transfers.WithLabelValues(z.name, kind).Inc()
	}()
	return ch, nil
}

func (d *DKIM) zoneNamed(name string) *zone {
	for _, z := range d.zones {
		if z.name == name {
			return z
		}
	}
	return nil
}

// newer reports whether serial a comes after b (RFC 1982 §3.2). Two that are
// half the circle apart are taken for new, as a full transfer does no harm.
func newer(a, b uint32) bool { return a != b && a-b <= 1<<31 }

// sendAll sends a zone as in a full transfer (RFC 5936 §2.2).
func (z *zone) sendAll(ch chan<- []dns.RR, snap *replica.Snapshot) error {
	apex := newApex(snap.Apex(), z.name)
	out := newBatcher(ch)
	out.add(apex.newSOA(z.name))
	for _, rr := range apex.records(z.name) {
		out.add(rr)
	}
	var bad error
	if err := snap.Each(func(owner string, rec schema.PublicRecord) bool {
		rr, err := keyRecord(owner+"."+z.name, rec)
		if err != nil {
			bad = err
			return false
		}
		return out.add(rr)
	}); err != nil {
		return err
	}
	if bad != nil {
		return bad
	}
	out.add(apex.newSOA(z.name))
	return out.flush()
}

// difference is what became of the zone since the serial, as in an incremental
// transfer of one step (RFC 1995 §4), or nil if that is not known or more than
// the zone itself.
func (z *zone) difference(rep *replica.Handle, serial uint32) []dns.RR {
	diff, ok := rep.Since(serial)
	if !ok {
		return nil
	}
	before, after := newApex(diff.Old, z.name), newApex(diff.New, z.name)
	deleted, added := without(before.records(z.name), after.records(z.name)), without(after.records(z.name), before.records(z.name))
	for _, c := range diff.Changes {
		if c.Old != nil {
			rr, err := keyRecord(c.Owner+"."+z.name, *c.Old)
			if err != nil {
				return nil
			}
			deleted = append(deleted, rr)
		}
		if c.New != nil {
			rr, err := keyRecord(c.Owner+"."+z.name, *c.New)
			if err != nil {
				return nil
			}
			added = append(added, rr)
		}
	}
	if len(deleted)+len(added) > rep.Status().Records+len(after.records(z.name)) {
		return nil
	}
	rrs := []dns.RR{after.newSOA(z.name), before.newSOA(z.name)}
	rrs = append(append(rrs, deleted...), after.newSOA(z.name))
	return append(append(rrs, added...), after.newSOA(z.name))
}

// without returns the records of a that are not in b.
func without(a, b []dns.RR) []dns.RR {
	there := make(map[string]bool)
	for _, rr := range b {
		there[rr.String()] = true
	}
	return slices.DeleteFunc(a, func(rr dns.RR) bool { return there[rr.String()] })
}

// batcher hands records over in batches, as long as somebody takes them.
type batcher struct {
	ch      chan<- []dns.RR
	batch   []dns.RR
	stall   *time.Timer
	stalled bool
	pace    replica.Pace
}

func newBatcher(ch chan<- []dns.RR) *batcher {
	return &batcher{ch: ch, stall: time.NewTimer(transferStall)}
}

// add reports whether it makes sense to go on.
func (b *batcher) add(rr dns.RR) bool {
	b.batch = append(b.batch, rr)
	return len(b.batch) < transferBatch || b.flush() == nil
}

func (b *batcher) flush() error {
	b.stall.Reset(transferStall)
	defer b.stall.Stop()
	if !b.stalled {
		select {
		case b.ch <- b.batch:
			b.batch = nil
			b.pace.Step()
			return nil
		case <-b.stall.C:
			b.stalled = true
		}
	}
	return fmt.Errorf("the client took nothing for %s", transferStall)
}

// records is what stands at the apex and at in-zone name servers, without the
// SOA record.
func (a *apex) records(zone string) []dns.RR {
	rrs := a.nameServers(zone)
	for _, h := range a.glue {
		rrs = append(rrs, h.addresses(h.name, dns.TypeA)...)
		rrs = append(rrs, h.addresses(h.name, dns.TypeAAAA)...)
	}
	return rrs
}

func (a *apex) newSOA(zone string) dns.RR { return a.soaFor(new(dns.SOA), zone, a.ApexTTL) }

// keyRecord is the TXT record of a key.
func keyRecord(name string, rec schema.PublicRecord) (dns.RR, error) {
	var buf [textRoom]byte
	strings, err := dkimrecord.Split(string(rec.Record().AppendText(buf[:0])))
	if err != nil {
		return nil, err
	}
	return &dns.TXT{Hdr: header(name, dns.TypeTXT, rec.TTL), Txt: strings}, nil
}
