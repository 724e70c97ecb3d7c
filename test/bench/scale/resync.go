//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/dataset"
)

// resync cuts a DNS node off, changes a twentieth of the zone, lets etcd forget
// the changes, and lets the node list the zone again, all under queries. Beside
// that stand the same node at rest, and at rest while another client lists the
// zone.
func (b *bench) resync(ctx context.Context) (err error) {
	const quiet = 10 * time.Second
	e, err := b.startEtcd(ctx, otherCPU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	dir, err := b.nodeDir(ctx, "node.resync", e)
	if err != nil {
		return err
	}
	p, err := startProxy(e.address)
	if err != nil {
		return err
	}
	defer p.stop()
	n, err := b.startNode(ctx, dir, "http://"+p.addr, b.cpu)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	rev, err := b.change(ctx, e.client, 0, 1)
	if err != nil {
		return err
	}
	if err := errors.Join(n.wait(ctx, rev), n.settle(ctx)); err != nil {
		return err
	}
	probe, err := b.startProber(n.addr)
	if err != nil {
		return err
	}
	say("at rest")
	time.Sleep(time.Second) // of the prober's own start
	var at [6]time.Time
	at[0] = time.Now()
	time.Sleep(quiet)
	at[1] = time.Now()
	say("while another client lists the zone")
	if _, _, err := drain(ctx, e.client); err != nil {
		return err
	}
	at[2] = time.Now()
	p.cut(true)
	changed := b.set.Len() / 20
	say("cut off, changing %d records", changed)
	if rev, err = b.change(ctx, e.client, 0, changed); err != nil {
		return err
	}
	if _, err := e.client.Compact(ctx, rev); err != nil {
		return err
	}
	if err := n.forgetPeak(); err != nil {
		return err
	}
	say("connected again")
	used, err := n.cpu()
	if err != nil {
		return err
	}
	p.cut(false)
	at[3] = time.Now()
	if err := n.wait(ctx, rev); err != nil {
		return err
	}
	at[4] = time.Now()
	if began := n.out.last("listing the zone"); began.After(at[3]) {
		at[3] = began
	}
	after, err := n.cpu()
	if err != nil {
		return err
	}
	say("writing the file")
	time.Sleep(quiet)
	at[5] = time.Now()
	all, err := probe.stop()
	if err != nil {
		return err
	}
	peak, err := n.memory("VmHWM")
	if err != nil {
		return err
	}
	head(append([]any{"while"}, latencyColumns...)...)
	row(append([]any{"nothing else happens"}, all.between(at[0], at[1]).columns()...)...)
	row(append([]any{"another client lists the zone"}, all.between(at[1], at[2]).columns()...)...)
	row(append([]any{"the node lists the zone"}, all.between(at[3], at[4]).columns()...)...)
	row(append([]any{"the node writes its file anew"}, all.between(at[4], at[5]).columns()...)...)
	fmt.Printf("\nThe resync took %.1f s, %.1f s of CPU time with the queries; %d records differed; the node's memory peaked at %.0f MiB.\n",
		at[4].Sub(at[3]).Seconds(), (after - used).Seconds(), changed, peak)
	return nil
}

// drain lists the zone in one call and returns how many keys and octets came.
func drain(ctx context.Context, client *clientv3.Client) (keys, octets int, err error) {
	chunks, err := client.GetStream(ctx, schema.ZonePrefix(dataset.Zone), clientv3.WithPrefix())
	if err != nil {
		return 0, 0, err
	}
	for c := range chunks {
		if err := c.Err(); err != nil {
			return 0, 0, err
		}
		keys += len(c.Kvs)
		for _, kv := range c.Kvs {
			octets += len(kv.Key) + len(kv.Value)
		}
	}
	return keys, octets, nil
}
