package authn_test

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// stream is the server's end of a stream.
type stream struct {
	grpc.ServerStream

	ctx    context.Context
	header metadata.MD
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) SetHeader(md metadata.MD) error {
	s.header = metadata.Join(s.header, md)
	return nil
}

func TestRequestID(t *testing.T) {
	for name, tt := range map[string]struct {
		sent []string
		kept bool
	}{
		"good":        {[]string{"0af7651916cd43dd.8448-eb_1"}, true},
		"none":        {nil, false},
		"empty":       {[]string{""}, false},
		"two":         {[]string{"a", "b"}, false},
		"a line":      {[]string{"a\nadmin did it"}, false},
		"a quote":     {[]string{`a"b`}, false},
		"long":        {[]string{"a234567890123456789012345678901234567890123456789012345678901234567890"}, false},
		"not English": {[]string{"ä"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stream{ctx: metadata.NewIncomingContext(from(t, "192.0.2.1"), metadata.MD{"x-request-id": tt.sent})}
			var caller authn.Caller
			if err := authn.TagStream(nil, s, nil, func(_ any, s grpc.ServerStream) error {
				var known bool
				if caller, known = authn.FromContext(s.Context()); known {
					t.Error("the caller is known")
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			kept := len(tt.sent) == 1 && caller.RequestID == tt.sent[0]
			if kept != tt.kept || len(caller.RequestID) < 5 || s.header.Get("x-request-id")[0] != caller.RequestID {
				t.Errorf("id %q, answered %v, sent %q", caller.RequestID, s.header, tt.sent)
			}
		})
	}
}

// Who is told of a call before the caller is known knows him afterwards.
func TestCallerIsKnownOutside(t *testing.T) {
	s := newStore(t)
	a := s.authenticator(nil)
	token := "Bearer " + s.token(t, keystore.Token{Role: "admin", Name: "alice"})
	for _, tt := range []struct {
		authorization string
		known         bool
	}{{token, true}, {token + "x", false}} {
		var outside context.Context
		_, err := authn.TagUnary(from(t, "192.0.2.7", tt.authorization), nil, nil, func(ctx context.Context, req any) (any, error) {
			outside = ctx
			return a.UnaryInterceptor(ctx, req, nil, func(ctx context.Context, _ any) (any, error) {
				if caller, ok := authn.FromContext(ctx); !ok || caller.Name != "alice" || caller.RequestID == "" {
					t.Errorf("inside: %v, %t", caller, ok)
				}
				return nil, nil
			})
		})
		caller, known := authn.FromContext(outside)
		if known != tt.known || (err == nil) != tt.known || caller.Addr.String() != "192.0.2.7" || caller.RequestID == "" {
			t.Errorf("outside: %+v, %t, %v", caller, known, err)
		}
	}
}

// A stream does not outlive its caller's credentials, but a store that is away.
func TestStreamsEndWithCredentials(t *testing.T) {
	s := newStore(t)
	_, token, hash := authn.NewToken()
	stored := keystore.Token{ID: token[4:16], Hash: hash, Role: "admin", Name: "alice"}
	for name, tt := range map[string]struct {
		change func(*changing)
		life   time.Duration
		want   codes.Code
	}{
		"revoked": {func(c *changing) { c.err.Store(&keystore.ErrTokenNotFound) }, time.Hour, codes.Unauthenticated},
		"expired": {func(*changing) {}, 2 * time.Minute, codes.Unauthenticated},
		"away":    {func(c *changing) { c.err.Store(&keystore.ErrUnavailable) }, time.Hour, codes.OK},
		"good":    {func(*changing) {}, time.Hour, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := from(t, "192.0.2.1", "Bearer "+token)
				begun := time.Now()
				creds := &changing{fixed: fixed{token: stored}}
				creds.token.ExpireTime = begun.Add(tt.life)
				a := authn.New(authn.Options{Credentials: creds, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
				err := a.StreamInterceptor(nil, &stream{ctx: ctx}, nil, func(_ any, s grpc.ServerStream) error {
					time.Sleep(time.Minute) // of the bubble
					synctest.Wait()
					tt.change(creds)
					// Its other calls use up all attempts that its address has.
					for range 5 * 60 {
						for range 30 {
							_, _ = a.Authenticate(ctx)
						}
						select {
						case <-s.Context().Done():
							return s.Context().Err()
						case <-time.After(time.Second):
						}
					}
					return nil
				})
				if status.Code(err) != tt.want {
					t.Errorf("ended with %v, want %v", err, tt.want)
				}
				if limit := begun.Add(tt.life + 40*time.Second); tt.want != codes.OK && time.Now().After(limit) {
					t.Errorf("ended after %s", time.Since(begun))
				}
			})
		})
	}
	// What ended by itself ends as it did.
	err := s.authenticator(nil).StreamInterceptor(nil, &stream{ctx: from(t, "192.0.2.1", "Bearer "+s.token(t, keystore.Token{Role: "admin", Name: "a"}))}, nil,
		func(any, grpc.ServerStream) error { return io.EOF })
	if err != io.EOF { //nolint:errorlint // the very same
		t.Errorf("got %v, want %v", err, io.EOF)
	}
}

// changing is fixed until it is told otherwise.
type changing struct {
	fixed

	err atomic.Pointer[error]
}

func (c *changing) Token(ctx context.Context, id string) (keystore.Token, error) {
	if err := c.err.Load(); err != nil {
		return keystore.Token{}, *err
	}
	return c.fixed.Token(ctx, id)
}
