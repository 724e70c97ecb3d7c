package keystore

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// NewestDataKey reads the brand's newest wrapped data key and its number, which
// is 0 when the brand has none yet.
func (s *Store) NewestDataKey(ctx context.Context, brand string) (n uint32, wrapped []byte, err error) {
	resp, err := s.get(ctx, schema.DataKeyPrefix(brand), clientv3.WithLastKey()...)
	if err != nil {
		return 0, nil, err
	}
	if len(resp.Kvs) == 0 {
		return 0, nil, nil
	}
	_, n, ok := schema.ParseDataKeyKey(string(resp.Kvs[0].Key))
	if !ok {
		return 0, nil, fmt.Errorf("%w: %q is no data key's key", schema.ErrCorrupt, resp.Kvs[0].Key)
	}
	return n, resp.Kvs[0].Value, nil
}

// DataKey reads the brand's wrapped data key number n. It returns
// ErrKeyNotFound.
func (s *Store) DataKey(ctx context.Context, brand string, n uint32) ([]byte, error) {
	kv, err := s.getOne(ctx, schema.DataKeyKey(brand, n), fmt.Errorf("%w: data key %d of brand %s", ErrKeyNotFound, n, brand))
	if err != nil {
		return nil, err
	}
	return kv.Value, nil
}

// CreateDataKey stores the brand's wrapped data key number n unless there is
// one already or the mark of the key-encryption key is not of revision mark any
// more (0: not there), and reports whether it did. It returns ErrBrandNotFound.
func (s *Store) CreateDataKey(ctx context.Context, brand string, n uint32, wrapped []byte, mark int64) (created bool, err error) {
	key, brandKey := schema.DataKeyKey(brand, n), schema.BrandKey(brand)
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{absent(key), present(brandKey), unchanged(schema.KeyEncryptionKey(), mark)},
		[]clientv3.Op{clientv3.OpPut(key, string(wrapped))},
		[]clientv3.Op{clientv3.OpGet(brandKey)})
	if err != nil {
		return false, err
	}
	if !resp.Succeeded && readAt(resp, 0) == nil {
		return false, fmt.Errorf("%w: %s", ErrBrandNotFound, brand)
	}
	return resp.Succeeded, nil
}

// ReplaceDataKey stores the brand's data key number n, wrapped anew, if what is
// stored is still old and the mark of the key-encryption key of revision mark,
// and reports whether it did.
func (s *Store) ReplaceDataKey(ctx context.Context, brand string, n uint32, old, wrapped []byte, mark int64) (replaced bool, err error) {
	key := schema.DataKeyKey(brand, n)
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", string(old)), unchanged(schema.KeyEncryptionKey(), mark)},
		[]clientv3.Op{clientv3.OpPut(key, string(wrapped))}, nil)
	if err != nil {
		return false, err
	}
	return resp.Succeeded, nil
}

// DataKeyInfo says which data key there is.
type DataKeyInfo struct {
	Brand          string
	N              uint32
	CreateRevision int64 // of the store, when it was made
}

// DataKeys lists up to limit data keys of all brands that follow after, in order
// of brand and number. after is the zero value for the first page.
func (s *Store) DataKeys(ctx context.Context, after DataKeyInfo, limit int) (keys []DataKeyInfo, more bool, err error) {
	prefix, from := schema.DataKeyPrefix(""), ""
	if after.Brand != "" {
		from = strings.TrimPrefix(schema.DataKeyKey(after.Brand, after.N), prefix)
	}
	kvs, more, err := s.page(ctx, prefix, from, limit)
	if err != nil {
		return nil, false, err
	}
	for _, kv := range kvs {
		brand, n, ok := schema.ParseDataKeyKey(string(kv.Key))
		if !ok {
			return nil, false, fmt.Errorf("%w: %q is no data key's key", schema.ErrCorrupt, kv.Key)
		}
		keys = append(keys, DataKeyInfo{Brand: brand, N: n, CreateRevision: kv.CreateRevision})
	}
	return keys, more, nil
}

// AnyDataKeyBrand returns the name of a brand that has a data key, or "" when
// none has.
func (s *Store) AnyDataKeyBrand(ctx context.Context) (string, error) {
	resp, err := s.get(ctx, schema.DataKeyPrefix(""), clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	brand, _, ok := schema.ParseDataKeyKey(string(resp.Kvs[0].Key))
	if !ok {
		return "", fmt.Errorf("%w: %q is no data key's key", schema.ErrCorrupt, resp.Kvs[0].Key)
	}
	return brand, nil
}
