package cli

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"strings"
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
	tls, err := r.tls(c)
	if err != nil {
		return nil, fmt.Errorf("%w; client configuration %s names the files", err, path)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(tls)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// So that a watch notices when dkimd's machine is gone. A server may take more than one ping in 5 minutes amiss.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 20 * time.Second}),
		grpc.WithUserAgent("dkimctl/" + r.Version),
	}
	if c.TokenFile != "" {
		token, err := readToken(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("%w; client configuration %s names the file", err, path)
		}
		options = append(options, grpc.WithPerRPCCredentials(token))
	}
	conn, err := grpc.NewClient(c.Address, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.Address, err)
	}
	return &session{config: c, source: path, conn: conn}, nil
}

func (r *run) tls(c config.Client) (*tls.Config, error) {
	if c.CertFile == "" {
		return pki.AnonymousTLS(c.CAFile, c.ServerName)
	}
	logger := slog.New(slog.NewTextHandler(r.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return pki.ClientTLS(c.CAFile, c.CertFile, c.KeyFile, c.ServerName, logger)
}

// bearer is a token that goes with each call.
type bearer struct{ token string }

// readToken reads a token from a file that nobody but its owner may read.
func readToken(file string) (bearer, error) {
	info, err := os.Stat(file)
	if err != nil {
		return bearer{}, fmt.Errorf("token: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return bearer{}, fmt.Errorf("%s can be read by others than its owner (mode %04o): revoke the token if it may have been seen, else chmod 600 it", file, mode)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return bearer{}, fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return bearer{}, fmt.Errorf("%s holds no token", file)
	}
	return bearer{token}, nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

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
