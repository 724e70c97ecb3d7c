package keystore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// A domain's newest events stand in its own value: they cost no key of their
// own. When there would be more than blockEvents, they become a block of the
// domain's history, which overwrites the oldest of historySlots.
const (
	blockEvents  = 16
	historySlots = 4
)

// Event is something that happened to a domain or one of its keys. Its time is
// kept to the second; of a text, the first 256 octets are.
type Event struct {
	Time      time.Time // zero in a Change: its UpdateTime
	Actor     string    // who did it; empty in a Change: its Actor
	Action    string    // in UPPER_SNAKE
	KeyID     string    // of an event of a key
	Selector  dnsname.Selector
	Algorithm keypair.Algorithm
	From, To  rotation.State // zero: none
	Reason    string         // in UPPER_SNAKE
	Detail    string         // a sentence
}

// numbersPerEvent is how many numbers an event is stored as.
const numbersPerEvent = 9

// History reads what is known of a domain's past, the newest first: about the last
// 64 events. It outlives the domain. It is empty for a domain that never was.
func (s *Store) History(ctx context.Context, brand string, domain dnsname.Domain) ([]Event, error) {
	resp, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpGet(schema.DomainKey(brand, string(domain))),
		clientv3.OpGet(schema.HistoryPrefix(brand, string(domain)), clientv3.WithPrefix()),
	}, nil)
	if err != nil {
		return nil, err
	}
	var blocks []*schemapb.Events
	for _, kv := range resp.Responses[1].GetResponseRange().GetKvs() {
		var v schemapb.Events
		if err := proto.Unmarshal(kv.Value, &v); err != nil {
			return nil, fmt.Errorf("%w: history %q: %w", schema.ErrCorrupt, kv.Key, err)
		}
		blocks = append(blocks, &v)
	}
	slices.SortFunc(blocks, func(a, b *schemapb.Events) int { return cmp.Compare(a.GetNumber(), b.GetNumber()) })
	var events []Event
	for _, b := range blocks {
		of, err := eventsFrom(b, nil)
		if err != nil {
			return nil, fmt.Errorf("history of %s: %w", domain, err)
		}
		events = append(events, of...)
	}
	if kv := readAt(resp, 0); kv != nil {
		d, err := domainFrom(kv)
		if err != nil {
			return nil, err
		}
		events = append(events, d.Events...)
	}
	slices.Reverse(events)
	return events, nil
}

// remember adds a change's events to those in d's value. What stood there before
// becomes a block if there are too many then, whose value is returned with its
// key.
func (d *Domain) remember(events []Event, actor string, at time.Time) (key string, block []byte, _ error) {
	if len(events) == 0 {
		return "", nil, nil
	}
	if len(d.Events) > 0 && len(d.Events)+len(events) > blockEvents {
		var err error
		if key, block, err = d.block(d.Events); err != nil {
			return "", nil, err
		}
		d.HistoryBlocks++
		d.Events = nil
	}
	d.Events = append(slices.Clip(d.Events), completed(events, actor, at)...)
	return key, block, nil
}

// completed fills in what events of a change have in common.
func completed(events []Event, actor string, at time.Time) []Event {
	events = slices.Clone(events)
	for i := range events {
		if events[i].Time.IsZero() {
			events[i].Time = at
		}
		if events[i].Actor == "" {
			events[i].Actor = actor
		}
	}
	return events
}

// block is the next block of d's history.
func (d *Domain) block(events []Event) (key string, value []byte, _ error) {
	v := eventsValue(events, nil)
	v.Number = d.HistoryBlocks
	value, err := proto.Marshal(v)
	if err != nil {
		return "", nil, fmt.Errorf("history of %s: %w", d.Name, err)
	}
	return schema.HistoryKey(d.Brand, string(d.Name), d.HistoryBlocks%historySlots), value, nil
}

// impliedWords are those that d's value holds anyway.
func (d *Domain) impliedWords() []string {
	implied := make([]string, 0, len(d.Selectors)+2*len(d.Keys))
	for _, s := range d.Selectors {
		implied = append(implied, string(s.Selector))
	}
	for _, k := range d.Keys {
		implied = append(implied, k.ID, string(k.Selector))
	}
	return implied
}

func eventsValue(events []Event, implied []string) *schemapb.Events {
	if len(events) == 0 {
		return nil
	}
	var c clock
	for _, e := range events {
		c.include(e.Time)
	}
	w := wordsAfter(implied)
	numbers := make([]uint64, 0, numbersPerEvent*len(events))
	for _, e := range events {
		numbers = append(numbers,
			c.ref(e.Time), w.ref(e.Actor), w.ref(e.Action), w.ref(e.KeyID), w.ref(string(e.Selector)),
			uint64(e.Algorithm), 8*uint64(e.From)+uint64(e.To), w.ref(e.Reason), w.ref(e.Detail))
	}
	return &schemapb.Events{TimeSeconds: c.last, Words: w.stored(), Numbers: numbers}
}

// eventsFrom decodes events. Its errors wrap schema.ErrCorrupt.
func eventsFrom(v *schemapb.Events, implied []string) ([]Event, error) {
	if v == nil {
		return nil, nil
	}
	n := v.GetNumbers()
	if len(n)%numbersPerEvent != 0 {
		return nil, fmt.Errorf("%w: %d numbers of events", schema.ErrCorrupt, len(n))
	}
	c, w := clock{v.GetTimeSeconds()}, words{list: append(slices.Clip(implied), v.GetWords()...)}
	events := make([]Event, 0, len(n)/numbersPerEvent)
	for ; len(n) > 0; n = n[numbersPerEvent:] {
		e := Event{Time: c.time(n[0])}
		var selector string
		for _, f := range []struct {
			field *string
			ref   uint64
		}{{&e.Actor, n[1]}, {&e.Action, n[2]}, {&e.KeyID, n[3]}, {&selector, n[4]}, {&e.Reason, n[7]}, {&e.Detail, n[8]}} {
			var err error
			if *f.field, err = w.word(f.ref); err != nil {
				return nil, err
			}
		}
		e.Selector = dnsname.Selector(selector)
		var err error
		if e.Algorithm, err = algorithmOrNone(n[5]); err != nil {
			return nil, err
		}
		e.From, e.To = rotation.State(n[6]/8), rotation.State(n[6]%8) //nolint:gosec // checked below
		if n[6] >= 64 || e.From != 0 && !e.From.Valid() || e.To != 0 && !e.To.Valid() {
			return nil, fmt.Errorf("%w: states %d", schema.ErrCorrupt, n[6])
		}
		events = append(events, e)
	}
	return events, nil
}
