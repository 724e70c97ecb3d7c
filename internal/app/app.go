// Package app puts the parts of dkimd together: the processes `dkimd
// standalone` and `dkimd serve`, and the command line that starts them.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keygen"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/service"
	"github.com/dkimzone/dkimzone/internal/signview"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

const (
	// storeTimeout bounds one call to etcd. A leader election takes one to two
	// seconds; a call that waits longer has met an outage.
	storeTimeout = 5 * time.Second
	// drainTimeout is how long calls in flight may take after a stop signal.
	drainTimeout = 10 * time.Second
)

// Listen is where dkimd listens.
type Listen struct {
	GRPC    string // TLS
	HTTP    string // HTTPS
	Metrics string // plain HTTP: /metrics, /healthz, /readyz
	// Disclosure is where disclosed keys are served, plain HTTP; "": nowhere.
	Disclosure string
}

// listeners are the bound sockets of a Listen.
type listeners struct {
	grpc, http, metrics net.Listener
	disclosure          net.Listener // nil without
}

// addresses are those of the bound sockets that dkimd always has.
func (b *listeners) addresses() Addresses {
	return Addresses{GRPC: b.grpc.Addr().String(), HTTP: b.http.Addr().String(), Metrics: b.metrics.Addr().String()}
}

// bind binds all addresses before anything else is begun, so that a port in use
// is told at once.
func (l Listen) bind() (*listeners, error) {
	b := &listeners{}
	for _, s := range []struct {
		flag, address string
		to            *net.Listener
	}{
		{"grpc-listen", l.GRPC, &b.grpc},
		{"http-listen", l.HTTP, &b.http},
		{"metrics-listen", l.Metrics, &b.metrics},
		{"disclosure-listen", l.Disclosure, &b.disclosure},
	} {
		if s.to == &b.disclosure && s.address == "" {
			continue
		}
		ln, err := net.Listen("tcp", s.address)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("--%s %s: %w", s.flag, s.address, bindCause(err))
		}
		*s.to = ln
	}
	return b, nil
}

func (b *listeners) close() {
	for _, ln := range []net.Listener{b.grpc, b.http, b.metrics, b.disclosure} {
		if ln != nil {
			_ = ln.Close() // nothing was sent on it
		}
	}
}

// bindCause is the part of a bind error that says what is wrong.
func bindCause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// backend is what the API works on: keys, sealing and the store.
type backend struct {
	store  *keystore.Store // shut while a backup is restored
	direct *keystore.Store // not so
	pool   *keygen.Pool
	keeper io.Closer // of the key-encryption key
	sealer *checkedSealer
	mint   *mint.Mint
	prober *prober.Prober
	api    *service.Service
	view   *signview.View // of what signs; nil before startSigning
	authn  *authn.Authenticator
	access *service.Access
	guard  *guard
	// custody changes what keys are sealed with.
	custody *custody.Custody
	// afterRestore, if not nil, is called when a backup was restored.
	afterRestore func(context.Context)

	account *account // of who changes what
}

// keepAccount makes a the account of all that happens from now on. It must be
// called before anything does.
func (b *backend) keepAccount(a *account) {
	b.account = a
	b.store.SetWitness(a)
}

// newBackend opens the key-encryption key, makes sure that it is the one that
// the stored data keys were wrapped with, later if etcd or the key's keeper does
// not answer now, and starts to generate keys.
func newBackend(ctx context.Context, client keystore.Client, kek KEK, access Access, guard *guard, p *prober.Prober, logger *slog.Logger) (*backend, error) {
	store := keystore.New(keystore.Gated(client), storeTimeout)
	who, err := access.authenticator(store, logger)
	if err != nil {
		return nil, err
	}
	keeper, err := envelope.OpenKeeper(ctx, kek.URL, kek.Previous...)
	if err != nil {
		return nil, err
	}
	b := &backend{guard: guard, store: store, direct: keystore.New(client, storeTimeout), keeper: keeper, prober: p, authn: who, access: service.NewAccess(store, who.Forget, time.Now)}
	b.sealer = &checkedSealer{sealer: envelope.NewSealer(keeper, b.store)}
	switch err := b.sealer.check(ctx); {
	case errors.Is(err, keystore.ErrUnavailable), errors.Is(err, envelope.ErrKeeperUnavailable):
		logger.LogAttrs(ctx, slog.LevelWarn, "not ready: whether the key-encryption key is right shows later", slog.Any("error", err))
	case err != nil:
		_ = b.keeper.Close() // it holds no resource that matters any more
		return nil, fmt.Errorf("key-encryption key (%s): %w", strings.Join(keeper.Labels(), ", "), err)
	}
	b.pool = keygen.New(keygen.Options{Stock: stock(), Logger: logger})
	pools.add(b.pool)
	b.custody = b.newCustody(kek, logger)
	b.mint = mint.New(b.pool, b.sealer)
	b.api = service.New(b.store, b.mint, b.prober, time.Now, logger, guard.options()...)
	return b, nil
}

// stock is how many keys lie ready: some seconds' worth of provisioning with the
// default algorithm. Keys of the others are made when they are asked for.
func stock() map[keypair.Algorithm]int {
	return map[keypair.Algorithm]int{keypair.RSA2048: 16 * runtime.GOMAXPROCS(0)}
}

func (b *backend) close() {
	pools.remove(b.pool)
	b.pool.Close()
	_ = b.keeper.Close() // it holds no resource that matters any more
}

// storeCheck is the readiness of etcd.
func (b *backend) storeCheck() telemetry.Check {
	return telemetry.Check{Name: "etcd", Func: func(ctx context.Context) error {
		_, err := b.store.Revision(ctx)
		return err
	}}
}

func createKeyFile(out io.Writer, file string) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	if err := envelope.CreateKeyFile(path); err != nil {
		return err
	}
	fmt.Fprintf(out, "--kek-url file://%s\nKeep a copy in a safe place: without it no stored private key can be used.\n", path)
	return nil
}
