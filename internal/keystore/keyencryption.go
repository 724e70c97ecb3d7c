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

// RotationPhase is how far a rotation of the key-encryption key is. The numbers
// are stored.
type RotationPhase uint32

// The phases, in their order.
const (
	// PhaseNone: there was no rotation yet.
	PhaseNone RotationPhase = iota
	// PhaseWrap: data keys are wrapped anew.
	PhaseWrap
	// PhaseDataKeys: brands get new data keys.
	PhaseDataKeys
	// PhaseSeal: private keys are sealed anew.
	PhaseSeal
	// PhaseSettle: the same once more, since others may have gone on with the data
	// keys before for a short time.
	PhaseSettle
	// PhaseDone: all is done.
	PhaseDone
	// PhaseFailed: all is done that could be; Failures says how much could not.
	PhaseFailed
)

// Over reports whether nothing is to be done any more.
func (p RotationPhase) Over() bool { return p == PhaseNone || p >= PhaseDone }

// KeyEncryptionRotation is a rotation of the key-encryption key: all data keys
// are wrapped anew, and with DataKeys there are new ones, too, and all private
// keys are sealed anew. Times are kept to the microsecond.
type KeyEncryptionRotation struct {
	Label         string // of the key-encryption key that wraps from now on
	DataKeys      bool
	Phase         RotationPhase
	StartTime     time.Time
	UpdateTime    time.Time
	PhaseTime     time.Time // when the phase began
	StartRevision int64     // store revision before which it began
	// Cursor is how far the phase is: all up to it is done.
	Cursor string
	// What was done so far.
	DataKeysWrapped, DataKeysMade, PrivateKeysSealed uint64
	// Failures is how much could not be done; Error is the first such failure, or,
	// before the end, why it does not go on.
	Failures uint64
	Error    string
	Worker   string // the process that works on it
	Revision int64  // store revision it was read or written at; 0: there is none
}

// KeyEncryptionMark reads which key-encryption key wraps data keys: its label and
// a text that it wrapped. revision is 0 when that is not noted.
func (s *Store) KeyEncryptionMark(ctx context.Context) (label string, check []byte, revision int64, err error) {
	v, kv, err := s.keyEncryption(ctx)
	if err != nil || kv == nil {
		return "", nil, 0, err
	}
	return v.GetLabel(), v.GetCheck(), kv.ModRevision, nil
}

// KeyEncryptionSince is since when the present key-encryption key wraps; zero if
// that is not noted.
func (s *Store) KeyEncryptionSince(ctx context.Context) (time.Time, error) {
	v, kv, err := s.keyEncryption(ctx)
	if err != nil || kv == nil {
		return time.Time{}, err
	}
	return schema.FromMicros(v.GetSinceMicros()), nil
}

func (s *Store) keyEncryption(ctx context.Context) (*schemapb.KeyEncryption, *mvccpb.KeyValue, error) {
	resp, err := s.get(ctx, schema.KeyEncryptionKey())
	if err != nil || len(resp.Kvs) == 0 {
		return nil, nil, err
	}
	v := &schemapb.KeyEncryption{}
	if err := proto.Unmarshal(resp.Kvs[0].Value, v); err != nil {
		return nil, nil, fmt.Errorf("%w: key-encryption key: %w", schema.ErrCorrupt, err)
	}
	return v, resp.Kvs[0], nil
}

// SetKeyEncryptionMark notes which key-encryption key wraps, if what is noted is
// still of the given revision (0: nothing) and, with unused, there is no data key,
// and reports whether it did.
func (s *Store) SetKeyEncryptionMark(ctx context.Context, label string, check []byte, revision int64, unused bool) (set bool, err error) {
	put, err := markOp(label, check, time.Now())
	if err != nil {
		return false, err
	}
	cmps := []clientv3.Cmp{unchanged(schema.KeyEncryptionKey(), revision)}
	if unused {
		cmps = append(cmps, noneUnder(schema.DataKeyPrefix("")))
	}
	resp, err := s.txn(ctx, cmps, []clientv3.Op{put}, nil)
	if err != nil {
		return false, err
	}
	return resp.Succeeded, nil
}

func markOp(label string, check []byte, now time.Time) (clientv3.Op, error) {
	value, err := proto.Marshal(&schemapb.KeyEncryption{Label: label, Check: check, SinceMicros: schema.Micros(now)})
	if err != nil {
		return clientv3.Op{}, fmt.Errorf("key-encryption key %s: %w", label, err)
	}
	return clientv3.OpPut(schema.KeyEncryptionKey(), string(value)), nil
}

// KeyEncryptionRotation reads the last rotation of the key-encryption key. Without
// one it has Revision 0.
func (s *Store) KeyEncryptionRotation(ctx context.Context) (KeyEncryptionRotation, error) {
	resp, err := s.get(ctx, schema.KeyEncryptionRotationKey())
	if err != nil || len(resp.Kvs) == 0 {
		return KeyEncryptionRotation{}, err
	}
	var v schemapb.KeyEncryptionRotation
	if err := proto.Unmarshal(resp.Kvs[0].Value, &v); err != nil {
		return KeyEncryptionRotation{}, fmt.Errorf("%w: rotation of the key-encryption key: %w", schema.ErrCorrupt, err)
	}
	return KeyEncryptionRotation{
		Label: v.GetLabel(), DataKeys: v.GetDataKeys(), Phase: RotationPhase(v.GetPhase()),
		StartTime: schema.FromMicros(v.GetStartMicros()), UpdateTime: schema.FromMicros(v.GetUpdateMicros()),
		PhaseTime: schema.FromMicros(v.GetPhaseMicros()), StartRevision: v.GetStartRevision(), Cursor: v.GetCursor(),
		DataKeysWrapped: v.GetDataKeysWrapped(), DataKeysMade: v.GetDataKeysMade(), PrivateKeysSealed: v.GetPrivateKeysSealed(),
		Failures: v.GetFailures(), Error: v.GetError(), Worker: v.GetWorker(), Revision: resp.Kvs[0].ModRevision,
	}, nil
}

// BeginKeyEncryptionRotation starts a rotation in the place of the last one and
// makes r.Label the key-encryption key that wraps, of which check was wrapped, in
// one transaction. r.Revision is that of the last rotation, mark that of the
// note which key wraps; if they are no longer, it returns ErrConflict.
func (s *Store) BeginKeyEncryptionRotation(ctx context.Context, r KeyEncryptionRotation, check []byte, mark int64) (KeyEncryptionRotation, error) {
	put, err := markOp(r.Label, check, r.StartTime)
	if err != nil {
		return r, err
	}
	return s.saveRotation(ctx, r, []clientv3.Cmp{unchanged(schema.KeyEncryptionKey(), mark)}, put)
}

// SaveKeyEncryptionRotation stores how far a rotation is. It returns ErrConflict
// if somebody else did since it was read.
func (s *Store) SaveKeyEncryptionRotation(ctx context.Context, r KeyEncryptionRotation) (KeyEncryptionRotation, error) {
	return s.saveRotation(ctx, r, nil)
}

func (s *Store) saveRotation(ctx context.Context, r KeyEncryptionRotation, cmps []clientv3.Cmp, ops ...clientv3.Op) (KeyEncryptionRotation, error) {
	key := schema.KeyEncryptionRotationKey()
	value, err := proto.Marshal(&schemapb.KeyEncryptionRotation{
		Label: r.Label, DataKeys: r.DataKeys, Phase: uint32(r.Phase),
		StartMicros: schema.Micros(r.StartTime), UpdateMicros: schema.Micros(r.UpdateTime), PhaseMicros: schema.Micros(r.PhaseTime),
		StartRevision: r.StartRevision, Cursor: r.Cursor,
		DataKeysWrapped: r.DataKeysWrapped, DataKeysMade: r.DataKeysMade, PrivateKeysSealed: r.PrivateKeysSealed,
		Failures: r.Failures, Error: r.Error, Worker: r.Worker,
	})
	if err != nil {
		return r, fmt.Errorf("rotation of the key-encryption key: %w", err)
	}
	resp, err := s.txn(ctx, append(cmps, unchanged(key, r.Revision)), append(ops, clientv3.OpPut(key, string(value))), nil)
	if err != nil {
		return r, err
	}
	if !resp.Succeeded {
		return r, fmt.Errorf("%w: rotation of the key-encryption key", ErrConflict)
	}
	r.Revision = resp.Header.Revision
	return r, nil
}

// SealedKey is a sealed private key, of a key that there is or of a retained one.
type SealedKey struct {
	Brand, Domain, KeyID string
	Sealed               []byte

	key      string
	revision int64
	retained *schemapb.RetainedKey // of a retained key
}

// Cursor is what SealedKeys takes to go on after the key.
func (k SealedKey) Cursor() string { return k.key }

// SealedKeys lists up to limit sealed private keys of all brands that follow after
// a cursor, "" for the first ones.
func (s *Store) SealedKeys(ctx context.Context, after string, limit int) (keys []SealedKey, more bool, err error) {
	prefixes := []string{schema.AllSealedKeysPrefix(), schema.RetainedPrefix("")} // in order
	for i, prefix := range prefixes {
		rest, within := strings.CutPrefix(after, prefix)
		if !within && after > prefix {
			continue // all of these are done
		}
		if !within {
			rest = ""
		}
		kvs, more, err := s.page(ctx, prefix, rest, limit)
		if err != nil {
			return nil, false, err
		}
		for _, kv := range kvs {
			k, err := sealedFrom(kv)
			if err != nil {
				return nil, false, err
			}
			keys = append(keys, k)
		}
		if more || len(keys) > 0 {
			return keys, more || i+1 < len(prefixes), nil
		}
	}
	return nil, false, nil
}

func sealedFrom(kv *mvccpb.KeyValue) (SealedKey, error) {
	k := SealedKey{key: string(kv.Key), revision: kv.ModRevision, Sealed: kv.Value}
	var ok bool
	if k.Brand, k.Domain, k.KeyID, ok = schema.ParseSealedKeyKey(k.key); ok {
		return k, nil
	}
	if k.Brand, k.Domain, k.KeyID, ok = schema.ParseRetainedKey(k.key); !ok {
		return k, fmt.Errorf("%w: %q is no sealed key's key", schema.ErrCorrupt, kv.Key)
	}
	k.retained = &schemapb.RetainedKey{}
	if err := proto.Unmarshal(kv.Value, k.retained); err != nil {
		return k, fmt.Errorf("%w: retained key %s of %s: %w", schema.ErrCorrupt, k.KeyID, k.Domain, err)
	}
	k.Sealed = k.retained.GetSealed()
	return k, nil
}

// maxReseal is how many keys one transaction of Reseal writes.
const maxReseal = 100

// Reseal stores keys that are sealed anew, each unless it was deleted or changed
// since it was read, and returns how many it stored.
func (s *Store) Reseal(ctx context.Context, keys []SealedKey) (stored int, err error) {
	for len(keys) > 0 {
		n := min(len(keys), maxReseal)
		done, err := s.reseal(ctx, keys[:n])
		stored += done
		if err != nil {
			return stored, err
		}
		keys = keys[n:]
	}
	return stored, nil
}

func (s *Store) reseal(ctx context.Context, keys []SealedKey) (int, error) {
	cmps, ops := make([]clientv3.Cmp, len(keys)), make([]clientv3.Op, len(keys))
	for i, k := range keys {
		if k.revision == 0 {
			return 0, errors.New("a key that was not read cannot be sealed anew")
		}
		value := k.Sealed
		if k.retained != nil {
			v := proto.CloneOf(k.retained)
			v.Sealed = k.Sealed
			var err error
			if value, err = proto.Marshal(v); err != nil {
				return 0, fmt.Errorf("retained key %s of %s: %w", k.KeyID, k.Domain, err)
			}
		}
		cmps[i], ops[i] = unchanged(k.key, k.revision), clientv3.OpPut(k.key, string(value))
	}
	resp, err := s.txn(ctx, cmps, ops, nil)
	switch {
	case err != nil:
		return 0, err
	case resp.Succeeded:
		return len(keys), nil
	case len(keys) == 1:
		return 0, nil
	}
	// One of them at least has changed: the others are in one of the halves.
	half := len(keys) / 2
	first, err := s.reseal(ctx, keys[:half])
	if err != nil {
		return first, err
	}
	second, err := s.reseal(ctx, keys[half:])
	return first + second, err
}
