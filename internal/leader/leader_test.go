package leader_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/leader"
)

const (
	prefix = "/test/leader"
	// long is for terms that end by what the test does, short for those that
	// end by themselves.
	long, short = time.Hour, time.Second
)

func start(t *testing.T) *embedetcd.Server {
	t.Helper()
	server, err := embedetcd.Start(t.Context(), embedetcd.Config{
		Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

func campaign(t *testing.T, client *clientv3.Client, id string, ttl time.Duration) *leader.Term {
	t.Helper()
	term, err := leader.Campaign(t.Context(), client, prefix, id, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

// write tries a transaction that compares the fence.
func write(t *testing.T, client *clientv3.Client, f leader.Fence) bool {
	t.Helper()
	resp, err := client.Txn(t.Context()).
		If(clientv3.Compare(clientv3.CreateRevision(f.Key), "=", f.CreateRevision)).
		Then(clientv3.OpPut("/test/written", "")).Commit()
	if err != nil {
		t.Fatal(err)
	}
	return resp.Succeeded
}

// candidates waits until n candidates stand.
func candidates(t *testing.T, client *clientv3.Client, n int) {
	t.Helper()
	changes := client.Watch(t.Context(), prefix, clientv3.WithPrefix())
	for {
		resp, err := client.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		if resp.Count == int64(n) {
			return
		}
		<-changes
	}
}

func TestOneLeads(t *testing.T) {
	client := start(t).Client()
	first := campaign(t, client, "first", long)
	type outcome struct {
		term *leader.Term
		err  error
	}
	second := make(chan outcome)
	go func() {
		term, err := leader.Campaign(t.Context(), client, prefix, "second", long)
		second <- outcome{term, err}
	}()
	candidates(t, client, 2)
	select {
	case got := <-second:
		t.Fatalf("a second candidate leads beside the first: %+v", got)
	case <-first.Done():
		t.Fatal("the first term is over")
	default:
	}
	if !write(t, client, first.Fence()) {
		t.Error("the leader may not write")
	}
	if err := first.Resign(); err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	got := <-second
	if got.err != nil {
		t.Fatal(got.err)
	}
	if write(t, client, first.Fence()) {
		t.Error("who has resigned may write")
	}
	if !write(t, client, got.term.Fence()) {
		t.Error("the new leader may not write")
	}
	if err := got.term.Resign(); err != nil {
		t.Fatal(err)
	}
	candidates(t, client, 0)
}

// A leader that etcd has given up: its writes fail at once, and it learns of it.
func TestLostLease(t *testing.T) {
	client := start(t).Client()
	term := campaign(t, client, "first", short)
	resp, err := client.Get(t.Context(), term.Fence().Key)
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "first" {
		t.Fatalf("the leader's key holds %v, %v", resp, err)
	}
	if _, err := client.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	if write(t, client, term.Fence()) {
		t.Error("a leader without a lease may write")
	}
	<-term.Done()
	next := campaign(t, client, "first", short)
	if next.Fence() == term.Fence() {
		t.Errorf("both terms have the fence %+v", next.Fence())
	}
	if err := next.Resign(); err != nil {
		t.Fatal(err)
	}
}

// A candidate that gives up stands no longer.
func TestCampaignEndsWithItsContext(t *testing.T) {
	client := start(t).Client()
	term := campaign(t, client, "first", long)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := leader.Campaign(ctx, client, prefix, "second", long)
		ended <- err
	}()
	candidates(t, client, 2)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	candidates(t, client, 1)
	if _, err := leader.Campaign(ctx, client, prefix, "third", long); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	candidates(t, client, 1)
	if !write(t, client, term.Fence()) {
		t.Error("the leader may not write")
	}
}

// A waiting candidate that loses its lease gives up instead of waiting on.
func TestCandidateLosesLease(t *testing.T) {
	client := start(t).Client()
	term := campaign(t, client, "first", long)
	ended := make(chan error)
	go func() {
		_, err := leader.Campaign(t.Context(), client, prefix, "second", short)
		ended <- err
	}()
	candidates(t, client, 2)
	resp, err := client.Get(t.Context(), prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		if string(kv.Key) == term.Fence().Key {
			continue
		}
		if _, err := client.Revoke(t.Context(), clientv3.LeaseID(kv.Lease)); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; !errors.Is(err, leader.ErrUnavailable) {
		t.Errorf("got %v, want %v", err, leader.ErrUnavailable)
	}
}

func TestEtcdStops(t *testing.T) {
	server := start(t)
	term := campaign(t, server.Client(), "first", short)
	server.Close()
	<-term.Done()
	if err := term.Resign(); err == nil {
		t.Error("resigned without etcd")
	}
	if _, err := leader.Campaign(t.Context(), server.Client(), prefix, "second", short); !errors.Is(err, leader.ErrUnavailable) {
		t.Errorf("got %v, want %v", err, leader.ErrUnavailable)
	}
}
