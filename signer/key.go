package signer

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// Key is a key to sign with now. It is a crypto.Signer of SHA-256 digests, as DKIM
// has them: RSASSA-PKCS1-v1_5, or Ed25519 of the digest (RFC 8463). Ask for it anew
// with each message. It is safe for concurrent use.
type Key struct {
	Domain   string // d=
	Selector string // s=
	// Name is the resource, brands/{brand}/domains/{domain}/keys/{key}.
	Name string

	c      *Client
	sender string
	until  time.Time
	public crypto.PublicKey
}

var _ crypto.Signer = (*Key)(nil)

// Algorithm is the a= of a signature: "rsa-sha256" or "ed25519-sha256".
func (k *Key) Algorithm() string {
	if _, ok := k.public.(ed25519.PublicKey); ok {
		return "ed25519-sha256"
	}
	return "rsa-sha256"
}

// Public returns an *rsa.PublicKey or an ed25519.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign signs a digest. It returns ErrNotSigning if the key no longer signs,
// ErrUnavailable, and ErrRefused. random is not used.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(k.c.ctx, digest, opts)
}

// SignContext is Sign that ends with ctx.
func (k *Key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	want := crypto.SHA256
	if _, ok := k.public.(ed25519.PublicKey); ok {
		want = crypto.Hash(0)
	}
	if _, pss := opts.(*rsa.PSSOptions); pss || opts == nil || opts.HashFunc() != want || len(digest) != sha256.Size {
		return nil, fmt.Errorf("%w: DKIM signs SHA-256 digests of %d octets with RSASSA-PKCS1-v1_5 or Ed25519 (RFC 6376 §3.3, RFC 8463 §3)", ErrRefused, sha256.Size)
	}
	if k.c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if !k.c.now().Before(k.until) {
		return nil, fmt.Errorf("%w: the key was for messages until %s", ErrUnavailable, k.until.UTC().Format(time.RFC3339))
	}
	var signed []byte
	var err error
	if k.c.o.Local {
		signed, err = k.c.halves.sign(ctx, k.Name, digest, opts)
	} else {
		signed, err = k.c.remote(ctx, k.Name, digest)
	}
	switch {
	case err == nil:
		k.c.used.note(k.Name, k.c.now())
	case errors.Is(err, ErrNotSigning) && k.c.cache != nil:
		k.c.cache.drop(k.sender)
	}
	return signed, err
}

// signature is a digest that waits for dkimd.
type signature struct {
	ctx    context.Context //nolint:containedctx // of who waits
	digest *dkimv1.SignRequest_Digest
	done   chan signed // has room for one
}

type signed struct {
	result *dkimv1.SignResponse_Result
	err    error
}

const (
	// senders is how many calls of Sign are on their way at most, each with the
	// digests that gathered while the others were.
	senders   = 8
	signBatch = 32
)

// remote has dkimd sign.
func (c *Client) remote(ctx context.Context, key string, digest []byte) ([]byte, error) {
	r, err := c.submit(ctx, &dkimv1.SignRequest_Digest{Key: key, Digest: digest})
	return r.GetSignature(), err
}

// submit waits for the answer to one digest.
func (c *Client) submit(ctx context.Context, d *dkimv1.SignRequest_Digest) (*dkimv1.SignResponse_Result, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	s := signature{ctx: ctx, digest: d, done: make(chan signed, 1)}
	select {
	case c.signing <- s:
	case <-ctx.Done():
		return nil, c.ended(ctx)
	case <-c.ctx.Done():
		return nil, ErrClosed
	}
	select {
	case r := <-s.done:
		if r.err == nil && r.result.GetError() != nil {
			r.err = failureOf(status.FromProto(r.result.GetError()))
		}
		return r.result, r.err
	case <-ctx.Done():
		return nil, c.ended(ctx)
	case <-c.ctx.Done():
		return nil, ErrClosed
	}
}

// ended is why a call that ctx ended has failed.
func (c *Client) ended(ctx context.Context) error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
}

// send takes digests that wait to dkimd, until the Client is closed.
func (c *Client) send() {
	for {
		var batch []signature
		select {
		case s := <-c.signing:
			batch = append(batch, s)
		case <-c.ctx.Done():
			return
		}
	more:
		for len(batch) < signBatch {
			select {
			case s := <-c.signing:
				batch = append(batch, s)
			default:
				break more
			}
		}
		c.sendBatch(batch)
	}
}

func (c *Client) sendBatch(batch []signature) {
	c.sending.Add(1)
	defer c.sending.Add(-1)
	req := &dkimv1.SignRequest{}
	for _, s := range batch {
		req.Digests = append(req.Digests, s.digest)
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.o.Timeout)
	defer cancel()
	var wait backoff
	resp, err := c.api.Sign(ctx, req)
	for tries := 0; err != nil && tries < 3 && errors.Is(failure(err), ErrUnavailable); tries++ {
		if !sleep(ctx, wait.next()) { // another dkimd may answer
			break
		}
		resp, err = c.api.Sign(ctx, req)
	}
	if err == nil && len(resp.GetResults()) != len(batch) {
		err = fmt.Errorf("%w: %d answers to %d digests", ErrUnavailable, len(resp.GetResults()), len(batch))
	} else {
		err = failure(err)
	}
	for i, s := range batch {
		if err != nil {
			s.done <- signed{err: err}
		} else {
			s.done <- signed{result: resp.GetResults()[i]}
		}
	}
}
