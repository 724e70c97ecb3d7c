package dkim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	dto "github.com/prometheus/client_model/go"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// history is a zone with random changes.
type history struct {
	*memory
	rng     *rand.Rand
	apex    schema.Apex
	records map[string]schema.PublicRecord
}

func newHistory(t testing.TB, seed uint64, records int) *history {
	h := &history{memory: newMemory(), rng: rand.New(rand.NewPCG(seed, 1)), apex: testApex(), records: make(map[string]schema.PublicRecord)}
	for i := range records {
		h.records[fmt.Sprintf("s1-a%d._domainkey", i)] = schema.PublicRecord{PublicKey: decode(t, goldenKey), TTL: 600}
	}
	h.put(zoneValues(t, testZone, h.apex, h.records))
	return h
}

// step makes a change of some records, or of the zone object, or of nothing but
// the serial.
func (h *history) step(t testing.TB) int64 {
	t.Helper()
	changed, values := make(map[string]schema.PublicRecord), make(map[string][]byte)
	for range h.rng.IntN(4) {
		owner := fmt.Sprintf("s%d-a%d._domainkey", 1+h.rng.IntN(2), h.rng.IntN(50))
		rec := schema.PublicRecord{PublicKey: decode(t, goldenKey), TTL: uint32(60 + h.rng.IntN(3))}
		switch h.rng.IntN(4) {
		case 0:
			rec.PublicKey = nil
		case 1:
			rec.KeyType, rec.PublicKey = dkimrecord.Ed25519, make([]byte, 32)
		case 2:
			values[schema.RecordKey(testZone, owner)] = nil
			delete(h.records, owner)
			delete(changed, owner)
			continue
		}
		delete(values, schema.RecordKey(testZone, owner))
		h.records[owner], changed[owner] = rec, rec
	}
	switch h.rng.IntN(8) {
	case 0:
		h.apex.ApexTTL = uint32(300 + h.rng.IntN(3))
	case 1:
		h.apex.NegativeTTL = uint32(60 + h.rng.IntN(3))
	case 2:
		h.apex.NameServers = slices.Clone(testApex().NameServers)[h.rng.IntN(3):]
	case 3:
		h.apex.NameServers = slices.Clone(h.apex.NameServers)
		h.apex.NameServers[0].Addresses = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(h.rng.IntN(8))})}
	}
	maps.Copy(values, zoneValues(t, testZone, h.apex, changed))
	return h.put(values)
}

// patch applies an incremental transfer to a zone with the serial, and checks
// that it fits: nothing is deleted that is not there, nothing added twice.
func patch(t testing.TB, zone map[string]bool, serial uint32, all []dns.RR) uint32 {
	t.Helper()
	last := all[0].(*dns.SOA)
	if !cmp.Equal(last, all[len(all)-1]) {
		t.Fatalf("transfer from %v to %v", all[0], all[len(all)-1])
	}
	adding := true
	for _, rr := range all[1 : len(all)-1] {
		if soa, ok := rr.(*dns.SOA); ok {
			if adding = !adding; !adding && soa.Serial != serial {
				t.Fatalf("difference from serial %d, want %d", soa.Serial, serial)
			}
			serial = soa.Serial
			continue
		}
		if zone[rr.String()] == adding {
			t.Fatalf("adding is %v for %v", adding, rr)
		}
		if adding {
			zone[rr.String()] = true
		} else {
			delete(zone, rr.String())
		}
	}
	if serial != last.Serial {
		t.Fatalf("differences end at serial %d, not at %d", serial, last.Serial)
	}
	return serial
}

// transferred is how many transfers there were.
func transferred(t testing.TB, result string) float64 {
	t.Helper()
	var m dto.Metric
	if err := transfers.WithLabelValues(testZone+".", result).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// For any history, an old zone and what changed since make the new zone.
func TestIXFR(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := newHistory(t, seed, 50)
			s := transferServer(t, h.memory, "")
			type zoneAt struct {
				serial uint32
				text   []string
			}
			var past []zoneAt
			before := transferred(t, transferIncremental)
			for range 40 {
				past = append(past, zoneAt{uint32(h.rev), zoneText(t, h.apex, h.records)})
				waitFor(t, h.step(t))
				old := past[h.rng.IntN(len(past))]
				all, err := s.axfr(t, ixfrQuery(old.serial), nil)
				if err != nil {
					t.Fatal(err)
				}
				if soa, ok := all[1].(*dns.SOA); !ok || soa.Serial != old.serial {
					continue // all of it, being less
				}
				zone := make(map[string]bool)
				for _, text := range old.text {
					zone[text] = true
				}
				serial := patch(t, zone, old.serial, all)
				got := make([]string, 0, len(zone))
				for text := range zone {
					got = append(got, text)
				}
				slices.Sort(got)
				if diff := cmp.Diff(zoneText(t, h.apex, h.records), got); diff != "" || int64(serial) != h.rev {
					t.Fatalf("from %d to %d, want %d (-want +got):\n%s", old.serial, serial, h.rev, diff)
				}
			}
			if n := transferred(t, transferIncremental) - before; n < 30 {
				t.Errorf("%v of 40 transfers were incremental", n)
			}
			all, err := s.axfr(t, axfrQuery(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, got := contents(t, all); !slices.Equal(got, zoneText(t, h.apex, h.records)) {
				t.Error("the full transfer differs")
			}
		})
	}
}

// What is not known, or more than the zone, is sent in full.
func TestIXFRFallsBack(t *testing.T) {
	h := newHistory(t, 9, 3)
	first := uint32(h.rev)
	s := transferServer(t, h.memory, "")
	changed := make(map[string]schema.PublicRecord)
	for i := range 3 {
		changed[fmt.Sprintf("s1-a%d._domainkey", i)] = schema.PublicRecord{TTL: 1}
	}
	waitFor(t, h.put(zoneValues(t, testZone, schema.Apex{NameServers: testApex().NameServers[2:], Mailbox: "a.example.org", ApexTTL: 1}, changed)))
	for name, serial := range map[string]uint32{"more than the zone": first, "not known": first - 1} {
		all, err := s.axfr(t, ixfrQuery(serial), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := contents(t, all); len(got) != 4 {
			t.Errorf("%s: %d records", name, len(got))
		}
	}
}
