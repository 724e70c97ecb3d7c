//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/dataset"
	"github.com/dkimzone/dkimzone/test/peers"
)

// etcd is a running etcd of one member that waits for the disk, with the zone.
type etcd struct {
	*process
	address string // HOST:PORT
	client  *clientv3.Client
}

const loaded = "loaded"

// startEtcd starts etcd with the zone in it, which is written on the first use.
func (b *bench) startEtcd(ctx context.Context, cpu int) (*etcd, error) {
	if _, err := os.Stat(b.path(loaded)); errors.Is(err, fs.ErrNotExist) {
		if err := b.load(ctx); err != nil {
			return nil, err
		}
	}
	return b.runEtcd(ctx, cpu)
}

// load fills a new etcd.
func (b *bench) load(ctx context.Context) (err error) {
	if err := os.RemoveAll(b.path("etcd.data")); err != nil {
		return err
	}
	e, err := b.runEtcd(ctx, anyCPU, "--unsafe-no-fsync")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	say("loading etcd")
	began := time.Now()
	if _, err := b.set.Load(ctx, e.client, false); err != nil {
		return err
	}
	say("loaded in %.1f s", time.Since(began).Seconds())
	return os.WriteFile(b.path(loaded), nil, 0o600)
}

func (b *bench) runEtcd(ctx context.Context, cpu int, more ...string) (*etcd, error) {
	var urls, addresses [2]string
	for i := range urls {
		port, err := peers.FreePort()
		if err != nil {
			return nil, err
		}
		addresses[i] = fmt.Sprintf("127.0.0.1:%d", port)
		urls[i] = "http://" + addresses[i]
	}
	p, err := spawn(b.dir, cpu, append([]string{
		b.path("etcd"), "--data-dir", b.path("etcd.data"), "--name", "one", "--force-new-cluster",
		"--initial-cluster", "one=" + urls[1],
		"--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
		"--quota-backend-bytes", "8589934592", "--log-level", "error",
	}, more...)...)
	if err != nil {
		return nil, err
	}
	e := &etcd{process: p, address: addresses[0]}
	e.client, err = e.dial()
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		_, err := e.client.Get(ctx, "ready", clientv3.WithCountOnly())
		if err == nil {
			return e, nil
		}
		if err := errors.Join(ctx.Err(), e.ended()); err != nil {
			return nil, errors.Join(fmt.Errorf("etcd: %w\n%s", err, &p.out), p.stop())
		}
	}
}

func (e *etcd) dial() (*clientv3.Client, error) {
	return etcdclient.Dial(etcdclient.Config{Endpoints: []string{"http://" + e.address}}, slog.New(slog.DiscardHandler))
}

func (e *etcd) stop() error { return errors.Join(e.client.Close(), e.process.stop()) }

// touch is what every transaction on the zone does besides.
func touch() clientv3.Op {
	return clientv3.OpPut(schema.ApexKey(dataset.Zone), "", clientv3.WithIgnoreValue())
}

// change gives so many records another key and returns the last revision.
func (b *bench) change(ctx context.Context, client *clientv3.Client, from, n int) (rev int64, err error) {
	const perTxn = 100
	for first := from; first < from+n; first += perTxn {
		ops := []clientv3.Op{touch()}
		for i := first; i < min(first+perTxn, from+n); i++ {
			// Another record's key is another key, and as long.
			rec := b.set.Record(b.set.Len()+int(time.Now().UnixNano()%1e9), false)
			value, err := rec.Marshal()
			if err != nil {
				return 0, err
			}
			ops = append(ops, clientv3.OpPut(schema.RecordKey(dataset.Zone, b.set.Owner(i%b.set.Len())), string(value)))
		}
		resp, err := client.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return 0, err
		}
		rev = resp.Header.GetRevision()
	}
	return rev, nil
}
