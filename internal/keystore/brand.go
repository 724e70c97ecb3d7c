package keystore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// Brand is a tenant as stored.
type Brand struct {
	Name        string
	Zone        dnsname.Zone
	DisplayName string
	CreateTime  time.Time
	Revision    int64 // store revision it was read or written at
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

// UpdateBrand replaces a brand, if it is still the one b was read as. It
// returns ErrBrandNotFound and ErrConflict.
func (s *Store) UpdateBrand(ctx context.Context, b Brand) (Brand, error) {
	value, err := b.marshal()
	if err != nil {
		return Brand{}, err
	}
	key := schema.BrandKey(b.Name)
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{unchanged(key, b.Revision)},
		[]clientv3.Op{clientv3.OpPut(key, string(value))},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return Brand{}, err
	}
	if !resp.Succeeded {
		return Brand{}, missingOrConflict(resp, fmt.Errorf("%w: %s", ErrBrandNotFound, b.Name))
	}
	return brandFrom(&mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: resp.Header.Revision})
}

// DeleteBrand removes a brand, if it is still the one b was read as. Its wrapped
// data keys stay: another process may hold them and seal with them for a brand
// of that name made anew. It returns ErrBrandNotEmpty, ErrBrandNotFound and
// ErrConflict.
func (s *Store) DeleteBrand(ctx context.Context, b Brand) error {
	key, domains := schema.BrandKey(b.Name), schema.DomainPrefix(b.Name)
	anyDomain := clientv3.OpGet(domains, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	// A look first: to find that the comparison below does not hold, etcd would
	// read all domains of a large brand.
	resp, err := s.txn(ctx, nil, []clientv3.Op{anyDomain}, nil)
	if err != nil {
		return err
	}
	if readAt(resp, 0) != nil {
		return fmt.Errorf("%w: %s", ErrBrandNotEmpty, b.Name)
	}
	resp, err = s.txn(ctx,
		[]clientv3.Cmp{unchanged(key, b.Revision), noneUnder(domains)},
		[]clientv3.Op{clientv3.OpDelete(key)},
		[]clientv3.Op{clientv3.OpGet(key), anyDomain})
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		if readAt(resp, 0) != nil && readAt(resp, 1) != nil {
			return fmt.Errorf("%w: %s", ErrBrandNotEmpty, b.Name)
		}
		return missingOrConflict(resp, fmt.Errorf("%w: %s", ErrBrandNotFound, b.Name))
	}
	return nil
}

func (b Brand) marshal() ([]byte, error) {
	v, err := proto.Marshal(&schemapb.Brand{
		Zone:             string(b.Zone),
		DisplayName:      b.DisplayName,
		CreateTimeMicros: schema.Micros(b.CreateTime),
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
	return Brand{
		Name:        name,
		Zone:        dnsname.Zone(v.GetZone()),
		DisplayName: v.GetDisplayName(),
		CreateTime:  schema.FromMicros(v.GetCreateTimeMicros()),
		Revision:    kv.ModRevision,
	}, nil
}
