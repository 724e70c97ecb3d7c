package app

import (
	"context"
	"errors"
	"log/slog"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/leader"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Serve says how to run dkimd beside an etcd cluster. Run two or more: they
// hold no state of their own.
type Serve struct {
	Etcd                      etcdclient.Config
	CAFile, CertFile, KeyFile string // of the gRPC and HTTPS listeners
	KEK                       KEK
	Listen
	Access  Access
	Guard   Guard
	Checks  Checks
	Audit   Audit
	Signing Signing
	Logger  *slog.Logger
	// Started, if not nil, is called with the bound addresses once all serve.
	Started func(Addresses)
}

// Run runs until ctx ends, or until something fails. It starts without etcd and
// is ready once etcd is there.
func (o Serve) Run(ctx context.Context) (err error) {
	defer holdBallast()()
	tlsConfig, err := pki.ServerTLS(o.CAFile, o.CertFile, o.KeyFile, o.Logger)
	if err != nil {
		return err
	}
	guard, err := o.Guard.open(o.Logger)
	if err != nil {
		return err
	}
	defer guard.close()
	dns, err := o.Checks.prober(nil)
	if err != nil {
		return err
	}
	client, err := etcdclient.Dial(o.Etcd, o.Logger)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // nothing is in flight any more
	bound, err := o.bind()
	if err != nil {
		return err
	}
	defer bound.close()
	backend, err := newBackend(ctx, client, o.KEK, o.Access, guard, dns, o.Logger)
	if err != nil {
		return err
	}
	defer backend.close()
	account, err := o.Audit.open(ctx, "-", o.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, account.close()) }()
	backend.keepAccount(account)
	stopSigning, err := backend.startSigning(ctx, o.Signing, o.Logger)
	if err != nil {
		return err
	}
	defer stopSigning()
	srv, err := newServers(bound, tlsConfig, backend, nil, o.Logger)
	if err != nil {
		return err
	}
	a := bound.addresses()
	o.Logger.LogAttrs(ctx, slog.LevelInfo, "serving",
		slog.String("grpc", a.GRPC), slog.String("http", a.HTTP), slog.String("metrics", a.Metrics))
	if o.Started != nil {
		o.Started(a)
	}
	defer backend.startCustody(ctx)()
	defer backend.startRotation(ctx, leader.NewCandidate(client, schema.LeaderPrefix(), candidate(), leaseTTL), o.Checks.Rate, o.Logger)()
	return srv.run(ctx)
}
