package keystore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// ErrSignerNotFound says that there is no signer of that id.
var ErrSignerNotFound = errors.New("signer not found")

// Signer is a process that signs mail and says with which keys. ID holds no "/".
type Signer struct {
	ID           string
	Brand        string // empty: signs for all brands
	Description  string
	RegisterTime time.Time
	Lease        time.Duration // from one renewal to the end, to the second
	LeaseExpiry  time.Time     // when it stops counting unless it renews
	Revision     int64         // store revision it was read or written at; 0: new
}

// PutSigner stores a signer, if it is still the one sg was read as, or if there
// is none and sg is new. It returns ErrConflict and ErrSignerNotFound.
func (s *Store) PutSigner(ctx context.Context, sg Signer) (Signer, error) {
	value, err := proto.Marshal(&schemapb.Signer{
		Brand: sg.Brand, Description: sg.Description,
		RegisterTimeMicros: schema.Micros(sg.RegisterTime), LeaseExpiryMicros: schema.Micros(sg.LeaseExpiry),
		LeaseSeconds: uint64(max(0, sg.Lease/time.Second)),
	})
	if err != nil {
		return Signer{}, fmt.Errorf("signer %s: %w", sg.ID, err)
	}
	key := schema.SignerKey(sg.ID)
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{unchanged(key, sg.Revision)},
		[]clientv3.Op{clientv3.OpPut(key, string(value))},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return Signer{}, err
	}
	if !resp.Succeeded {
		return Signer{}, missingOrConflict(resp, fmt.Errorf("%w: %s", ErrSignerNotFound, sg.ID))
	}
	return signerFrom(&mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: resp.Header.Revision})
}

// Signer reads a signer. It returns ErrSignerNotFound.
func (s *Store) Signer(ctx context.Context, id string) (Signer, error) {
	kv, err := s.getOne(ctx, schema.SignerKey(id), fmt.Errorf("%w: %s", ErrSignerNotFound, id))
	if err != nil {
		return Signer{}, err
	}
	return signerFrom(kv)
}

// Signers reads all signers that sign for a brand, or all there are when brand is
// empty, in order of id. An installation has few.
func (s *Store) Signers(ctx context.Context, brand string) ([]Signer, error) {
	var signers []Signer
	_, err := s.snapshot(ctx, schema.SignerPrefix(), 0, func(kv *mvccpb.KeyValue) error {
		sg, err := signerFrom(kv)
		if err == nil && (brand == "" || sg.Brand == "" || sg.Brand == brand) {
			signers = append(signers, sg)
		}
		return err
	})
	return signers, err
}

// DeleteSigner removes a signer, if it is still the one sg was read as. What it
// reported stays with the domains and counts for nothing. It returns
// ErrSignerNotFound and ErrConflict.
func (s *Store) DeleteSigner(ctx context.Context, sg Signer) error {
	key := schema.SignerKey(sg.ID)
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{unchanged(key, sg.Revision), present(key)},
		[]clientv3.Op{clientv3.OpDelete(key)},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return missingOrConflict(resp, fmt.Errorf("%w: %s", ErrSignerNotFound, sg.ID))
	}
	return nil
}

func signerFrom(kv *mvccpb.KeyValue) (Signer, error) {
	id := strings.TrimPrefix(string(kv.Key), schema.SignerPrefix())
	var v schemapb.Signer
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return Signer{}, fmt.Errorf("%w: signer %s: %w", schema.ErrCorrupt, id, err)
	}
	return Signer{
		ID: id, Brand: v.GetBrand(), Description: v.GetDescription(),
		RegisterTime: schema.FromMicros(v.GetRegisterTimeMicros()), LeaseExpiry: schema.FromMicros(v.GetLeaseExpiryMicros()),
		Lease:    time.Duration(v.GetLeaseSeconds()) * time.Second, //nolint:gosec // as stored
		Revision: kv.ModRevision,
	}, nil
}

// Report is what a signer last said about the keys of a domain. Its times are
// kept to the second.
type Report struct {
	Signer string
	Brand  string
	Domain dnsname.Domain
	Time   time.Time
	// Holds has the ids of the keys that the signer holds, with the time it last
	// signed with each; zero: never.
	Holds map[string]time.Time
	// FirstSeen says since when it has said that it holds the key.
	FirstSeen map[string]time.Time
}

// reportsPerTxn is how many reports a transaction takes: each has two
// comparisons.
const reportsPerTxn = maxTxnOps / 2

// PutReports stores reports of one signer, one for each domain at most, and
// returns those domains that are not there. FirstSeen comes from the report
// before, and a last use never goes back: reports may come twice and late. One
// that is older than what is stored changes nothing.
func (s *Store) PutReports(ctx context.Context, reports []Report) (unknown []dnsname.Domain, err error) {
	for len(reports) > 0 {
		n := min(len(reports), reportsPerTxn)
		missing, err := s.putReports(ctx, reports[:n])
		if err != nil {
			return nil, err
		}
		unknown = append(unknown, missing...)
		reports = reports[n:]
	}
	return unknown, nil
}

// reportRaces is how often putReports starts again when a domain is deleted or
// reported on between its look and its transaction.
const reportRaces = 8

func (s *Store) putReports(ctx context.Context, reports []Report) (unknown []dnsname.Domain, _ error) {
	for range reportRaces {
		unknown, again, err := s.tryPutReports(ctx, reports)
		if !again {
			return unknown, err
		}
	}
	return nil, fmt.Errorf("%w: reports of %s", ErrConflict, reports[0].Signer)
}

func (s *Store) tryPutReports(ctx context.Context, reports []Report) (unknown []dnsname.Domain, again bool, _ error) {
	gets := make([]clientv3.Op, 0, 2*len(reports))
	for _, r := range reports {
		gets = append(gets,
			clientv3.OpGet(schema.DomainKey(r.Brand, string(r.Domain)), clientv3.WithKeysOnly()),
			clientv3.OpGet(schema.ReportKey(r.Brand, string(r.Domain), r.Signer)))
	}
	resp, err := s.txn(ctx, nil, gets, nil)
	if err != nil {
		return nil, false, err
	}
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	for i, r := range reports {
		if readAt(resp, 2*i) == nil {
			unknown = append(unknown, r.Domain)
			continue
		}
		key, before, revision := schema.ReportKey(r.Brand, string(r.Domain), r.Signer), Report{}, int64(0)
		if kv := readAt(resp, 2*i+1); kv != nil {
			revision = kv.ModRevision
			if before, err = reportFrom(r.Brand, r.Domain, kv); err != nil {
				return nil, false, err
			}
		}
		if schema.Seconds(r.Time) < schema.Seconds(before.Time) {
			continue
		}
		value, err := merged(r, before).marshal()
		if err != nil {
			return nil, false, err
		}
		cmps = append(cmps, present(schema.DomainKey(r.Brand, string(r.Domain))), unchanged(key, revision))
		ops = append(ops, clientv3.OpPut(key, string(value)))
	}
	if len(ops) == 0 {
		return unknown, false, nil
	}
	resp, err = s.txn(ctx, cmps, ops, nil)
	if err != nil {
		return nil, false, err
	}
	return unknown, !resp.Succeeded, nil
}

// merged is r with what is known from the report before it.
func merged(r, before Report) Report {
	r.Holds, r.FirstSeen = maps.Clone(r.Holds), make(map[string]time.Time, len(r.Holds))
	for id, used := range r.Holds {
		r.FirstSeen[id] = r.Time
		if seen, ok := before.FirstSeen[id]; ok {
			r.FirstSeen[id] = seen
		}
		if last := before.Holds[id]; last.After(used) {
			r.Holds[id] = last
		}
	}
	return r
}

// Reports reads what all signers last said about a domain, in order of signer,
// those that are no longer registered too.
func (s *Store) Reports(ctx context.Context, brand string, domain dnsname.Domain) ([]Report, error) {
	resp, err := s.get(ctx, schema.ReportPrefix(brand, string(domain)), clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	reports := make([]Report, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		r, err := reportFrom(brand, domain, kv)
		if err != nil {
			return nil, err
		}
		reports = append(reports, r)
	}
	return reports, nil
}

func (r Report) marshal() ([]byte, error) {
	c := clockOf(r.Time)
	for id, used := range r.Holds {
		c.include(used)
		c.include(r.FirstSeen[id])
	}
	v := &schemapb.Report{TimeSeconds: c.last, Numbers: []uint64{c.ref(r.Time)}}
	for _, id := range slices.Sorted(maps.Keys(r.Holds)) {
		v.KeyIds = append(v.KeyIds, cutWord(id))
		v.Numbers = append(v.Numbers, c.ref(r.FirstSeen[id]), c.ref(r.Holds[id]))
	}
	b, err := proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("report of %s on %s: %w", r.Signer, r.Domain, err)
	}
	return b, nil
}

// reportFrom decodes a report. Its errors wrap schema.ErrCorrupt.
func reportFrom(brand string, domain dnsname.Domain, kv *mvccpb.KeyValue) (Report, error) {
	r := Report{Signer: strings.TrimPrefix(string(kv.Key), schema.ReportPrefix(brand, string(domain))), Brand: brand, Domain: domain}
	var v schemapb.Report
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return Report{}, fmt.Errorf("%w: report %q: %w", schema.ErrCorrupt, kv.Key, err)
	}
	n := v.GetNumbers()
	if len(n) != 1+2*len(v.GetKeyIds()) {
		return Report{}, fmt.Errorf("%w: report %q has %d numbers of %d keys", schema.ErrCorrupt, kv.Key, len(n), len(v.GetKeyIds()))
	}
	c := clock{v.GetTimeSeconds()}
	r.Time = c.time(n[0])
	r.Holds, r.FirstSeen = make(map[string]time.Time), make(map[string]time.Time)
	for i, id := range v.GetKeyIds() {
		r.FirstSeen[id], r.Holds[id] = c.time(n[1+2*i]), c.time(n[2+2*i])
	}
	return r, nil
}
