package keystoretest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
)

// Random transactions, reads, watches and compactions have the same results on
// the Fake and on etcd. etcd's revisions differ by a constant, since it is not
// new for each run.
func TestFakeIsLikeEtcd(t *testing.T) {
	server, err := embedetcd.Start(t.Context(), embedetcd.Config{
		Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	etcd := server.Client()

	rapid.Check(t, func(t *rapid.T) {
		// Past whatever an earlier run compacted.
		if _, err := etcd.Put(context.Background(), "k", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.Delete(context.Background(), "\x00", clientv3.WithFromKey()); err != nil {
			t.Fatal(err)
		}
		fake := keystoretest.NewFake()
		p := &pair{fake: fake, etcd: etcd, shift: revision(t, etcd) - revision(t, fake)}
		first := revision(t, fake) + 1
		t.Repeat(map[string]func(*rapid.T){
			"txn":   p.txn,
			"range": p.get,
			"compact": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "really") == 9 {
					p.compact(t)
				}
			},
		})
		if rapid.IntRange(0, 9).Draw(t, "watch") == 9 { // etcd looks for new watches of the past ten times a second
			p.watch(t, max(first, p.compacted))
		}
	})
}

// pair is a Fake and an etcd that should hold the same.
type pair struct {
	fake, etcd keystoretest.Client

	shift     int64 // how much greater etcd's revisions are
	compacted int64 // as the Fake counts
}

func revision(t *rapid.T, c keystoretest.Client) int64 {
	t.Helper()
	resp, err := c.Get(context.Background(), "k")
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

var keys = []string{"k", "k/", "k/a", "k/a/b", "k/b", "k0", "l"}

func anyKey(t *rapid.T) string { return rapid.SampledFrom(keys).Draw(t, "key") }

// anyRange is the options of a single key, a prefix, or a range.
func anyRange(t *rapid.T) []clientv3.OpOption {
	switch rapid.IntRange(0, 3).Draw(t, "range") {
	case 0:
		return []clientv3.OpOption{clientv3.WithPrefix()}
	case 1:
		return []clientv3.OpOption{clientv3.WithRange(anyKey(t))}
	}
	return nil
}

// anyRevision is one around those that there are, as the Fake counts.
func (p *pair) anyRevision(t *rapid.T) int64 {
	return max(1, revision(t, p.fake)-rapid.Int64Range(-1, 6).Draw(t, "revisions ago"))
}

func (p *pair) txn(t *rapid.T) {
	var cmps [2][]clientv3.Cmp
	for range rapid.IntRange(0, 3).Draw(t, "comparisons") {
		key := anyKey(t)
		result := rapid.SampledFrom([]string{"=", "!=", "<", ">"}).Draw(t, "result")
		prefix := rapid.Bool().Draw(t, "compare prefix")
		target := rapid.IntRange(0, 3).Draw(t, "target")
		var rev int64
		if rapid.Bool().Draw(t, "with a revision") {
			rev = p.anyRevision(t)
		}
		value := rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "value")
		for i, shift := range []int64{0, p.shift} {
			if rev == 0 {
				shift = 0
			}
			var c clientv3.Cmp
			switch target {
			case 0:
				c = clientv3.Compare(clientv3.ModRevision(key), result, rev+shift)
			case 1:
				c = clientv3.Compare(clientv3.CreateRevision(key), result, rev+shift)
			case 2:
				c = clientv3.Compare(clientv3.Value(key), result, value)
			case 3:
				c = clientv3.Compare(clientv3.Version(key), result, rev%3)
			}
			if prefix {
				c = c.WithPrefix()
			}
			cmps[i] = append(cmps[i], c)
		}
	}
	var branches [2][]clientv3.Op
	for i := range branches {
		for range rapid.IntRange(0, 4).Draw(t, "operations") {
			branches[i] = append(branches[i], anyOp(t))
		}
	}
	ctx := context.Background()
	want, wantErr := p.etcd.Txn(ctx).If(cmps[1]...).Then(branches[0]...).Else(branches[1]...).Commit()
	got, err := p.fake.Txn(ctx).If(cmps[0]...).Then(branches[0]...).Else(branches[1]...).Commit()
	p.same(t, "transaction", got, err, want, wantErr)
}

func anyOp(t *rapid.T) clientv3.Op {
	key := anyKey(t)
	switch rapid.IntRange(0, 5).Draw(t, "operation") {
	case 0:
		return clientv3.OpGet(key, anyRange(t)...)
	case 1, 2:
		return clientv3.OpDelete(key, anyRange(t)...)
	case 3:
		return clientv3.OpPut(key, "", clientv3.WithIgnoreValue())
	}
	return clientv3.OpPut(key, rapid.SampledFrom([]string{"", "1", "2", "3"}).Draw(t, "value"))
}

func (p *pair) get(t *rapid.T) {
	key, opts := anyKey(t), anyRange(t)
	if rapid.Bool().Draw(t, "limited") {
		opts = append(opts, clientv3.WithLimit(rapid.Int64Range(1, 4).Draw(t, "limit")))
	}
	if rapid.Bool().Draw(t, "downwards") {
		opts = append(opts, clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
	}
	if rapid.Bool().Draw(t, "keys only") {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	forFake, forEtcd := opts, opts
	if rapid.Bool().Draw(t, "in the past") {
		rev := p.anyRevision(t)
		forFake = append(forFake[:len(opts):len(opts)], clientv3.WithRev(rev))
		forEtcd = append(forEtcd[:len(opts):len(opts)], clientv3.WithRev(rev+p.shift))
	}
	want, wantErr := p.etcd.Get(context.Background(), key, forEtcd...)
	got, err := p.fake.Get(context.Background(), key, forFake...)
	p.same(t, "range", got, err, want, wantErr)
	wantTxn, wantErr := p.etcd.Txn(context.Background()).Then(clientv3.OpGet(key, forEtcd...)).Commit()
	gotTxn, err := p.fake.Txn(context.Background()).Then(clientv3.OpGet(key, forFake...)).Commit()
	p.same(t, "range in a transaction", gotTxn, err, wantTxn, wantErr)
}

func (p *pair) compact(t *rapid.T) {
	rev := p.anyRevision(t)
	_, wantErr := p.etcd.Compact(context.Background(), rev+p.shift)
	_, err := p.fake.Compact(context.Background(), rev)
	if fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Fatalf("compaction: got error %v, etcd has %v", err, wantErr)
	}
	if err == nil {
		p.compacted = rev
	}
}

// watch compares all changes since a revision, and what a watch from before the
// compaction says.
func (p *pair) watch(t *rapid.T, from int64) {
	last := revision(t, p.fake)
	prefix := rapid.SampledFrom([]string{"", "k", "k/", "k/a"}).Draw(t, "watched prefix")
	got := events(t, p.fake, prefix, from, last, 0)
	want := events(t, p.etcd, prefix, from+p.shift, last+p.shift, p.shift)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("events of %q from %d to %d (-etcd +fake):\n%s", prefix, from, last, diff)
	}
	if p.compacted > 1 {
		for i, c := range []keystoretest.Client{p.fake, p.etcd} {
			ctx, cancel := context.WithCancel(context.Background())
			resp := <-c.Watch(ctx, "k", clientv3.WithRev(p.compacted-1+int64(i)*p.shift))
			cancel()
			if resp.CompactRevision != p.compacted+int64(i)*p.shift || !resp.Canceled {
				t.Fatalf("watch from before the compaction at %d: %+v", p.compacted, resp)
			}
		}
	}
}

// events are those under a prefix from one revision to another, one line each
// revision.
func events(t *rapid.T, c keystoretest.Client, prefix string, from, to, shift int64) []string {
	if from > to {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// A last change, so that it is known when all have come.
	end, err := c.Put(ctx, prefix+"end", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := c.Delete(ctx, prefix+"end"); err != nil {
			t.Fatal(err)
		}
	}()
	var lines []string
	for resp := range c.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if resp.Err() != nil {
			t.Fatal(resp.Err())
		}
		for _, ev := range resp.Events {
			if ev.Kv.ModRevision == end.Header.Revision {
				return lines
			}
			create := ev.Kv.CreateRevision
			if create != 0 {
				create -= shift
			}
			lines = append(lines, fmt.Sprintf("%d: %s %s=%q created %d version %d",
				ev.Kv.ModRevision-shift, ev.Type, ev.Kv.Key, ev.Kv.Value, create, ev.Kv.Version))
		}
	}
	t.Fatal("the watch ended")
	return nil
}

// same compares results, etcd's brought to the Fake's count of revisions.
func (p *pair) same(t *rapid.T, what string, got any, err error, want any, wantErr error) {
	t.Helper()
	if fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Fatalf("%s: got error %v, etcd has %v", what, err, wantErr)
	}
	if err != nil {
		return
	}
	if g, w := describe(got, 0), describe(want, p.shift); g != w {
		t.Fatalf("%s: (-etcd +fake)\n%s", what, cmp.Diff(strings.Split(w, "\n"), strings.Split(g, "\n")))
	}
}

// describe is a response in text, with revisions as the Fake counts.
func describe(resp any, shift int64) string {
	var b strings.Builder
	get := func(r *clientv3.GetResponse) {
		fmt.Fprintf(&b, "count %d more %t\n", r.Count, r.More)
		for _, kv := range r.Kvs {
			fmt.Fprintf(&b, "%s=%q created %d changed %d version %d\n", kv.Key, kv.Value, kv.CreateRevision-shift, kv.ModRevision-shift, kv.Version)
		}
	}
	switch r := resp.(type) {
	case *clientv3.GetResponse:
		fmt.Fprintf(&b, "at %d\n", r.Header.Revision-shift)
		get(r)
	case *clientv3.TxnResponse:
		fmt.Fprintf(&b, "at %d succeeded %t\n", r.Header.Revision-shift, r.Succeeded)
		for _, op := range r.Responses {
			switch {
			case op.GetResponseRange() != nil:
				get((*clientv3.GetResponse)(op.GetResponseRange()))
			case op.GetResponseDeleteRange() != nil:
				fmt.Fprintf(&b, "deleted %d\n", op.GetResponseDeleteRange().Deleted)
			default:
				fmt.Fprintln(&b, "put")
			}
		}
	}
	return b.String()
}

func TestFakeFails(t *testing.T) {
	fake := keystoretest.NewFake()
	down := errors.New("down")
	fake.SetError(down)
	if _, err := fake.Put(t.Context(), "k", "v"); !errors.Is(err, down) {
		t.Errorf("Put: %v, want %v", err, down)
	}
	if _, err := fake.Get(t.Context(), "k"); !errors.Is(err, down) {
		t.Errorf("Get: %v, want %v", err, down)
	}
	if n := len(fake.Dump()); n != 0 {
		t.Errorf("a refused put left %d keys", n)
	}
	fake.SetError(nil)
	if _, err := fake.Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"k": "v"}, fake.Dump()); diff != "" {
		t.Errorf("Dump (-want +got):\n%s", diff)
	}
}
