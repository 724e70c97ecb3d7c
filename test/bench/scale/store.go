//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/dataset"
)

// etcd is what etcd takes for the zone's records.
func (b *bench) etcd(ctx context.Context) (err error) {
	e, err := b.startEtcd(ctx, anyCPU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	status, err := e.client.Status(ctx, e.client.Endpoints()[0])
	if err != nil {
		return err
	}
	memory := func() string {
		rss, rerr := e.memory("RssAnon")
		err = errors.Join(err, rerr)
		return fmt.Sprintf("%.0f", rss)
	}
	idle := memory()
	keys, octets, derr := drain(ctx, e.client)
	if err := errors.Join(err, derr); err != nil {
		return err
	}
	listed := memory()
	n := float64(b.set.Len())
	head("octets a record: key and value", "in the database", "database file MiB", "memory MiB after the start", "after a listing")
	row(octets/keys, fmt.Sprintf("%.0f", float64(status.DbSizeInUse)/n), status.DbSize>>20, idle, listed)
	fmt.Println("\nMemory without the pages of the database, which the kernel may take back.")
	return err
}

// list lists the zone in one call, and in pages.
func (b *bench) list(ctx context.Context) (err error) {
	e, err := b.startEtcd(ctx, measuredCPU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	if _, _, err := drain(ctx, e.client); err != nil { // the database is in memory from then on
		return err
	}
	head("listing", "s", "CPU s of etcd")
	measure := func(what string, list func() error) error {
		say("%s", what)
		used, err1 := e.cpu()
		began := time.Now()
		err2 := list()
		took := time.Since(began)
		after, err3 := e.cpu()
		row(what, fmt.Sprintf("%.1f", took.Seconds()), fmt.Sprintf("%.1f", (after-used).Seconds()))
		return errors.Join(err1, err2, err3)
	}
	if err := measure("one call (RangeStream, etcd 3.7)", func() error {
		_, _, err := drain(ctx, e.client)
		return err
	}); err != nil {
		return err
	}
	for _, size := range []int64{10_000, 1000} {
		if err := measure(fmt.Sprintf("pages of %d keys", size), func() error { return pages(ctx, e.client, size) }); err != nil {
			return err
		}
	}
	return nil
}

func pages(ctx context.Context, client *clientv3.Client, size int64) error {
	from, end := schema.ZonePrefix(dataset.Zone), clientv3.GetPrefixRangeEnd(schema.ZonePrefix(dataset.Zone))
	for rev := int64(0); ; {
		resp, err := client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(size), clientv3.WithRev(rev))
		if err != nil || !resp.More {
			return err
		}
		if rev == 0 {
			rev = resp.Header.GetRevision()
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// fanOutRate is how many records a second are written for fanOut.
const fanOutRate = 250

// fanOut has more and more watchers follow the zone, each on a connection of its
// own, while records are written: not so many that reading the events takes all
// of a CPU.
func (b *bench) fanOut(ctx context.Context) (err error) {
	const long = 10 * time.Second
	e, err := b.startEtcd(ctx, measuredCPU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	head("watchers", "CPU of etcd, % of a core", "µs a write", "µs a write and watcher", "write p50 ms", "write p99 ms", "write → last watcher p50 ms", "p99 ms", "memory of etcd MiB")
	var none time.Duration
	for _, watchers := range []int{0, 1, 10, 50, 100} {
		say("%d watchers", watchers)
		perWrite, err := b.watched(ctx, e, watchers, long, none)
		if err != nil {
			return err
		}
		if watchers == 0 {
			none = perWrite
		}
	}
	return nil
}

// watched measures with so many watchers and returns etcd's CPU time for a
// write.
func (b *bench) watched(ctx context.Context, e *etcd, watchers int, long, none time.Duration) (time.Duration, error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	lastSeen := make(map[int64]time.Time)
	var clients []*clientv3.Client
	defer func() {
		stop()
		for _, c := range clients {
			_ = c.Close() // only read from
		}
	}()
	for range watchers {
		c, err := e.dial()
		if err != nil {
			return 0, err
		}
		clients = append(clients, c)
		w := c.Watch(clientv3.WithRequireLeader(watching), schema.ZonePrefix(dataset.Zone), clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		if resp, ok := <-w; !ok || resp.Err() != nil {
			return 0, fmt.Errorf("watch: %w", resp.Err())
		}
		wg.Go(func() {
			for resp := range w {
				now := time.Now()
				mu.Lock()
				for _, ev := range resp.Events {
					lastSeen[ev.Kv.ModRevision] = now
				}
				mu.Unlock()
			}
		})
	}
	used, err := e.cpu()
	if err != nil {
		return 0, err
	}
	writes, calls, err := b.write(ctx, e.client, fanOutRate, long)
	if err != nil {
		return 0, err
	}
	time.Sleep(time.Second) // for the last events
	after, err1 := e.cpu()
	memory, err2 := e.memory("RssAnon")
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	stop()
	wg.Wait()
	var fan []time.Duration
	for _, w := range writes {
		if at, ok := lastSeen[w.rev]; ok {
			fan = append(fan, max(0, at.Sub(w.at)))
		}
	}
	slices.Sort(calls)
	slices.Sort(fan)
	perWrite := (after - used) / time.Duration(len(writes))
	each := "–"
	if watchers > 0 {
		each = fmt.Sprintf("%.1f", float64((perWrite-none).Nanoseconds())/1e3/float64(watchers))
	}
	fanned := []string{"–", "–"}
	if len(fan) > 0 {
		fanned = []string{ms(quantile(fan, .5)), ms(quantile(fan, .99))}
	}
	row(watchers, fmt.Sprintf("%.0f", 100*(after-used).Seconds()/long.Seconds()), perWrite.Microseconds(), each,
		ms(quantile(calls, .5)), ms(quantile(calls, .99)), fanned[0], fanned[1], fmt.Sprintf("%.0f", memory))
	return perWrite, nil
}

// storm has several clients list the zone at once, as DNS nodes that have lost
// their place do, while records are written.
func (b *bench) storm(ctx context.Context) (err error) {
	const rate, quiet = 100, 5 * time.Second
	e, err := b.startEtcd(ctx, measuredCPU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	if _, _, err := drain(ctx, e.client); err != nil {
		return err
	}
	head("nodes that list at once", "all done after s", "CPU s of etcd", "memory of etcd MiB", "write p50 ms", "write p99 ms", "longest ms")
	for _, n := range []int{0, 1, 4, 8} {
		say("%d listings", n)
		if err := e.forgetPeak(); err != nil {
			return err
		}
		used, err := e.cpu()
		if err != nil {
			return err
		}
		writing, stop := context.WithCancel(ctx)
		var calls []time.Duration
		var writer sync.WaitGroup
		writer.Go(func() { calls = b.keepWriting(writing, e.client, rate) })
		began := time.Now()
		err = errors.Join(b.listAtOnce(ctx, e, n))
		if n == 0 {
			time.Sleep(quiet)
		}
		took := time.Since(began)
		stop()
		writer.Wait()
		after, err1 := e.cpu()
		memory, err2 := e.memory("RssAnon")
		if err := errors.Join(err, err1, err2); err != nil {
			return err
		}
		slices.Sort(calls)
		row(n, fmt.Sprintf("%.1f", took.Seconds()), fmt.Sprintf("%.1f", (after-used).Seconds()), fmt.Sprintf("%.0f", memory),
			ms(quantile(calls, .5)), ms(quantile(calls, .99)), ms(quantile(calls, 1)))
	}
	return nil
}

// listAtOnce has n clients of their own list the zone.
func (b *bench) listAtOnce(ctx context.Context, e *etcd, n int) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c, err := e.dial()
			if err != nil {
				errs[i] = err
				return
			}
			_, _, err = drain(ctx, c)
			errs[i] = errors.Join(err, c.Close())
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// keepWriting writes until ctx ends and returns how long each write took.
func (b *bench) keepWriting(ctx context.Context, client *clientv3.Client, rate int) []time.Duration {
	var mu sync.Mutex
	var calls []time.Duration
	var wg sync.WaitGroup
	began := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		wg.Go(func() {
			at := time.Now()
			if _, err := b.change(context.WithoutCancel(ctx), client, i, 1); err != nil {
				return // shows as one that is missing; the listing fails too
			}
			took := time.Since(at)
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, took)
		})
	}
	wg.Wait()
	return calls
}
