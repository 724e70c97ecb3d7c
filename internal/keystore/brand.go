package keystore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// Brand is a tenant as stored.
type Brand struct {
	Name        string
	Zone        dnsname.Zone
	DisplayName string
	CreateTime  time.Time
	Mode        rotation.Mode
	Policy      rotation.Override // what it sets of how its domains' keys rotate
	Disclosure  Disclosure
	// MaxDomains is how many domains of customers it may have; 0: any number.
	MaxDomains int64
	Revision   int64 // store revision it was read or written at
}

// Disclosure says whether a brand's private keys are made public some time after
// they were destroyed, so that nobody can prove by them who sent a message.
type Disclosure struct {
	Enabled bool
	Lag     time.Duration
}

// ETag changes with every change of the brand.
func (b Brand) ETag() string { return strconv.FormatInt(b.Revision, 10) }

// CreateBrand stores a new brand. It returns ErrBrandExists and, when its zone
// is not there, ErrZoneNotFound.
func (s *Store) CreateBrand(ctx context.Context, b Brand) (Brand, error) {
	value, err := b.marshal()
	if err != nil {
		return Brand{}, err
	}
	key, apex := schema.BrandKey(b.Name), schema.ApexKey(string(b.Zone))
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{absent(key), present(apex)},
		[]clientv3.Op{clientv3.OpPut(key, string(value))},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return Brand{}, err
	}
	if !resp.Succeeded {
		if readAt(resp, 0) != nil {
			return Brand{}, fmt.Errorf("%w: %s", ErrBrandExists, b.Name)
		}
		return Brand{}, fmt.Errorf("%w: %s", ErrZoneNotFound, b.Zone)
	}
	return brandFrom(&mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: resp.Header.Revision})
}

// Brand reads a brand. It returns ErrBrandNotFound.
func (s *Store) Brand(ctx context.Context, name string) (Brand, error) {
	kv, err := s.getOne(ctx, schema.BrandKey(name), fmt.Errorf("%w: %s", ErrBrandNotFound, name))
	if err != nil {
		return Brand{}, err
	}
	return brandFrom(kv)
}

// Brands lists up to limit brands whose names follow after, in order of name.
func (s *Store) Brands(ctx context.Context, after string, limit int) (brands []Brand, more bool, err error) {
	kvs, more, err := s.page(ctx, schema.BrandPrefix(), after, limit)
	if err != nil {
		return nil, false, err
	}
	for _, kv := range kvs {
		b, err := brandFrom(kv)
		if err != nil {
			return nil, false, err
		}
		brands = append(brands, b)
	}
	return brands, more, nil
}

// UpdateBrand replaces a brand, if it is still the one b was read as. If b does
// not disclose its keys, those that are retained for it are deleted in the same
// transaction. It returns ErrBrandNotFound and ErrConflict.
func (s *Store) UpdateBrand(ctx context.Context, b Brand) (Brand, error) {
	value, err := b.marshal()
	if err != nil {
		return Brand{}, err
	}
	key := schema.BrandKey(b.Name)
	ops := []clientv3.Op{clientv3.OpPut(key, string(value))}
	if !b.Disclosure.Enabled {
		ops = append(ops, clientv3.OpDelete(schema.RetainedPrefix(b.Name), clientv3.WithPrefix()))
	}
	if b.MaxDomains == 0 {
		// Domains come and go uncounted from now on.
		ops = append(ops, clientv3.OpDelete(schema.TallyPrefix(b.Name), clientv3.WithPrefix()))
	}
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{unchanged(key, b.Revision)},
		ops,
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return Brand{}, err
	}
	if !resp.Succeeded {
		return Brand{}, missingOrConflict(resp, fmt.Errorf("%w: %s", ErrBrandNotFound, b.Name))
	}
	return brandFrom(&mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: resp.Header.Revision})
}

// DeleteBrand removes a brand, if it is still the one b was read as, and with it,
// in one transaction, its secrets and its own domains, as they were read; their
// UpdateTime is the time of the deletion. Its wrapped data keys stay: another process may hold them
// and seal with them for a brand of that name made anew. It returns
// ErrBrandNotEmpty if there is any other domain, ErrBrandNotFound, ErrConflict and
// ErrTooManyKeys.
func (s *Store) DeleteBrand(ctx context.Context, b Brand, own ...Domain) error {
	own = slices.SortedFunc(slices.Values(own), func(x, y Domain) int { return cmp.Compare(x.Name, y.Name) })
	key, domains := schema.BrandKey(b.Name), schema.DomainPrefix(b.Name)
	anyDomain := clientv3.OpGet(domains, clientv3.WithPrefix(), clientv3.WithLimit(int64(len(own)+1)), clientv3.WithKeysOnly())
	// A look first: to find that the comparison below does not hold, etcd would
	// read all domains of a large brand.
	resp, err := s.txn(ctx, nil, []clientv3.Op{anyDomain}, nil)
	if err != nil {
		return err
	}
	if hasOther(resp.Responses[0].GetResponseRange(), own) {
		return fmt.Errorf("%w: %s", ErrBrandNotEmpty, b.Name)
	}
	cmps := []clientv3.Cmp{unchanged(key, b.Revision)}
	ops := []clientv3.Op{
		clientv3.OpDelete(key),
		clientv3.OpDelete(schema.SecretPrefix(b.Name), clientv3.WithPrefix()),
		clientv3.OpDelete(schema.TallyPrefix(b.Name), clientv3.WithPrefix()),
	}
	from := domains
	for i, d := range own {
		domainKey := schema.DomainKey(b.Name, string(d.Name))
		deletion, err := s.planDeletion(ctx, d, d.UpdateTime, nil)
		if err != nil {
			return err
		}
		if i == 0 {
			ops = append(ops, touchApex(string(d.Zone)))
		}
		cmps = append(cmps, unchanged(domainKey, d.Revision), noneBetween(from, domainKey))
		ops = append(ops, deletion...)
		from = domainKey + "\x00"
	}
	cmps = append(cmps, noneBetween(from, clientv3.GetPrefixRangeEnd(domains)))
	if len(ops) > maxTxnOps {
		return fmt.Errorf("%w: brand %s", ErrTooManyKeys, b.Name)
	}
	resp, err = s.txn(ctx, cmps, ops, []clientv3.Op{clientv3.OpGet(key), anyDomain})
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		if readAt(resp, 0) != nil && hasOther(resp.Responses[1].GetResponseRange(), own) {
			return fmt.Errorf("%w: %s", ErrBrandNotEmpty, b.Name)
		}
		return missingOrConflict(resp, fmt.Errorf("%w: %s", ErrBrandNotFound, b.Name))
	}
	return nil
}

// hasOther reports whether a brand's domains that were found are not all among
// its own.
func hasOther(found *etcdserverpb.RangeResponse, own []Domain) bool {
	return slices.ContainsFunc(found.GetKvs(), func(kv *mvccpb.KeyValue) bool {
		return !slices.ContainsFunc(own, func(d Domain) bool { return schema.DomainKey(d.Brand, string(d.Name)) == string(kv.Key) })
	})
}

func (b Brand) marshal() ([]byte, error) {
	v, err := proto.Marshal(&schemapb.Brand{
		Zone:             string(b.Zone),
		DisplayName:      b.DisplayName,
		CreateTimeMicros: schema.Micros(b.CreateTime),
		Mode:             uint32(b.Mode), Policy: policyValue(b.Policy),
		Disclosure: b.Disclosure.Enabled, DisclosureLagMicros: b.Disclosure.Lag.Microseconds(),
		MaxDomains: b.MaxDomains,
	})
	if err != nil {
		return nil, fmt.Errorf("brand %s: %w", b.Name, err)
	}
	return v, nil
}

func brandFrom(kv *mvccpb.KeyValue) (Brand, error) {
	name := strings.TrimPrefix(string(kv.Key), schema.BrandPrefix())
	var v schemapb.Brand
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return Brand{}, fmt.Errorf("%w: brand %s: %w", schema.ErrCorrupt, name, err)
	}
	mode := rotation.Mode(v.GetMode()) //nolint:gosec // checked below
	if v.GetMode() > 255 || !mode.Valid() {
		return Brand{}, fmt.Errorf("%w: brand %s: unknown mode %d", schema.ErrCorrupt, name, v.GetMode())
	}
	return Brand{
		Name:        name,
		Zone:        dnsname.Zone(v.GetZone()),
		DisplayName: v.GetDisplayName(),
		CreateTime:  schema.FromMicros(v.GetCreateTimeMicros()),
		Mode:        mode, Policy: policyFrom(v.GetPolicy()),
		Disclosure: Disclosure{v.GetDisclosure(), time.Duration(v.GetDisclosureLagMicros()) * time.Microsecond},
		MaxDomains: v.GetMaxDomains(),
		Revision:   kv.ModRevision,
	}, nil
}
