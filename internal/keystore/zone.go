package keystore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// Zone is a hosting zone as stored.
type Zone struct {
	Name dnsname.Zone
	schema.Apex
	// Policy is what the zone sets of how keys rotate; it stands in for that of
	// Apex.
	Policy rotation.Override
	// Revision is the store revision of the last change of anything the zone
	// serves; it is also where the SOA serial comes from.
	Revision int64

	stored string // the value it was read as
}

// ETag changes with the zone's settings, and not with its records.
func (z Zone) ETag() string {
	sum := sha256.Sum256([]byte(z.stored))
	return hex.EncodeToString(sum[:8])
}

// CreateZone stores a new zone. It returns ErrZoneExists.
func (s *Store) CreateZone(ctx context.Context, z Zone) (Zone, error) {
	value, err := z.marshal()
	if err != nil {
		return Zone{}, err
	}
	key := schema.ApexKey(string(z.Name))
	resp, err := s.txn(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, string(value))}, nil)
	if err != nil {
		return Zone{}, err
	}
	if !resp.Succeeded {
		return Zone{}, fmt.Errorf("%w: %s", ErrZoneExists, z.Name)
	}
	return zoneFrom(&mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: resp.Header.Revision})
}

// Zone reads a zone. It returns ErrZoneNotFound.
func (s *Store) Zone(ctx context.Context, name dnsname.Zone) (Zone, error) {
	kv, err := s.getOne(ctx, schema.ApexKey(string(name)), fmt.Errorf("%w: %s", ErrZoneNotFound, name))
	if err != nil {
		return Zone{}, err
	}
	return zoneFrom(kv)
}

// Zones lists up to limit zones whose names follow after, in order of name. An
// installation has few zones: their records lie between their apex keys, so the
// list asks for each in turn.
func (s *Store) Zones(ctx context.Context, after dnsname.Zone, limit int) (zones []Zone, more bool, err error) {
	from := schema.PubPrefix
	if after != "" {
		from = pastZone(after)
	}
	end := clientv3.GetPrefixRangeEnd(schema.PubPrefix)
	for {
		kvs, err := s.first(ctx, from, end, 1)
		if err != nil {
			return nil, false, err
		}
		if len(kvs) == 0 {
			return zones, false, nil
		}
		if len(zones) == limit {
			return zones, true, nil
		}
		name, _, apex, ok := schema.ParsePubKey(string(kvs[0].Key))
		if !ok {
			return nil, false, fmt.Errorf("%w: key %q below %s", schema.ErrCorrupt, kvs[0].Key, schema.PubPrefix)
		}
		if apex {
			z, err := zoneFrom(kvs[0])
			if err != nil {
				return nil, false, err
			}
			zones = append(zones, z)
		}
		from = pastZone(dnsname.Zone(name))
	}
}

// ZoneSnapshot calls begin with a zone and then each for all its records, in
// order of relative owner name, all as they stood at one revision. It holds one
// page of them at a time. It returns ErrZoneNotFound, or ErrCompacted when etcd
// forgot the revision before the end was reached.
func (s *Store) ZoneSnapshot(ctx context.Context, name dnsname.Zone, begin func(z Zone, revision int64) error, each func(relative string, r schema.PublicRecord) error) error {
	apex, err := s.get(ctx, schema.ApexKey(string(name)))
	if err != nil {
		return err
	}
	if len(apex.Kvs) == 0 {
		return fmt.Errorf("%w: %s", ErrZoneNotFound, name)
	}
	z, err := zoneFrom(apex.Kvs[0])
	if err != nil {
		return err
	}
	if err := begin(z, apex.Header.Revision); err != nil {
		return err
	}
	_, err = s.snapshot(ctx, schema.RecordPrefix(string(name)), apex.Header.Revision, func(kv *mvccpb.KeyValue) error {
		_, relative, _, ok := schema.ParsePubKey(string(kv.Key))
		if !ok {
			return fmt.Errorf("%w: %q is no record's key", schema.ErrCorrupt, kv.Key)
		}
		r, err := schema.UnmarshalPublicRecord(kv.Value)
		if err != nil {
			return fmt.Errorf("record %s of %s: %w", relative, name, err)
		}
		return each(relative, r)
	})
	return err
}

// pastZone is the first key that can follow all keys of the zone.
func pastZone(name dnsname.Zone) string {
	return clientv3.GetPrefixRangeEnd(schema.ZonePrefix(string(name)))
}

// UpdateZone replaces a zone's settings, if they are still those z was read
// with. It returns ErrZoneNotFound and ErrConflict.
func (s *Store) UpdateZone(ctx context.Context, z Zone) (Zone, error) {
	value, err := z.marshal()
	if err != nil {
		return Zone{}, err
	}
	key := schema.ApexKey(string(z.Name))
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", z.stored)},
		[]clientv3.Op{clientv3.OpPut(key, string(value))},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return Zone{}, err
	}
	if !resp.Succeeded {
		return Zone{}, missingOrConflict(resp, fmt.Errorf("%w: %s", ErrZoneNotFound, z.Name))
	}
	return zoneFrom(&mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: resp.Header.Revision})
}

// DeleteZone removes a zone and its tombstones, if its settings are still those
// z was read with. It returns ErrZoneInUse while a brand refers to it,
// ErrZoneNotFound and ErrConflict.
func (s *Store) DeleteZone(ctx context.Context, z Zone) error {
	resp, err := s.get(ctx, schema.BrandPrefix(), clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		b, err := brandFrom(kv)
		if err != nil {
			return err
		}
		if b.Zone == z.Name {
			return fmt.Errorf("%w: %s by %s", ErrZoneInUse, z.Name, b.Name)
		}
	}
	name := string(z.Name)
	key := schema.ApexKey(name)
	// No brand written since it was looked at, and no record left.
	noNewBrand := clientv3.Compare(clientv3.ModRevision(schema.BrandPrefix()), "<", resp.Header.Revision+1).WithPrefix()
	tresp, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", z.stored), noneUnder(schema.RecordPrefix(name)), noNewBrand},
		[]clientv3.Op{
			clientv3.OpDelete(key),
			clientv3.OpDelete(schema.LabelPrefix(name), clientv3.WithPrefix()),
			clientv3.OpDelete(schema.FingerprintPrefix(name), clientv3.WithPrefix()),
		},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return err
	}
	if !tresp.Succeeded {
		return missingOrConflict(tresp, fmt.Errorf("%w: %s", ErrZoneNotFound, z.Name))
	}
	return nil
}

// missingOrConflict tells, for a failed transaction whose first read was of the
// thing itself, whether it is gone or was changed.
func missingOrConflict(resp *clientv3.TxnResponse, missing error) error {
	if readAt(resp, 0) == nil {
		return missing
	}
	return ErrConflict
}

func (z Zone) marshal() ([]byte, error) {
	apex := z.Apex
	apex.Policy = nil
	if v := policyValue(z.Policy); v != nil {
		var err error
		if apex.Policy, err = (proto.MarshalOptions{Deterministic: true}).Marshal(v); err != nil {
			return nil, fmt.Errorf("zone %s: %w", z.Name, err)
		}
	}
	value, err := apex.Marshal()
	if err != nil {
		return nil, fmt.Errorf("zone %s: %w", z.Name, err)
	}
	return value, nil
}

func zoneFrom(kv *mvccpb.KeyValue) (Zone, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(string(kv.Key), schema.PubPrefix), "/apex")
	apex, err := schema.UnmarshalApex(kv.Value)
	if err != nil {
		return Zone{}, fmt.Errorf("zone %s: %w", name, err)
	}
	var policy schemapb.Policy
	if err := proto.Unmarshal(apex.Policy, &policy); err != nil {
		return Zone{}, fmt.Errorf("%w: zone %s: policy: %w", schema.ErrCorrupt, name, err)
	}
	apex.Policy = nil
	return Zone{Name: dnsname.Zone(name), Apex: apex, Policy: policyFrom(&policy), Revision: kv.ModRevision, stored: string(kv.Value)}, nil
}
