package cli

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/pki"
)

// maxMessage is enough for a page of domains with as many selectors as they may
// have.
const maxMessage = 16 << 20

// pageSize is how many items a list call asks for.
const pageSize = 500

// session is a connection to dkimd.
type session struct {
	config config.Client
	source string // where config is from
	conn   *grpc.ClientConn
}

// connect returns the client of the API. What is wrong with the connection
// shows at the first call.
func (r *run) connect() (dkimv1.KeyManagementClient, error) {
	if r.session == nil {
		s, err := r.newSession()
		if err != nil {
			return nil, err
		}
		r.session = s
	}
	return dkimv1.NewKeyManagementClient(r.session.conn), nil
}

func (r *run) newSession() (*session, error) {
	path, err := config.Find(r.configFile)
	if err != nil {
		return nil, err
	}
	c, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	if r.address != "" {
		if err := config.CheckAddress(r.address); err != nil {
			return nil, usageError{"--address: " + err.Error()}
		}
		c.Address = r.address
	}
	logger := slog.New(slog.NewTextHandler(r.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	tls, err := pki.ClientTLS(c.CAFile, c.CertFile, c.KeyFile, c.ServerName, logger)
	if err != nil {
		return nil, fmt.Errorf("%w; client configuration %s names the files", err, path)
	}
	conn, err := grpc.NewClient(c.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(tls)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// So that a watch notices when dkimd's machine is gone. A server may take more than one ping in 5 minutes amiss.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 20 * time.Second}),
		grpc.WithUserAgent("dkimctl/"+r.Version))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.Address, err)
	}
	return &session{config: c, source: path, conn: conn}, nil
}

func (r *run) disconnect() {
	if r.session != nil {
		_ = r.session.conn.Close() // all calls are over
	}
}

// call makes one call within the time limit. Its error is a *failure.
func call[Req, Resp any](ctx context.Context, r *run, method func(context.Context, *Req, ...grpc.CallOption) (*Resp, error), req *Req) (*Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := method(ctx, req)
	if err != nil {
		return nil, r.failure(err)
	}
	return resp, nil
}
