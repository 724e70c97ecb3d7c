// Package embedetcd runs a single etcd member inside the process, for
// `dkimd standalone` and for tests. The member listens on nothing: there is no
// port and no socket, and the only way in is [Server.Client].
//
// The data directory is an ordinary etcd data directory: a stock etcd opens it,
// which is the way from one process to a cluster.
package embedetcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
)

const (
	memberName = "dkimzone"

	// peerURL is what the member calls itself; nothing listens there, and a
	// single member never dials it.
	peerURL = "http://127.0.0.1:2380"

	quotaBytes = 8 << 30

	// History must outlast a replica's list and reconnect.
	compactionRetention = "1h"

	// How many changes etcd keeps in memory for members that lag behind; a lone one
	// has none. Of batches, which take some 50 KiB each, etcd's own 5000 would
	// take 250 MiB.
	catchUpEntries = 100

	// A lone voter elects itself after one election timeout, so a short one
	// makes the start short; there are no other members it could disturb.
	tickMilliseconds     = 20
	electionMilliseconds = 100

	// Requests slower than this are logged as warnings. etcd's own defaults
	// (100 ms, 300 ms) fire all the time on a laptop's disk.
	slowRequest = time.Second
)

// Config says where the member keeps its data. The zero value is not usable.
type Config struct {
	// Dir is the data directory. It is created with mode 0700 when absent,
	// and set to 0700 when it is there but empty.
	Dir string

	// Logger gets etcd's warnings and errors; its informational messages are
	// dropped. It must not be nil.
	Logger *slog.Logger

	// UnsafeNoFsync makes writes quick and not durable. For tests only.
	UnsafeNoFsync bool
}

// Server is a running member. Its methods are safe for concurrent use.
type Server struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	kv     *streamingKV
	lock   *fileutil.LockedFile
	close  sync.Once
}

// Start opens the data directory, starts the member and returns when it serves
// reads and writes: well under a second for a small directory, longer for
// one with millions of keys. Only ctx bounds it; when ctx ends first, Start
// returns its error at once and the member is stopped in the background.
//
// It returns an error wrapping [ErrInUse] when another process, or this one,
// has the directory open, and [ErrUnusableDir] when the directory cannot be
// created, written to, or holds something that is not etcd's.
//
// Should the member fail later in a way that endangers the data (a full disk,
// an I/O error), it logs why and ends the process, as etcd itself does.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	lock, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	started := make(chan startResult, 1)
	go func() { started <- start(cfg) }()
	select {
	case r := <-started:
		if r.err != nil {
			return nil, errors.Join(fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, r.err), lock.Close())
		}
		s := newServer(r.etcd, lock)
		err := s.waitReady(ctx)
		if err == nil {
			err = markComplete(cfg.Dir)
		}
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
		}
		return s, nil
	case <-ctx.Done():
		go abandon(started, lock)
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, context.Cause(ctx))
	}
}

func newServer(etcd *embed.Etcd, lock *fileutil.LockedFile) *Server {
	s := &Server{etcd: etcd, client: v3client.New(etcd.Server), lock: lock}
	kv := v3rpc.NewQuotaKVServer(etcd.Server)
	s.kv = newStreamingKV(adapter.KvServerToKvClient(kv), kv)
	s.client.KV = clientv3.NewKVFromKVClient(s.kv, s.client)
	return s
}

type startResult struct {
	etcd *embed.Etcd
	err  error
}

// start runs etcd's blocking and not cancellable start.
func start(cfg Config) (r startResult) {
	defer func() {
		// Either etcd gave up in its own way, see newZapLogger, or it did not
		// expect what it found in the directory.
		if v := recover(); v != nil {
			r = startResult{err: fmt.Errorf("etcd gave up: %v", v)}
		}
	}()
	r.etcd, r.err = embed.StartEtcd(etcdConfig(cfg))
	return r
}

// abandon ends a start that nobody waits for any more.
func abandon(started <-chan startResult, lock *fileutil.LockedFile) {
	if r := <-started; r.err == nil {
		r.etcd.Close()
	}
	_ = lock.Close() // closing only releases it
}

func etcdConfig(cfg Config) *embed.Config {
	ec := embed.NewConfig()
	ec.Name = memberName
	ec.Dir = cfg.Dir
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZapLogger(cfg.Logger, time.Now()))

	peer := url.URL{Scheme: "http", Host: peerURL[len("http://"):]}
	ec.ListenPeerUrls, ec.ListenClientUrls = nil, nil
	ec.AdvertisePeerUrls, ec.AdvertiseClientUrls = []url.URL{peer}, nil
	ec.InitialCluster = memberName + "=" + peerURL
	// A new directory is a new cluster, also to a replica that knew an older
	// one. etcd reads the token only when the directory is empty.
	ec.InitialClusterToken = rand.Text()

	ec.TickMs, ec.ElectionMs = tickMilliseconds, electionMilliseconds
	ec.QuotaBackendBytes, ec.SnapshotCatchUpEntries = quotaBytes, catchUpEntries
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, compactionRetention
	ec.WarningApplyDuration, ec.WarningUnaryRequestDuration = slowRequest, slowRequest
	ec.AuthToken = "" // nobody logs in: callers are in this process
	ec.UnsafeNoFsync = cfg.UnsafeNoFsync
	return ec
}

func (s *Server) waitReady(ctx context.Context) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
		return nil
	case <-s.etcd.Server.StopNotify():
		return errors.New("it stopped before it was ready")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Client returns the member's client, the same on each call. It belongs to the
// Server; do not close it. Keys and values it returns may be shared with other
// watchers and must not be modified. It behaves like a client over the network,
// but Defragment must not be called.
func (s *Server) Client() *clientv3.Client { return s.client }

// Done is closed when the member has stopped, by Close or by itself.
func (s *Server) Done() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Close stops the member and returns when its data is on disk and the
// directory is free for another process. Watches end, calls in flight fail
// with a retryable error; writes that were acknowledged are durable. Calling
// it again has no effect.
func (s *Server) Close() {
	s.close.Do(func() {
		// The watches first: nothing would tell them that the server is gone.
		_ = s.client.Close() // reports only that its context is cancelled
		s.kv.stop()
		s.etcd.Close()
		_ = s.lock.Close() // closing only releases it
	})
}
