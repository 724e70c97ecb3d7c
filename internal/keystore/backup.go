package keystore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

var (
	// ErrNotEmpty says that a backup can only be restored where there is nothing.
	ErrNotEmpty = errors.New("there are brands already")
	// ErrIncomplete says that something was written beside a restore, or is
	// missing after it.
	ErrIncomplete = errors.New("the store does not hold what was restored")
)

// Entry is a key and its value, as they stand in etcd.
type Entry struct {
	Key   string
	Value []byte
}

// Backup calls each with all that the store holds, as it stood at a revision. Who
// leads is left out, as well as that a restore is running. It returns ErrCompacted
// when etcd forgot the revision before all was read.
func (s *Store) Backup(ctx context.Context, revision int64, each func(Entry) error) error {
	_, err := s.snapshot(ctx, schema.Root, revision, func(kv *mvccpb.KeyValue) error {
		if e := (Entry{string(kv.Key), kv.Value}); e.belongs() {
			return each(e)
		}
		return nil
	})
	return err
}

// belongs reports whether a backup holds the entry.
func (e Entry) belongs() bool {
	return strings.HasPrefix(e.Key, schema.Root) && !strings.HasPrefix(e.Key, schema.LeaderPrefix()) && e.Key != schema.RestoreKey()
}

// apex reports whether the entry is a zone.
func (e Entry) apex() bool {
	_, _, apex, ok := schema.ParsePubKey(e.Key)
	return ok && apex
}

// Restoring reports whether a backup is being restored, or was in part only.
func (s *Store) Restoring(ctx context.Context) (bool, error) {
	resp, err := s.get(ctx, schema.RestoreKey(), clientv3.WithKeysOnly())
	if err != nil {
		return false, err
	}
	return len(resp.Kvs) > 0, nil
}

// Restoration puts a backup into a store that holds nothing. It is not safe for
// concurrent use.
type Restoration struct {
	store    *Store
	backup   RestoreInfo
	revision int64   // of the mark
	apexes   []Entry // kept back to the end
	entries  int64   // written so far
	batch    []Entry
	octets   int
}

// RestoreInfo says which backup is restored.
type RestoreInfo struct {
	Time     time.Time
	Revision int64 // of the store it was made of
}

const (
	// restoreAtOnce and restoreOctets bound one transaction of a restore.
	restoreAtOnce = 120
	restoreOctets = 512 << 10
	// wipeAtOnce is how many keys are deleted at a time.
	wipeAtOnce = 5000
	// SerialReserve is how far serials go beyond those of the backup's revision at
	// once: for the changes that were made after the backup and are lost.
	// It is well below 2^31 (RFC 1982 §3.2).
	SerialReserve = 1 << 28
)

// Restore begins a restore: from now on every Gated client is shut, for good if
// Finish is not reached, until a restore is begun again and reaches it. A store
// in which there are brands, or any of their keys, is left as it is, with
// ErrNotEmpty; zones, and what a restore that was cut short has left, are deleted.
// settle is waited for before that, until calls of others that have passed the gate
// have ended.
func (s *Store) Restore(ctx context.Context, backup RestoreInfo, settle time.Duration) (*Restoration, error) {
	value, err := proto.Marshal(&schemapb.Restore{StartMicros: schema.Micros(time.Now()), BackupMicros: schema.Micros(backup.Time)})
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	put := []clientv3.Op{clientv3.OpPut(schema.RestoreKey(), string(value))}
	resp, err := s.txn(ctx, append(nothingThere(), absent(schema.RestoreKey())), put, []clientv3.Op{clientv3.OpGet(schema.RestoreKey())})
	if err != nil {
		return nil, err
	}
	again := false
	if !resp.Succeeded {
		if again = readAt(resp, 0) != nil; !again {
			return nil, ErrNotEmpty
		}
		if resp, err = s.txn(ctx, []clientv3.Cmp{present(schema.RestoreKey())}, put, nil); err != nil {
			return nil, err
		}
		if !resp.Succeeded {
			return nil, fmt.Errorf("%w: another restore has ended", ErrConflict)
		}
	}
	r := &Restoration{store: s, backup: backup, revision: resp.Header.Revision}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !again {
		// Somebody may have made a brand after all.
		if err := r.txn(ctx, nothingThere(), nil); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrNotEmpty, err), r.abandon(ctx))
		}
	}
	return r, r.wipe(ctx)
}

// abandon opens the gate again, before anything was deleted.
func (r *Restoration) abandon(ctx context.Context) error {
	return r.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(schema.RestoreKey())})
}

// nothingThere compares with there being nothing that a restore would destroy.
func nothingThere() []clientv3.Cmp {
	return []clientv3.Cmp{
		noneUnder(schema.BrandPrefix()), noneUnder(schema.AllDomainsPrefix()), noneUnder(schema.DataKeyPrefix("")),
		noneUnder(schema.AllSealedKeysPrefix()), noneUnder(schema.RetainedPrefix("")),
	}
}

// txn writes if this restore is still the one that runs.
func (r *Restoration) txn(ctx context.Context, cmps []clientv3.Cmp, ops []clientv3.Op) error {
	resp, err := r.store.txn(ctx, append(slices.Clone(cmps), unchanged(schema.RestoreKey(), r.revision)), ops, nil)
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return fmt.Errorf("%w: another restore runs, or somebody writes to etcd", ErrConflict)
	}
	return nil
}

// wipe deletes all there is.
func (r *Restoration) wipe(ctx context.Context) error {
	for from := schema.Root; ; {
		resp, err := r.store.get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(schema.Root)), clientv3.WithLimit(wipeAtOnce), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return nil
		}
		// In runs, around what stays.
		var ops []clientv3.Op
		first := ""
		for _, kv := range resp.Kvs {
			switch e := (Entry{Key: string(kv.Key)}); {
			case e.belongs() && first == "":
				first = e.Key
			case !e.belongs() && first != "":
				ops = append(ops, clientv3.OpDelete(first, clientv3.WithRange(e.Key)))
				first = ""
			}
		}
		last := string(resp.Kvs[len(resp.Kvs)-1].Key)
		if first != "" {
			ops = append(ops, clientv3.OpDelete(first, clientv3.WithRange(last+"\x00")))
		}
		for ops := range slices.Chunk(ops, maxTxnOps) {
			if err := r.txn(ctx, nil, ops); err != nil {
				return err
			}
		}
		from = last + "\x00"
	}
}

// Add writes entries, some time before Finish at the latest. Those that do not
// belong in a backup are an error, as are keys that are given twice.
func (r *Restoration) Add(ctx context.Context, entries ...Entry) error {
	for _, e := range entries {
		if !e.belongs() {
			return fmt.Errorf("%w: key %q belongs in no backup", schema.ErrCorrupt, e.Key)
		}
		if e.apex() {
			r.apexes = append(r.apexes, e)
			continue
		}
		var err error
		if e, err = e.moved(); err != nil {
			return err
		}
		if len(r.batch) >= restoreAtOnce || r.octets+len(e.Value) > restoreOctets {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
		r.batch = append(r.batch, e)
		r.octets += len(e.Key) + len(e.Value)
	}
	return nil
}

func (r *Restoration) flush(ctx context.Context) error {
	if len(r.batch) == 0 {
		return nil
	}
	cmps, ops := make([]clientv3.Cmp, len(r.batch)), make([]clientv3.Op, len(r.batch))
	for i, e := range r.batch {
		cmps[i], ops[i] = absent(e.Key), clientv3.OpPut(e.Key, string(e.Value))
	}
	if err := r.txn(ctx, cmps, ops); err != nil {
		return err
	}
	r.entries += int64(len(r.batch))
	r.batch, r.octets = r.batch[:0], 0
	return nil
}

// Finish writes the rest. With the zones, last of all and in one transaction, it
// opens the gate: name servers see nothing of a zone before. It returns the number
// of entries, and the revision from which on all is there. It returns
// ErrIncomplete if the store does not hold just what was restored.
func (r *Restoration) Finish(ctx context.Context) (entries, revision int64, err error) {
	if err := r.flush(ctx); err != nil {
		return 0, 0, err
	}
	if err := r.complete(ctx); err != nil {
		return 0, 0, err
	}
	if len(r.apexes) >= maxTxnOps {
		return 0, 0, fmt.Errorf("%d zones cannot be restored in one transaction, only %d", len(r.apexes), maxTxnOps-1)
	}
	ops := []clientv3.Op{clientv3.OpDelete(schema.RestoreKey())}
	for _, e := range r.apexes {
		if e, err = r.apex(e); err != nil {
			return 0, 0, err
		}
		ops = append(ops, clientv3.OpPut(e.Key, string(e.Value)))
	}
	if err := r.txn(ctx, nil, ops); err != nil {
		return 0, 0, err
	}
	revision, err = r.store.Revision(ctx)
	return r.entries + int64(len(r.apexes)), revision, err
}

// complete compares the number of keys in the store with that of the entries.
func (r *Restoration) complete(ctx context.Context) error {
	count := func(prefix string) (int64, error) {
		resp, err := r.store.get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return resp.Count, nil
	}
	all, err := count(schema.Root)
	if err != nil {
		return err
	}
	leaders, err := count(schema.LeaderPrefix())
	if err != nil {
		return err
	}
	if mine := all - leaders - 1; mine != r.entries { // 1: the mark
		return fmt.Errorf("%w: %d keys are there, %d were written; somebody else writes to etcd", ErrIncomplete, mine, r.entries)
	}
	return nil
}

// apex is a zone as it is to stand here, where revisions are others: its serial
// goes on beyond the one that it had, and nothing that was held elsewhere is
// accepted.
func (r *Restoration) apex(e Entry) (Entry, error) {
	a, err := schema.UnmarshalApex(e.Value)
	if err != nil {
		return e, fmt.Errorf("zone %q: %w", e.Key, err)
	}
	a.AcceptDeletionsRevision = 0
	a.SerialOffset += uint32(r.backup.Revision) + SerialReserve //nolint:gosec // the low 32 bits are meant
	if e.Value, err = a.Marshal(); err != nil {
		return e, fmt.Errorf("zone %q: %w", e.Key, err)
	}
	return e, nil
}

// moved is an entry as it is to stand where revisions are others.
func (e Entry) moved() (Entry, error) {
	if e.Key != schema.KeyEncryptionRotationKey() {
		return e, nil
	}
	// Whatever data keys there are then, they are from before the rotation.
	var v schemapb.KeyEncryptionRotation
	if err := proto.Unmarshal(e.Value, &v); err != nil {
		return e, fmt.Errorf("%w: rotation of the key-encryption key: %w", schema.ErrCorrupt, err)
	}
	v.StartRevision, v.Worker = math.MaxInt64, ""
	var err error
	if e.Value, err = proto.Marshal(&v); err != nil {
		return e, fmt.Errorf("rotation of the key-encryption key: %w", err)
	}
	return e, nil
}
