package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// stream is a client whose streams go as the test wants.
type stream struct {
	*keystoretest.Fake

	refuse error // the call fails
	recv   func(ctx context.Context, n int) (*pb.RangeResponse, error)
}

func (s *stream) GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	return clientv3.NewKVFromKVClient(&streamRemote{stream: s}, nil).GetStream(ctx, key, opts...)
}

type streamRemote struct {
	pb.KVClient
	grpc.ServerStreamingClient[pb.RangeStreamResponse]

	stream *stream
	ctx    context.Context
	n      int
}

func (r *streamRemote) RangeStream(ctx context.Context, _ *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	r.ctx = ctx
	return r, r.stream.refuse
}

func (r *streamRemote) Recv() (*pb.RangeStreamResponse, error) {
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	resp, err := r.stream.recv(r.ctx, r.n)
	r.n++
	return &pb.RangeStreamResponse{RangeResponse: resp}, err
}

// What a stream brings, or its failure, is what a caller gets; an etcd without
// streams is read in pages.
func TestSnapshotByStream(t *testing.T) {
	const records = 3
	value, err := schema.PublicRecord{KeyType: dkimrecord.Ed25519, PublicKey: make([]byte, 32), TTL: 60}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	owner := func(i int) string { return fmt.Sprintf("s1-a%d._domainkey", i) }
	kv := func(i int) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(schema.RecordKey(string(zone), owner(i))), Value: value}
	}
	var all []string
	for i := range records {
		all = append(all, owner(i))
	}
	unimplemented := status.Error(codes.Unimplemented, "unknown method RangeStream")
	// after gives the first two records and then what fails.
	after := func(err error) func(context.Context, int) (*pb.RangeResponse, error) {
		return func(_ context.Context, n int) (*pb.RangeResponse, error) {
			if n > 0 {
				return nil, err
			}
			return &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{kv(0), kv(1)}}, nil
		}
	}
	tests := []struct {
		name   string
		refuse error
		recv   func(context.Context, int) (*pb.RangeResponse, error)
		want   []string
		err    error
	}{
		{name: "whole", want: all, recv: func(_ context.Context, n int) (*pb.RangeResponse, error) {
			resp := &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{kv(n)}}
			if n == records-1 {
				resp.Header = &pb.ResponseHeader{Revision: 9}
			}
			return resp, nil
		}},
		{name: "unknown call", refuse: unimplemented, want: all},
		{name: "unknown call, told late", recv: func(context.Context, int) (*pb.RangeResponse, error) { return nil, unimplemented }, want: all},
		{name: "compacted", recv: after(rpctypes.ErrGRPCCompacted), want: all[:2], err: keystore.ErrCompacted},
		{name: "connection lost", recv: after(status.Error(codes.Unavailable, "EOF")), want: all[:2], err: keystore.ErrUnavailable},
		{name: "cut short", recv: after(io.EOF), want: all[:2], err: keystore.ErrUnavailable},
		{name: "hangs", want: all[:1], err: keystore.ErrUnavailable, recv: func(ctx context.Context, n int) (*pb.RangeResponse, error) {
			if n > 0 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{kv(0)}}, nil
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &stream{Fake: keystoretest.NewFake(), refuse: tt.refuse, recv: tt.recv}
				store := keystore.New(s, time.Minute)
				if _, err := store.CreateZone(t.Context(), keystore.Zone{Name: zone, Apex: schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}}}); err != nil {
					t.Fatal(err)
				}
				for i := range records {
					if _, err := s.Put(t.Context(), string(kv(i).Key), string(value)); err != nil {
						t.Fatal(err)
					}
				}
				var got []string
				err := store.ZoneSnapshot(t.Context(), zone, func(keystore.Zone, int64) error { return nil },
					func(relative string, _ schema.PublicRecord) error {
						time.Sleep(50 * time.Second) // a slow reader is no slow etcd
						got = append(got, relative)
						return nil
					})
				if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
					t.Errorf("error %v, want %v", err, tt.err)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("records (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// pageless fails a test that reads a part of a range as a page.
type pageless struct {
	*clientv3.Client

	t *testing.T
}

func (p pageless) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if op := clientv3.OpGet(key, opts...); op.Limit() > 0 {
		p.t.Errorf("a page of %d from %q: etcd counts all that follows", op.Limit(), key)
	}
	return p.Client.Get(ctx, key, opts...)
}

// What dkimd asks every second takes no longer when there are more records, or more
// that is due.
func TestFirstKeysAreNoPage(t *testing.T) {
	s := keystore.New(pageless{newEtcd(t), t}, time.Minute)
	ctx := t.Context()
	apex := schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}}
	if _, err := s.CreateZone(ctx, keystore.Zone{Name: zone, Apex: apex}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateBrand(ctx, keystore.Brand{Name: "acme", Zone: zone}); err != nil {
		t.Fatal(err)
	}
	const domains = 40
	for i := range domains {
		name := dnsname.Domain(fmt.Sprintf("d%02d.example", i))
		if _, err := s.Apply(ctx, newDomain("acme", name, []dnsname.Selector{"s1", "s2"}, i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, limit := range []int{1, 9, 10, 11, domains, 100} {
		due, err := s.DueBefore(ctx, time.Unix(2_000_000_000, 0), limit)
		if err != nil || len(due) != min(limit, domains) || due[len(due)-1].Domain != dnsname.Domain(fmt.Sprintf("d%02d.example", len(due)-1)) {
			t.Errorf("limit %d: %d entries, %v", limit, len(due), err)
		}
	}
	if zones, more, err := s.Zones(ctx, "", 10); err != nil || more || len(zones) != 1 || zones[0].Name != zone {
		t.Errorf("zones %v, %t, %v", zones, more, err)
	}
}
