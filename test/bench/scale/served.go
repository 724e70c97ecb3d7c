//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/dataset"
)

const (
	servedNodes = 3
	writeRate   = 1000
	writeTime   = 20 * time.Second
	askInterval = 500 * time.Microsecond
)

// written is a transaction that etcd has acknowledged.
type written struct {
	rev int64
	at  time.Time
}

// seen is the first answer of a node with a serial.
type seen struct {
	serial int64
	at     time.Time
}

// served writes a thousand records a second and asks three DNS nodes for their
// serials all the time: a change is served from the moment on when the answer
// has its serial, or a later one.
func (b *bench) served(ctx context.Context) (err error) {
	if err := stayOn(anyCPU); err != nil { // the writer and the clients are this process
		return err
	}
	e, err := b.startEtcd(ctx, anyCPU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	var nodes []*node
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.stop())
		}
	}()
	rev, err := b.change(ctx, e.client, 0, 1)
	if err != nil {
		return err
	}
	for i := range servedNodes {
		dir, err := b.nodeDir(ctx, fmt.Sprintf("node%d", i+1), e)
		if err != nil {
			return err
		}
		n, err := b.startNode(ctx, dir, "http://"+e.address, anyCPU)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
		if err := errors.Join(n.wait(ctx, rev), n.settle(ctx)); err != nil {
			return err
		}
	}
	say("writing")
	asking, stopAsking := context.WithCancel(ctx)
	defer stopAsking()
	history := make([][]seen, len(nodes))
	var askers sync.WaitGroup
	for i, n := range nodes {
		askers.Go(func() { history[i] = n.ask(asking) })
	}
	used := make([]time.Duration, len(nodes))
	for i, n := range nodes {
		if used[i], err = n.cpu(); err != nil {
			return err
		}
	}
	began := time.Now()
	writes, calls, err := b.write(ctx, e.client, writeRate, writeTime)
	if err != nil {
		return err
	}
	took := time.Since(began)
	var perUpdate time.Duration
	for i, n := range nodes {
		now, err := n.cpu()
		if err != nil {
			return err
		}
		perUpdate += (now - used[i]) / time.Duration(len(nodes))
	}
	rev = 0
	for _, w := range writes {
		rev = max(rev, w.rev)
	}
	for _, n := range nodes {
		if err := n.wait(ctx, rev); err != nil {
			return err
		}
	}
	stopAsking()
	askers.Wait()
	say("CPU time of a node: %v for each write, with the questions for the serial", (perUpdate / time.Duration(len(writes))).Round(time.Microsecond))

	head("", "median ms", "p99 ms", "p99.9 ms", "longest ms")
	percentiles := func(what string, d []time.Duration) {
		slices.Sort(d)
		row(what, ms(quantile(d, .5)), ms(quantile(d, .99)), ms(quantile(d, .999)), ms(quantile(d, 1)))
	}
	percentiles("write → acknowledged by etcd", calls)
	var every []time.Duration
	for _, w := range writes {
		var last time.Duration
		for _, h := range history {
			i, _ := slices.BinarySearchFunc(h, w.rev, func(s seen, rev int64) int { return int(s.serial - rev) })
			if i == len(h) {
				return fmt.Errorf("revision %d was not seen", w.rev)
			}
			last = max(last, h[i].at.Sub(w.at))
		}
		every = append(every, last)
	}
	percentiles(fmt.Sprintf("acknowledged → served by all of %d nodes", len(nodes)), every)
	fmt.Printf("\n%d writes in %.2f s, %.0f a second.\n", len(writes), took.Seconds(), float64(len(writes))/took.Seconds())
	return nil
}

// ask asks for the serial every half millisecond until ctx ends, and returns
// when each was seen first.
func (n *node) ask(ctx context.Context) []seen {
	var history []seen
	question := new(dns.Msg).SetQuestion(dataset.Zone+".", dns.TypeSOA)
	conn, err := dns.DialTimeout("udp", n.addr, time.Second)
	if err != nil {
		return nil
	}
	defer conn.Close() //nolint:errcheck // a UDP socket
	for due := time.Now(); ctx.Err() == nil; due = due.Add(askInterval) {
		time.Sleep(time.Until(due))
		question.Id = dns.Id()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if conn.WriteMsg(question) != nil {
			continue
		}
		reply, err := conn.ReadMsg()
		if err != nil || reply.Id != question.Id || len(reply.Answer) == 0 {
			continue
		}
		soa, ok := reply.Answer[0].(*dns.SOA)
		if ok && (len(history) == 0 || history[len(history)-1].serial < int64(soa.Serial)) {
			history = append(history, seen{int64(soa.Serial), time.Now()})
		}
	}
	return history
}

// write changes a record so many times a second, each when its time has come,
// whatever became of the ones before. A write that is late is not left out, so
// that the rate is what it says.
func (b *bench) write(ctx context.Context, client *clientv3.Client, rate int, long time.Duration) ([]written, []time.Duration, error) {
	var mu sync.Mutex
	var writes []written
	var calls []time.Duration
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	interval := time.Second / time.Duration(rate)
	began := time.Now()
	for i := range int(long / interval) {
		time.Sleep(time.Until(began.Add(time.Duration(i) * interval)))
		if failed.Load() != nil || ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			at := time.Now()
			rec := b.set.Record(i, false)
			rec.UpdateTime = at
			value, err := rec.Marshal()
			if err != nil {
				failed.Store(&err)
				return
			}
			owner := fmt.Sprintf("selector1-written-%07d-example._domainkey", i)
			resp, err := client.Txn(ctx).Then(touch(), clientv3.OpPut(schema.RecordKey(dataset.Zone, owner), string(value))).Commit()
			if err != nil {
				failed.Store(&err)
				return
			}
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			writes = append(writes, written{resp.Header.GetRevision(), now})
			calls = append(calls, now.Sub(at))
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return nil, nil, *err
	}
	return writes, calls, ctx.Err()
}
