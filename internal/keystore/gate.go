package keystore

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// ErrRestoring says that a backup is being restored, or was in part only: what
// the store holds is not to be used. It is an ErrUnavailable.
var ErrRestoring = fmt.Errorf("%w: a backup is being restored", ErrUnavailable)

// gateValid is how long what was found out about a restore is relied on.
const gateValid = time.Second

// Gated returns a Client on which, while a backup is being restored to what is
// behind client, every call but Watch and RequestProgress fails with ErrRestoring. For that it asks
// once a second, while it is used.
func Gated(client Client) Client { return &gate{client: client} }

// gate is what Gated returns.
type gate struct {
	client Client
	open   atomic.Int64 // when it was last found open, in Unix nanoseconds
}

func (g *gate) pass(ctx context.Context) error {
	// Asked before, so that the answer is no older than this.
	asked := time.Now()
	if asked.Sub(time.Unix(0, g.open.Load())) < gateValid {
		return nil
	}
	resp, err := g.client.Get(ctx, schema.RestoreKey(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	if len(resp.Kvs) > 0 {
		return ErrRestoring
	}
	g.open.Store(asked.UnixNano())
	return nil
}

// Get implements Client.
func (g *gate) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := g.pass(ctx); err != nil {
		return nil, err
	}
	return g.client.Get(ctx, key, opts...)
}

// GetStream is that of the client, if it has one.
func (g *gate) GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	c, ok := g.client.(streamer)
	if !ok {
		return nil, status.Error(codes.Unimplemented, errNoStream.Error())
	}
	if err := g.pass(ctx); err != nil {
		return nil, err
	}
	return c.GetStream(ctx, key, opts...)
}

// Watch implements Client.
func (g *gate) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	return g.client.Watch(ctx, key, opts...)
}

// RequestProgress implements Client.
func (g *gate) RequestProgress(ctx context.Context) error { return g.client.RequestProgress(ctx) }

// Txn implements Client.
func (g *gate) Txn(ctx context.Context) clientv3.Txn { return &gatedTxn{g.client.Txn(ctx), g, ctx} }

type gatedTxn struct {
	clientv3.Txn

	gate *gate
	ctx  context.Context //nolint:containedctx // as that of clientv3 is
}

func (t *gatedTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.Txn = t.Txn.If(cs...); return t }
func (t *gatedTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *gatedTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

// Commit implements clientv3.Txn.
func (t *gatedTxn) Commit() (*clientv3.TxnResponse, error) {
	if err := t.gate.pass(t.ctx); err != nil {
		return nil, err
	}
	return t.Txn.Commit()
}
