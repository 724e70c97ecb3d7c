package keystore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// Errors of credentials.
var (
	ErrTokenNotFound  = errors.New("token not found")
	ErrSecretNotFound = errors.New("secret not found")
	// ErrTooManySecrets: a brand has MaxBrandSecrets valid ones already.
	ErrTooManySecrets = errors.New("too many secrets")
)

// MaxBrandSecrets is how many secrets of a brand are valid at once: the one in
// use and its successor.
const MaxBrandSecrets = 2

// Token is a bearer token as stored: not the token, but its hash.
type Token struct {
	ID          string
	Hash        []byte // SHA-256 of the token
	Role        string
	Name        string
	Brand       string // empty: of no brand
	ExportKeys  bool
	Description string
	CreateTime  time.Time
	ExpireTime  time.Time
	Creator     string

	brandTime int64 // when its brand was created, in microseconds
}

// CreateToken stores a new token. It returns ErrBrandNotFound for one of a brand
// that is not there, and ErrConflict if there is one of its id.
func (s *Store) CreateToken(ctx context.Context, t Token) error {
	key := schema.TokenKey(t.ID)
	cmps := []clientv3.Cmp{absent(key)}
	if t.Brand != "" {
		b, err := s.Brand(ctx, t.Brand)
		if err != nil {
			return err
		}
		t.brandTime = schema.Micros(b.CreateTime)
		cmps = append(cmps, present(schema.BrandKey(t.Brand)))
	}
	value, err := proto.Marshal(&schemapb.Token{
		Hash: t.Hash, Role: t.Role, Name: t.Name, Brand: t.Brand, ExportKeys: t.ExportKeys, Description: t.Description,
		CreateTimeMicros: schema.Micros(t.CreateTime), ExpireTimeMicros: schema.Micros(t.ExpireTime),
		Creator: t.Creator, BrandCreateTimeMicros: t.brandTime,
	})
	if err != nil {
		return fmt.Errorf("token %s: %w", t.ID, err)
	}
	resp, err := s.txn(ctx, cmps, []clientv3.Op{clientv3.OpPut(key, string(value))}, nil)
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return fmt.Errorf("%w: token %s or brand %q", ErrConflict, t.ID, t.Brand)
	}
	return nil
}

// Token reads a token, expired ones too. It returns ErrTokenNotFound, also for a
// token of a brand that was deleted since, whatever is called so now.
func (s *Store) Token(ctx context.Context, id string) (Token, error) {
	notFound := fmt.Errorf("%w: %s", ErrTokenNotFound, id)
	kv, err := s.getOne(ctx, schema.TokenKey(id), notFound)
	if err != nil {
		return Token{}, err
	}
	t, err := tokenFrom(kv)
	if err != nil || t.Brand == "" {
		return t, err
	}
	b, err := s.Brand(ctx, t.Brand)
	if errors.Is(err, ErrBrandNotFound) || err == nil && schema.Micros(b.CreateTime) != t.brandTime {
		return Token{}, notFound
	}
	return t, err
}

// Tokens lists up to limit tokens whose ids follow after, in order of id, those
// too that are no longer valid.
func (s *Store) Tokens(ctx context.Context, after string, limit int) (tokens []Token, more bool, err error) {
	kvs, more, err := s.page(ctx, schema.TokenPrefix(), after, limit)
	if err != nil {
		return nil, false, err
	}
	for _, kv := range kvs {
		t, err := tokenFrom(kv)
		if err != nil {
			return nil, false, err
		}
		tokens = append(tokens, t)
	}
	return tokens, more, nil
}

// DeleteToken removes a token. It returns ErrTokenNotFound.
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return s.deleteOne(ctx, schema.TokenKey(id), fmt.Errorf("%w: %s", ErrTokenNotFound, id))
}

func (s *Store) deleteOne(ctx context.Context, key string, notFound error) error {
	resp, err := s.txn(ctx, []clientv3.Cmp{present(key)}, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return notFound
	}
	return nil
}

func tokenFrom(kv *mvccpb.KeyValue) (Token, error) {
	id := strings.TrimPrefix(string(kv.Key), schema.TokenPrefix())
	var v schemapb.Token
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return Token{}, fmt.Errorf("%w: token %s: %w", schema.ErrCorrupt, id, err)
	}
	return Token{
		ID: id, Hash: v.GetHash(), Role: v.GetRole(), Name: v.GetName(), Brand: v.GetBrand(), ExportKeys: v.GetExportKeys(),
		Description: v.GetDescription(), CreateTime: schema.FromMicros(v.GetCreateTimeMicros()),
		ExpireTime: schema.FromMicros(v.GetExpireTimeMicros()), Creator: v.GetCreator(), brandTime: v.GetBrandCreateTimeMicros(),
	}, nil
}

// BrandSecret is a secret of a brand as stored: not the secret, but its hash.
type BrandSecret struct {
	ID    string
	Brand string
	// Hash is argon2id of the secret with Salt, in so many Passes over so much
	// memory, by so many Threads.
	Hash, Salt  []byte
	Passes      uint32
	MemoryKiB   uint32
	Threads     uint8
	Description string
	CreateTime  time.Time
	ExpireTime  time.Time // zero: never
	Creator     string
}

// ValidAt reports whether the secret has not expired.
func (b BrandSecret) ValidAt(now time.Time) bool {
	return b.ExpireTime.IsZero() || now.Before(b.ExpireTime)
}

// CreateBrandSecret stores a new secret of a brand and removes those that have
// expired when it is created. It returns ErrBrandNotFound, ErrTooManySecrets and
// ErrConflict.
func (s *Store) CreateBrandSecret(ctx context.Context, b BrandSecret) error {
	value, err := proto.Marshal(&schemapb.BrandSecret{
		Hash: b.Hash, Salt: b.Salt, Passes: b.Passes, MemoryKib: b.MemoryKiB, Threads: uint32(b.Threads), Description: b.Description,
		CreateTimeMicros: schema.Micros(b.CreateTime), ExpireTimeMicros: schema.Micros(b.ExpireTime), Creator: b.Creator,
	})
	if err != nil {
		return fmt.Errorf("secret of brand %s: %w", b.Brand, err)
	}
	prefix := schema.SecretPrefix(b.Brand)
	resp, err := s.get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	// The comparisons say that there are just those that were looked at.
	brandKey := schema.BrandKey(b.Brand)
	cmps, ops := []clientv3.Cmp{present(brandKey)}, []clientv3.Op{clientv3.OpPut(schema.SecretKey(b.Brand, b.ID), string(value))}
	from, valid := prefix, 0
	for _, kv := range resp.Kvs {
		before, err := secretFrom(b.Brand, kv)
		if err != nil {
			return err
		}
		key := string(kv.Key)
		cmps = append(cmps, unchanged(key, kv.ModRevision), noneBetween(from, key))
		from = key + "\x00"
		if before.ValidAt(b.CreateTime) {
			valid++
		} else {
			ops = append(ops, clientv3.OpDelete(key))
		}
	}
	cmps = append(cmps, noneBetween(from, clientv3.GetPrefixRangeEnd(prefix)))
	if valid >= MaxBrandSecrets {
		return fmt.Errorf("%w: brand %s has %d", ErrTooManySecrets, b.Brand, valid)
	}
	done, err := s.txn(ctx, cmps, ops, []clientv3.Op{clientv3.OpGet(brandKey)})
	if err != nil {
		return err
	}
	if !done.Succeeded {
		return missingOrConflict(done, fmt.Errorf("%w: %s", ErrBrandNotFound, b.Brand))
	}
	return nil
}

// BrandSecrets reads all secrets of a brand, in order of id, expired ones too;
// none for a brand that is not there.
func (s *Store) BrandSecrets(ctx context.Context, brand string) ([]BrandSecret, error) {
	resp, err := s.get(ctx, schema.SecretPrefix(brand), clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	secrets := make([]BrandSecret, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		b, err := secretFrom(brand, kv)
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, b)
	}
	return secrets, nil
}

// DeleteBrandSecret removes a secret. It returns ErrSecretNotFound.
func (s *Store) DeleteBrandSecret(ctx context.Context, brand, id string) error {
	return s.deleteOne(ctx, schema.SecretKey(brand, id), fmt.Errorf("%w: %s of brand %s", ErrSecretNotFound, id, brand))
}

func secretFrom(brand string, kv *mvccpb.KeyValue) (BrandSecret, error) {
	id := strings.TrimPrefix(string(kv.Key), schema.SecretPrefix(brand))
	var v schemapb.BrandSecret
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return BrandSecret{}, fmt.Errorf("%w: secret %s of brand %s: %w", schema.ErrCorrupt, id, brand, err)
	}
	if v.GetThreads() == 0 || v.GetThreads() > 255 || v.GetPasses() == 0 {
		return BrandSecret{}, fmt.Errorf("%w: secret %s of brand %s has no parameters", schema.ErrCorrupt, id, brand)
	}
	return BrandSecret{
		ID: id, Brand: brand, Hash: v.GetHash(), Salt: v.GetSalt(),
		Passes: v.GetPasses(), MemoryKiB: v.GetMemoryKib(), Threads: uint8(v.GetThreads()), //nolint:gosec // checked above
		Description: v.GetDescription(), CreateTime: schema.FromMicros(v.GetCreateTimeMicros()),
		ExpireTime: schema.FromMicros(v.GetExpireTimeMicros()), Creator: v.GetCreator(),
	}, nil
}
