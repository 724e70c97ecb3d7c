package keystore

import (
	"context"
	"fmt"
	"hash/maphash"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// QuotaError says that a brand has as many domains as it may have.
type QuotaError struct {
	Brand string
	Limit int64
	Count int64 // may be over the limit, if that was lowered
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("brand %s has %d of at most %d domains of customers", e.Brand, e.Count, e.Limit)
}

// tally counts the domains of customers of a brand that has a quota. Its number
// is base and the version of one key, written by whoever makes a domain, less the
// version of another, written by whoever deletes one. Etcd counts versions by
// itself, so nobody has to read a number in order to raise it and two makers
// never are in each other's way; and it compares a version with the bound in the
// transaction that makes the domain, so the bound holds whoever else is at work.
// A number of deletions that was read too early makes the bound too low, never
// too high; whoever fails for that reads again.
//
// A nil tally is that of a brand without a quota.
type tally struct {
	brand      Brand
	made, gone *mvccpb.KeyValue // nil: not there
	base       int64
	valid      bool // the other fields count: somebody has begun to
}

// tallyFrom is the tally of b's domains.
func tallyFrom(b Brand, made, gone *mvccpb.KeyValue) (*tally, error) {
	t := &tally{brand: b, made: made, gone: gone}
	if made == nil || gone == nil {
		return t, nil
	}
	var v schemapb.Tally
	if err := proto.Unmarshal(made.Value, &v); err != nil {
		return nil, fmt.Errorf("%w: tally of brand %s: %w", schema.ErrCorrupt, b.Name, err)
	}
	t.base = v.GetBase()
	// What a restored backup has written was written once, see count.
	t.valid = made.Version > 1 && v.GetMadeCreateRevision() == made.CreateRevision && v.GetGoneCreateRevision() == gone.CreateRevision
	return t, nil
}

// number is how many domains there were when t was read.
func (t *tally) number() int64 { return t.base + t.made.Version - t.gone.Version }

// room is how many more there may be.
func (t *tally) room() int64 { return t.brand.MaxDomains - t.number() }

// add returns what makes a transaction that makes n domains count them, and fail
// if they were too many. n is 1 or more. It returns a *QuotaError if they are too
// many already.
func (t *tally) add(n int64) ([]clientv3.Cmp, []clientv3.Op, error) {
	if t == nil {
		return nil, nil, nil
	}
	if t.room() < n {
		return nil, nil, &QuotaError{Brand: t.brand.Name, Limit: t.brand.MaxDomains, Count: t.number()}
	}
	key := string(t.made.Key)
	cmps := []clientv3.Cmp{
		clientv3.Compare(clientv3.Value(key), "=", string(t.made.Value)),
		clientv3.Compare(clientv3.Version(key), "<", t.made.Version+t.room()-n+1),
	}
	if n == 1 {
		return cmps, []clientv3.Op{clientv3.OpPut(key, "", clientv3.WithIgnoreValue())}, nil
	}
	// A write raises the version by one, whatever it stands for.
	value, err := t.value(t.base + n - 1)
	if err != nil {
		return nil, nil, err
	}
	return cmps, []clientv3.Op{clientv3.OpPut(key, value)}, nil
}

func (t *tally) value(base int64) (string, error) {
	v, err := proto.Marshal(&schemapb.Tally{
		Base: base, MadeCreateRevision: t.made.CreateRevision, GoneCreateRevision: t.gone.CreateRevision,
	})
	if err != nil {
		return "", fmt.Errorf("tally of brand %s: %w", t.brand.Name, err)
	}
	return string(v), nil
}

// count takes the next of the two steps that make a tally valid. After the first
// one deletions are counted, and nothing is made until the second, so that the
// number is right whatever is deleted meanwhile. A step that somebody else took,
// or that a change of the brand makes void, is no error: who needs the tally reads
// it anew.
func (s *Store) count(ctx context.Context, t *tally) error {
	b := t.brand
	madeKey, goneKey := schema.TallyMadeKey(b.Name), schema.TallyGoneKey(b.Name)
	same := unchanged(schema.BrandKey(b.Name), b.Revision)
	if t.made == nil || t.gone == nil {
		cmps, ops := []clientv3.Cmp{same}, []clientv3.Op(nil)
		for key, kv := range map[string]*mvccpb.KeyValue{madeKey: t.made, goneKey: t.gone} {
			if kv == nil {
				cmps, ops = append(cmps, absent(key)), append(ops, clientv3.OpPut(key, ""))
			}
		}
		_, err := s.txn(ctx, cmps, ops, nil)
		return err
	}
	resp, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpGet(madeKey), clientv3.OpGet(goneKey),
		clientv3.OpGet(schema.DomainPrefix(b.Name), clientv3.WithPrefix(), clientv3.WithCountOnly()),
		clientv3.OpGet(schema.DomainKey(b.Name, string(DefaultDomainName(b))), clientv3.WithCountOnly()),
		clientv3.OpGet(schema.DomainKey(b.Name, string(SharedDomainName(b))), clientv3.WithCountOnly()),
	}, nil)
	if err != nil {
		return err
	}
	if t, err = tallyFrom(b, readAt(resp, 0), readAt(resp, 1)); err != nil || t.valid || t.made == nil || t.gone == nil {
		return err
	}
	found := func(i int) int64 { return resp.Responses[i].GetResponseRange().GetCount() }
	customers := found(2) - found(3) - found(4)
	value, err := t.value(customers - (t.made.Version + 1) + t.gone.Version)
	if err != nil {
		return err
	}
	_, err = s.txn(ctx, []clientv3.Cmp{same, unchanged(madeKey, t.made.ModRevision), clientv3.Compare(clientv3.CreateRevision(goneKey), "=", t.gone.CreateRevision)},
		[]clientv3.Op{clientv3.OpPut(madeKey, value)}, nil)
	return err
}

// enter waits until no other transaction of this Store that makes many domains of
// the brand is under way, of which all but one would fail. It returns the error of
// ctx.
func (s *Store) enter(ctx context.Context, brand string) (release func(), _ error) {
	door := s.counting[maphash.String(doorSeed, brand)%uint64(len(s.counting))]
	select {
	case door <- struct{}{}:
		return func() { <-door }, nil
	case <-ctx.Done():
		return nil, storeError(ctx, ctx.Err())
	}
}

var doorSeed = maphash.MakeSeed()

// countGone returns what makes a transaction that deletes d count that, if the
// domains of d's brand are counted.
func (s *Store) countGone(ctx context.Context, d Domain) ([]clientv3.Cmp, []clientv3.Op, error) {
	if d.Kind != rotation.Customer {
		return nil, nil, nil
	}
	key := schema.TallyGoneKey(d.Brand)
	resp, err := s.get(ctx, key, clientv3.WithKeysOnly())
	switch {
	case err != nil:
		return nil, nil, err
	case len(resp.Kvs) == 0:
		return []clientv3.Cmp{absent(key)}, nil, nil
	}
	return []clientv3.Cmp{present(key)}, []clientv3.Op{clientv3.OpPut(key, "", clientv3.WithIgnoreValue())}, nil
}

// tally is the tally of b's domains, from the two keys as they were read with b.
// begun is false if it does not count yet, and everything is to be read anew.
func (s *Store) tally(ctx context.Context, b Brand, made, gone *mvccpb.KeyValue) (_ *tally, begun bool, _ error) {
	if b.MaxDomains == 0 {
		return nil, true, nil
	}
	t, err := tallyFrom(b, made, gone)
	if err == nil && !t.valid {
		err = s.count(ctx, t)
		return nil, false, err
	}
	return t, true, err
}

// tallyOf reads the tally of a brand, nil for one without a quota. It returns
// ErrBrandNotFound, and ErrConflict if the brand changes all the time.
func (s *Store) tallyOf(ctx context.Context, brand string) (*tally, error) {
	for range labelRaces {
		resp, err := s.txn(ctx, nil, []clientv3.Op{
			clientv3.OpGet(schema.BrandKey(brand)), clientv3.OpGet(schema.TallyMadeKey(brand)), clientv3.OpGet(schema.TallyGoneKey(brand)),
		}, nil)
		if err != nil {
			return nil, err
		}
		kv := readAt(resp, 0)
		if kv == nil {
			return nil, fmt.Errorf("%w: %s", ErrBrandNotFound, brand)
		}
		b, err := brandFrom(kv)
		if err != nil {
			return nil, err
		}
		if t, begun, err := s.tally(ctx, b, readAt(resp, 1), readAt(resp, 2)); err != nil || begun {
			return t, err
		}
	}
	return nil, fmt.Errorf("%w: count of the domains of brand %s", ErrConflict, brand)
}

// CustomerDomains is how many domains of customers a brand with a quota has. It
// returns ErrBrandNotFound, and ErrConflict if the brand changes all the time.
func (s *Store) CustomerDomains(ctx context.Context, brand string) (int64, error) {
	t, err := s.tallyOf(ctx, brand)
	if err != nil || t == nil {
		return 0, err
	}
	return t.number(), nil
}
