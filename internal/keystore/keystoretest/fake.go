// Package keystoretest has an in-memory stand-in for etcd and the conformance
// suite that it and a real etcd both pass.
package keystoretest

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Fake keeps keys in memory with etcd's semantics, as far as keystore needs
// them: revisions, transactions, ranges at a past revision, watches and
// compaction. It is safe for concurrent use.
type Fake struct {
	clientv3.KV

	mu        sync.Mutex
	revision  int64
	compacted int64
	live      map[string]*mvccpb.KeyValue
	history   []*clientv3.Event // of all revisions, in order
	changed   chan struct{}     // closed and replaced at each change
	asked     int               // how often RequestProgress was called
	fail      error
}

// NewFake returns an empty Fake. Like a new etcd it stands at revision 1.
func NewFake() *Fake {
	f := &Fake{revision: 1, live: make(map[string]*mvccpb.KeyValue), changed: make(chan struct{})}
	f.KV = clientv3.NewKVFromKVClient(remote{f}, nil)
	return f
}

// SetError makes every call fail with err until it is set to nil; running
// watches are not touched.
func (f *Fake) SetError(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Dump returns all keys and values.
func (f *Fake) Dump() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]string, len(f.live))
	for k, kv := range f.live {
		all[k] = string(kv.Value)
	}
	return all
}

// Watch sends changes as etcd does, one response per revision.
func (f *Fake) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpGet(key, opts...)
	out := make(chan clientv3.WatchResponse)
	go f.watch(ctx, op.KeyBytes(), op.RangeBytes(), op.Rev(), out)
	return out
}

// RequestProgress makes every watch say to which revision it has sent all
// changes, once it has.
func (f *Fake) RequestProgress(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.asked++
	f.wake()
	return nil
}

func (f *Fake) watch(ctx context.Context, from, end []byte, next int64, out chan<- clientv3.WatchResponse) {
	defer close(out)
	f.mu.Lock()
	told := f.asked
	f.mu.Unlock()
	for {
		f.mu.Lock()
		if next == 0 {
			next = f.revision + 1
		}
		resp := clientv3.WatchResponse{Header: &pb.ResponseHeader{Revision: f.revision}}
		if next < f.compacted {
			resp.CompactRevision, resp.Canceled = f.compacted, true
		} else {
			for _, ev := range f.history {
				if ev.Kv.ModRevision < next || !inRange(ev.Kv.Key, from, end) {
					continue
				}
				if len(resp.Events) > 0 && resp.Events[0].Kv.ModRevision != ev.Kv.ModRevision {
					break
				}
				resp.Events = append(resp.Events, ev)
			}
		}
		changed := f.changed
		progress := len(resp.Events) == 0 && !resp.Canceled && told != f.asked
		if progress {
			told = f.asked
		}
		f.mu.Unlock()

		if len(resp.Events) == 0 && !resp.Canceled && !progress {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			continue
		}
		if len(resp.Events) > 0 {
			next = resp.Events[0].Kv.ModRevision + 1
		}
		select {
		case out <- resp:
		case <-ctx.Done():
			return
		}
		if resp.Canceled {
			return
		}
	}
}

func (f *Fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// at returns the keys in a range as they stood at a revision, in key order.
func (f *Fake) at(from, end []byte, revision int64) ([]*mvccpb.KeyValue, error) {
	live := f.live
	switch {
	case revision > f.revision:
		return nil, rpctypes.ErrGRPCFutureRev
	case revision > 0 && revision < f.compacted:
		return nil, rpctypes.ErrGRPCCompacted
	case len(end) == 0 && (revision == 0 || revision == f.revision):
		if kv := live[string(from)]; kv != nil {
			return []*mvccpb.KeyValue{kv}, nil
		}
		return nil, nil
	case revision > 0 && revision < f.revision:
		live = make(map[string]*mvccpb.KeyValue)
		for _, ev := range f.history {
			if ev.Kv.ModRevision > revision {
				break
			}
			if ev.Type == clientv3.EventTypeDelete {
				delete(live, string(ev.Kv.Key))
			} else {
				live[string(ev.Kv.Key)] = ev.Kv
			}
		}
	}
	var kvs []*mvccpb.KeyValue
	for _, kv := range live {
		if inRange(kv.Key, from, end) {
			kvs = append(kvs, kv)
		}
	}
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return kvs, nil
}

func inRange(key, from, end []byte) bool {
	if len(end) == 0 {
		return bytes.Equal(key, from)
	}
	return bytes.Compare(key, from) >= 0 && (bytes.Equal(end, []byte{0}) || bytes.Compare(key, end) < 0)
}

func (f *Fake) readRange(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	kvs, err := f.at(r.Key, r.RangeEnd, r.Revision)
	if err != nil {
		return nil, err
	}
	if r.SortOrder == pb.RangeRequest_DESCEND {
		slices.Reverse(kvs)
	}
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: f.revision}, Count: int64(len(kvs))}
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs, resp.More = kvs[:r.Limit], true
	}
	for _, kv := range kvs {
		kv = proto.CloneOf(kv)
		if r.KeysOnly {
			kv.Value = nil
		}
		resp.Kvs = append(resp.Kvs, kv)
	}
	return resp, nil
}

func (f *Fake) holds(c *pb.Compare) bool {
	kvs, _ := f.at(c.Key, c.RangeEnd, 0)
	if len(kvs) == 0 {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		kvs = []*mvccpb.KeyValue{{}}
	}
	for _, kv := range kvs {
		var sign int
		switch c.Target {
		case pb.Compare_VALUE:
			sign = bytes.Compare(kv.Value, c.GetValue())
		case pb.Compare_CREATE:
			sign = compare(kv.CreateRevision, c.GetCreateRevision())
		case pb.Compare_MOD:
			sign = compare(kv.ModRevision, c.GetModRevision())
		case pb.Compare_VERSION:
			sign = compare(kv.Version, c.GetVersion())
		}
		var ok bool
		switch c.Result {
		case pb.Compare_EQUAL:
			ok = sign == 0
		case pb.Compare_NOT_EQUAL:
			ok = sign != 0
		case pb.Compare_GREATER:
			ok = sign > 0
		case pb.Compare_LESS:
			ok = sign < 0
		}
		if !ok {
			return false
		}
	}
	return true
}

func compare(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (f *Fake) put(r *pb.PutRequest, revision int64) {
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, CreateRevision: revision, ModRevision: revision, Version: 1}
	if old := f.live[string(r.Key)]; old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		if r.IgnoreValue {
			kv.Value = old.Value
		}
	}
	f.live[string(r.Key)] = kv
	f.history = append(f.history, &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv})
}

func (f *Fake) deleteRange(r *pb.DeleteRangeRequest, revision int64) int64 {
	kvs, _ := f.at(r.Key, r.RangeEnd, 0)
	for _, kv := range kvs {
		delete(f.live, string(kv.Key))
		gone := &mvccpb.KeyValue{Key: kv.Key, ModRevision: revision}
		f.history = append(f.history, &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: gone})
	}
	return int64(len(kvs))
}

// check refuses what etcd refuses whatever it holds: a missing key, too many
// operations, a key written twice in one transaction.
func check(r *pb.TxnRequest) error {
	const maxTxnOps = 128
	if len(r.Compare) > maxTxnOps || len(r.Success) > maxTxnOps || len(r.Failure) > maxTxnOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if len(op.GetRequestPut().GetKey())+len(op.GetRequestRange().GetKey())+len(op.GetRequestDeleteRange().GetKey()) == 0 {
				return rpctypes.ErrGRPCEmptyKey
			}
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		written := make(map[string]bool)
		for _, op := range ops {
			put := op.GetRequestPut()
			if put == nil {
				continue
			}
			if written[string(put.Key)] {
				return rpctypes.ErrGRPCDuplicateKey
			}
			written[string(put.Key)] = true
			for _, other := range ops {
				if del := other.GetRequestDeleteRange(); del != nil && inRange(put.Key, del.Key, del.RangeEnd) {
					return rpctypes.ErrGRPCDuplicateKey
				}
			}
		}
	}
	return nil
}

// checkOps refuses, before anything is written, operations that cannot be
// carried out on what the Fake holds.
func (f *Fake) checkOps(ops []*pb.RequestOp) error {
	for _, op := range ops {
		if put := op.GetRequestPut(); put != nil && put.IgnoreValue && f.live[string(put.Key)] == nil {
			return rpctypes.ErrGRPCKeyNotFound
		}
		if r := op.GetRequestRange(); r != nil {
			if _, err := f.at(r.Key, nil, r.Revision); err != nil {
				return err
			}
		}
	}
	return nil
}

// remote is the Fake as clientv3's wrapper of a KV service sees it.
type remote struct{ *Fake }

// enter locks the Fake for one call, unless the call is to fail.
func (r remote) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	r.mu.Lock()
	if r.fail != nil {
		defer r.mu.Unlock()
		return r.fail
	}
	return nil
}

func (r remote) Range(ctx context.Context, in *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	if len(in.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	return r.readRange(in)
}

func (r remote) Txn(ctx context.Context, in *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	if err := check(in); err != nil {
		return nil, err
	}
	resp := &pb.TxnResponse{Succeeded: true}
	ops := in.Success
	for _, c := range in.Compare {
		if !r.holds(c) {
			resp.Succeeded, ops = false, in.Failure
			break
		}
	}
	if err := r.checkOps(ops); err != nil {
		return nil, err
	}
	next, wrote := r.revision+1, false
	for _, op := range ops {
		switch {
		case op.GetRequestRange() != nil:
			got, err := r.readRange(op.GetRequestRange())
			if err != nil {
				return nil, err
			}
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: got}})
		case op.GetRequestPut() != nil:
			r.put(op.GetRequestPut(), next)
			wrote = true
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}})
		case op.GetRequestDeleteRange() != nil:
			n := r.deleteRange(op.GetRequestDeleteRange(), next)
			wrote = wrote || n > 0
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: n}}})
		}
	}
	if wrote {
		r.revision = next
		r.wake()
	}
	resp.Header = &pb.ResponseHeader{Revision: r.revision}
	return resp, nil
}

func (r remote) Put(ctx context.Context, in *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	resp, err := r.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: in}}}})
	if err != nil {
		return nil, err
	}
	return &pb.PutResponse{Header: resp.Header}, nil
}

func (r remote) DeleteRange(ctx context.Context, in *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	resp, err := r.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: in}}}})
	if err != nil {
		return nil, err
	}
	deleted := resp.Responses[0].GetResponseDeleteRange()
	deleted.Header = resp.Header
	return deleted, nil
}

// RangeStream answers in chunks, each read when its turn comes, of which only
// the last has a header, as etcd does.
func (r remote) RangeStream(ctx context.Context, in *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	return &chunks{remote: r, ctx: ctx, next: proto.CloneOf(in)}, nil
}

// chunks is the rest of a stream.
type chunks struct {
	grpc.ServerStreamingClient[pb.RangeStreamResponse]

	remote remote
	ctx    context.Context
	next   *pb.RangeRequest // nil at the end
}

func (c *chunks) Recv() (*pb.RangeStreamResponse, error) {
	if c.next == nil {
		return nil, io.EOF
	}
	c.next.Limit = 100
	resp, err := c.remote.Range(c.ctx, c.next)
	if err != nil {
		return nil, err
	}
	if c.next.Revision == 0 {
		c.next.Revision = resp.Header.Revision
	}
	if !resp.More {
		resp.Header.Revision = c.next.Revision
		c.next = nil
		return &pb.RangeStreamResponse{RangeResponse: resp}, nil
	}
	c.next.Key = append(bytes.Clone(resp.Kvs[len(resp.Kvs)-1].Key), 0)
	return &pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Kvs: resp.Kvs}}, nil
}

func (r remote) Compact(ctx context.Context, in *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	switch {
	case in.Revision <= r.compacted:
		return nil, rpctypes.ErrGRPCCompacted
	case in.Revision > r.revision:
		return nil, rpctypes.ErrGRPCFutureRev
	}
	r.compacted = in.Revision
	r.wake()
	return &pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: r.revision}}, nil
}
