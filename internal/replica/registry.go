package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/etcdclient"
)

// Defaults and limits of Config.
const (
	DefaultReconcileInterval = time.Hour
	MinReconcileInterval     = time.Second
	DefaultMaxDeletion       = 0.2
)

// InProcessScheme begins the endpoint of a client given to RegisterInProcess.
const InProcessScheme = "inprocess:"

// Client is what a replica needs of etcd; *clientv3.Client has it.
type Client interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
}

// Config says which zone to copy from where.
type Config struct {
	// Zone in stored form: lower case, no trailing dot.
	Zone string
	// Etcd is the cluster. Its only endpoint may be "inprocess:NAME" for a
	// client that was given to RegisterInProcess.
	Etcd etcdclient.Config
	// Dir is where the zone's file is kept; it is created with mode 0700. Empty
	// means memory only: a restart without etcd then has nothing to serve.
	Dir string
	// ReconcileInterval is the time between two comparisons of the whole zone
	// with etcd, which do not trust the watch. At least MinReconcileInterval;
	// zero means DefaultReconcileInterval.
	ReconcileInterval time.Duration
	// MaxDeletion is the share of the records, above 0, that a resync may
	// delete without an operator's word; at 1 it may delete all. Zero means
	// DefaultMaxDeletion. Ten records may always be deleted.
	MaxDeletion float64
	// Logger gets what an operator can act on. Nil means none.
	Logger *slog.Logger
	// Served is called with the time from when a record was written to when it
	// is served, for each record that the watch brings. It must not block. Nil
	// means that nobody wants to know.
	Served func(time.Duration)
}

// settings are the parts of a Config that may change while a replica runs.
type settings struct {
	client      Client
	reconcile   time.Duration
	maxDeletion float64
	served      func(time.Duration)
}

// Handle is a share in a replica that Acquire gave out.
type Handle struct {
	*Replica
	entry    *entry
	settings *settings
	closer   func() error
	once     sync.Once
	err      error
}

// entry is one running replica and those who use it, the latest last.
type entry struct {
	id      string
	replica *Replica
	handles []*Handle
}

// registry is global to the process, since a reload of CoreDNS starts the new
// instance before it stops the old one: both share the records and the file.
var registry = struct {
	sync.Mutex
	entries   map[string]*entry
	inProcess map[string]Client
	dialled   map[string]*dialled
}{
	entries:   make(map[string]*entry),
	inProcess: make(map[string]Client),
	dialled:   make(map[string]*dialled),
}

// dialled is an etcd client that several zones share.
type dialled struct {
	*clientv3.Client
	users int
}

// Acquire returns a share in the replica of cfg, which is started if there is
// none yet. Two configurations mean the same replica if zone and directory are
// the same, or, without a directory, zone and cluster; the rest of the latest
// one that was not released applies to all. It returns a
// *etcdclient.ConfigError for a cluster that cannot be dialled, and an error
// that wraps ErrInUse if another process has the file. It does not wait for
// etcd.
func Acquire(cfg Config) (*Handle, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	registry.Lock()
	defer registry.Unlock()
	client, closer, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	h := &Handle{
		settings: &settings{client: client, reconcile: cfg.ReconcileInterval, maxDeletion: cfg.MaxDeletion, served: cfg.Served},
		closer:   closer,
	}
	id := cfg.id()
	e := registry.entries[id]
	if e == nil {
		r, err := open(cfg, h.settings)
		if err != nil {
			return nil, errors.Join(err, closer())
		}
		e = &entry{id: id, replica: r}
		registry.entries[id] = e
	}
	h.Replica, h.entry = e.replica, e
	e.handles = append(e.handles, h)
	e.replica.apply(h.settings)
	return h, nil
}

// Release gives the share back; the last one stops the replica and waits until
// the file is written. The handle must not be used any more. Releasing twice
// does nothing.
func (h *Handle) Release() error {
	h.once.Do(func() { h.err = h.release() })
	return h.err
}

func (h *Handle) release() error {
	registry.Lock()
	defer registry.Unlock()
	e := h.entry
	e.handles = slices.DeleteFunc(e.handles, func(o *Handle) bool { return o == h })
	var err error
	if n := len(e.handles); n > 0 {
		e.replica.apply(e.handles[n-1].settings)
	} else {
		delete(registry.entries, e.id)
		err = e.replica.stop()
	}
	return errors.Join(err, h.closer())
}

// apply makes s the settings that count.
func (r *Replica) apply(s *settings) {
	if old := r.settings.Swap(s); old.client == s.client && old.reconcile == s.reconcile {
		return // the rest is looked up when it is needed
	}
	select {
	case r.renewed <- struct{}{}:
	default:
	}
}

// Statuses returns the status of each zone of this process, the replica that
// was acquired last if there are two of a zone.
func Statuses() []Status {
	registry.Lock()
	latest := make(map[string]*Replica)
	for _, id := range slices.Sorted(maps.Keys(registry.entries)) {
		r := registry.entries[id].replica
		if old := latest[r.zone]; old == nil || r.started.After(old.started) {
			latest[r.zone] = r
		}
	}
	registry.Unlock()
	all := make([]Status, 0, len(latest))
	for _, zone := range slices.Sorted(maps.Keys(latest)) {
		all = append(all, latest[zone].Status())
	}
	return all
}

// RegisterInProcess makes client reachable under the endpoint "inprocess:NAME",
// for a program that runs etcd and DNS in one process. The client is not closed
// by this package. It returns a function that takes the name back, for after
// all replicas that use it are released.
func RegisterInProcess(name string, client Client) (unregister func()) {
	registry.Lock()
	defer registry.Unlock()
	registry.inProcess[name] = client
	return func() {
		registry.Lock()
		defer registry.Unlock()
		if registry.inProcess[name] == client {
			delete(registry.inProcess, name)
		}
	}
}

// dial returns the client of cfg and what to call when it is no longer needed.
// The registry is locked.
func dial(cfg Config) (Client, func() error, error) {
	if len(cfg.Etcd.Endpoints) == 1 {
		if name, ok := strings.CutPrefix(cfg.Etcd.Endpoints[0], InProcessScheme); ok {
			client := registry.inProcess[name]
			if client == nil {
				return nil, nil, &etcdclient.ConfigError{Field: "Endpoints", Reason: fmt.Sprintf("nothing in this process is called %q", name)}
			}
			return client, func() error { return nil }, nil
		}
	}
	id := cfg.clusterID()
	d := registry.dialled[id]
	if d == nil {
		client, err := etcdclient.Dial(cfg.Etcd, cfg.Logger)
		if err != nil {
			return nil, nil, err
		}
		d = &dialled{Client: client}
		registry.dialled[id] = d
	}
	d.users++
	return d, func() error {
		if d.users--; d.users > 0 {
			return nil
		}
		delete(registry.dialled, id)
		if err := d.Close(); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("replica: closing the etcd client: %w", err)
		}
		return nil
	}, nil
}

// complete checks cfg and fills in defaults.
func (cfg Config) complete() (Config, error) {
	zone, err := dnsname.ParseZone(cfg.Zone)
	if err != nil {
		return cfg, fmt.Errorf("replica: %w", err)
	}
	if string(zone) != cfg.Zone {
		return cfg, fmt.Errorf("replica: zone %q is not in stored form, which is %q", cfg.Zone, zone)
	}
	if cfg.Dir != "" {
		if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
			return cfg, fmt.Errorf("replica: data directory: %w", err)
		}
	}
	if cfg.ReconcileInterval == 0 {
		cfg.ReconcileInterval = DefaultReconcileInterval
	}
	if cfg.ReconcileInterval < MinReconcileInterval {
		return cfg, fmt.Errorf("replica: reconcile interval %s is below %s", cfg.ReconcileInterval, MinReconcileInterval)
	}
	if cfg.MaxDeletion == 0 {
		cfg.MaxDeletion = DefaultMaxDeletion
	}
	if cfg.MaxDeletion < 0 || cfg.MaxDeletion > 1 {
		return cfg, fmt.Errorf("replica: share of deletions %g is not between 0 and 1", cfg.MaxDeletion)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

func (cfg Config) id() string {
	if cfg.Dir != "" {
		return cfg.Zone + "\n" + cfg.Dir
	}
	return cfg.Zone + "\n\n" + cfg.clusterID()
}

func (cfg Config) clusterID() string {
	e := cfg.Etcd
	return strings.Join(append(slices.Clone(e.Endpoints), e.CAFile, e.CertFile, e.KeyFile, e.DialTimeout.String()), "\n")
}
