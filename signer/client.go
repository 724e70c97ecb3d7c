// Package signer is the client of those who sign mail with keys that dkimzone
// keeps. It says with which keys to sign mail of a domain, and gives a
// crypto.Signer for each, which has dkimd sign, or signs here with a private key
// that dkimd hands out.
//
//	c, err := signer.New(signer.Options{Addresses: []string{"dkimd1.example.net:9443"}, TLS: tlsConfig})
//	…
//	answer, err := c.Keys(ctx, "example.org")
//	for _, k := range answer.Keys {
//		err = dkim.Sign(out, in, &dkim.SignOptions{Domain: k.Domain, Selector: k.Selector, Signer: k}) // of go-msgauth
//	}
//
// # What happens while dkimd is away
//
// An answer says for how long it is good without another one, normally days: until
// then no key of it can have been withdrawn, unless as compromised. Keys goes on
// giving it until that time is over, and [ErrUnavailable] after that. Keys that sign
// here go on signing as long; those that dkimd signs with need one of the addresses.
//
// # Two ways to keep in step
//
// Without Options.Watch the client asks for each domain when it is needed, and
// again when the answer is due, mostly after four to five minutes, and after 10 seconds
// at most if the domain is nobody's or has no key of its own that signs. With it the
// client has all domains in memory and is told of each change within about a second.
package signer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

var (
	// ErrUnknownDomain says that no brand that the caller may see has the domain.
	ErrUnknownDomain = errors.New("signer: nobody has the domain")
	// ErrUnavailable says that dkimd does not answer and that nothing is known that is
	// still good. The mail may be tried again later.
	ErrUnavailable = errors.New("signer: dkimd does not answer, and nothing is known that is still good")
	// ErrNotSigning says that the key no longer signs. Keys has the one that does.
	ErrNotSigning = errors.New("signer: the key no longer signs")
	// ErrRefused says that dkimd refuses the caller, or what it asks for.
	ErrRefused = errors.New("signer: refused")
	// ErrClosed says that the Client was closed.
	ErrClosed = errors.New("signer: closed")
)

// Options says how to make a Client. Addresses and TLS are required, or Conn.
type Options struct {
	// Addresses of dkimd's gRPC listeners, "host:port". The first that answers is
	// used, and the next one when it no longer does.
	Addresses []string
	// TLS has the CA of dkimd and the certificate of the signer. Without a
	// certificate Token is needed.
	TLS *tls.Config
	// Token is a bearer token of role signer.
	Token string
	// Conn is a connection to use in place of all that; Close does not close it.
	Conn grpc.ClientConnInterface

	// Brand, "acme", is the only one to sign for. Mail of domains that nobody has is
	// then signed with its default key. Default: whichever has the domain.
	Brand string
	// Watch keeps what signs in memory, see above: of Brand, or of all that the
	// caller may see.
	Watch bool
	// Local signs here, with private keys that dkimd hands out. dkimd must allow
	// it (--allow-key-fetch), and the signer must be registered.
	Local bool
	// Register makes the signer known to dkimd, which then waits for it: a key
	// begins to sign when all registered signers hold it, and is revoked some time
	// after they last signed with it. It needs Watch. Nil: it is not registered.
	Register *Registration

	// Holds is for a registered signer whose mail is signed by somebody else, with
	// keys of PrivateKeys. It says which keys of a domain, by its name
	// brands/{brand}/domains/{domain}, can sign there, with when they last may have;
	// zero: never. What it says is reported when Client.Held is called, and once more
	// some minutes after that. It must be safe for concurrent use. Nil: this client signs.
	Holds func(domain string) map[string]time.Time

	// Timeout is how long a call to dkimd may take. Default 5 s.
	Timeout time.Duration
	// CacheSize is how many domains are remembered without Watch, and how many keys; with
	// Local and Register all keys are. Default 100 000.
	CacheSize int
	// ReportInterval is how often a registered signer reports, with up to 20 %
	// more or less. Keys to be held that others replaced are reported within a second, and once
	// more with the first report 150 seconds later. Default 1 minute.
	ReportInterval time.Duration
	// Logger says what goes on in the background. Default: nothing.
	Logger *slog.Logger
}

// Registration is how a signer is known to dkimd.
type Registration struct {
	// Name is that in the credential, or that with "." and something after it.
	// Default: that in the credential.
	Name string
	// Description is for people.
	Description string
	// Lease is how long dkimd waits for a signer that is silent. Default 1 hour.
	Lease time.Duration
}

// Client is safe for concurrent use.
type Client struct {
	o     Options
	api   dkimv1.SignerClient
	conn  *grpc.ClientConn // nil if it is the caller's
	clock atomic.Pointer[func() time.Time]

	ctx    context.Context //nolint:containedctx // of what runs until Close
	cancel context.CancelFunc
	group  sync.WaitGroup

	cache   *cache   // without Watch
	picture *picture // with Watch
	halves  *halves  // public, and with Local private
	signing chan signature
	used    *usage       // nil if not registered
	sending atomic.Int32 // calls of Sign on their way
}

// New returns a Client, which connects when it has to. It fails only if the Options
// cannot be.
func New(o Options) (*Client, error) {
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.CacheSize == 0 {
		o.CacheSize = 100_000
	}
	if o.ReportInterval == 0 {
		o.ReportInterval = time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Register != nil && !o.Watch:
		return nil, errors.New("signer: Register needs Watch: a key begins to sign when all registered signers hold it, and only one that watches knows of it before")
	case o.Holds != nil && (o.Register == nil || o.Local):
		return nil, errors.New("signer: Holds needs Register, and is not for Local: it says what another signer holds")
	case o.Local && o.Register == nil && o.Watch:
		return nil, errors.New("signer: Local with Watch needs Register: dkimd hands out keys to registered signers only")
	case o.Conn == nil && (len(o.Addresses) == 0 || o.TLS == nil):
		return nil, errors.New("signer: Addresses and TLS are needed")
	}
	c := &Client{o: o, signing: make(chan signature)}
	now := time.Now
	c.clock.Store(&now)
	conn := o.Conn
	if conn == nil {
		var err error
		if c.conn, err = dial(o); err != nil {
			return nil, err
		}
		conn = c.conn
	}
	c.api = dkimv1.NewSignerClient(conn)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if o.Local && o.Register != nil {
		c.halves = newHalves(c, 0) // it says that it holds them
	} else {
		c.halves = newHalves(c, o.CacheSize)
	}
	if o.Watch {
		c.picture = newPicture()
		if o.Register != nil && o.Holds == nil {
			c.picture.changed = make(map[string]struct{})
		}
		c.group.Go(c.watch)
	} else {
		c.cache = newCache(o.CacheSize)
	}
	if o.Register != nil {
		c.used = newUsage()
		c.group.Go(c.report)
	}
	for range senders {
		c.group.Go(c.send)
	}
	return c, nil
}

func (c *Client) now() time.Time { return (*c.clock.Load())() }

// dial makes a connection that tries the addresses in their order.
func dial(o Options) (*grpc.ClientConn, error) {
	r := manual.NewBuilderWithScheme("dkimd")
	state := resolver.State{}
	for _, a := range o.Addresses {
		host, _, found := strings.Cut(a, ":")
		if !found || host == "" {
			return nil, fmt.Errorf("signer: address %q is not of the form host:port", a)
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a, ServerName: serverName(a)}}})
	}
	r.InitialState(state)
	opts := []grpc.DialOption{
		grpc.WithResolvers(r),
		grpc.WithTransportCredentials(credentials.NewTLS(o.TLS.Clone())),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"pick_first":{}}]}`),
	}
	if o.Token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(o.Token)))
	}
	conn, err := grpc.NewClient("dkimd:///signer", opts...)
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	return conn, nil
}

func serverName(address string) string {
	i := strings.LastIndexByte(address, ':')
	return strings.Trim(address[:i], "[]")
}

// bearer is a token as gRPC sends it.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

// Close ends what runs in the background, reports what was used last, and clears
// the private keys that are here. Keys that were given out no longer sign.
func (c *Client) Close() error {
	c.cancel()
	c.group.Wait()
	c.halves.close()
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

// Ready waits until all that is watched is there. Without Watch it returns at once.
func (c *Client) Ready(ctx context.Context) error {
	if c.picture == nil {
		return nil
	}
	select {
	case <-c.picture.ready:
		return nil
	case <-c.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// probeName is a domain that nobody can have (RFC 6761 §6.4).
const probeName = "ready.invalid"

// Check returns nil if mail of some domain can be signed now, as far as can be told
// without signing: with Watch and Local when all was listed once; else when dkimd answers
// this caller, too, and has its brand. It returns ErrUnavailable, ErrRefused, ErrUnknownDomain, ErrClosed.
func (c *Client) Check(ctx context.Context) error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	if c.picture != nil {
		select {
		case <-c.picture.ready:
		default:
			return fmt.Errorf("%w: not all domains were listed yet", ErrUnavailable)
		}
		if c.o.Local {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	_, err := c.api.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: c.resource(probeName)})
	if err = failure(err); errors.Is(err, ErrUnknownDomain) && c.o.Brand == "" {
		return nil
	}
	return err
}

// Confirmed is when what is watched was last known to be whole, or zero: without Watch, and
// before it was listed.
func (c *Client) Confirmed() time.Time {
	if c.picture == nil {
		return time.Time{}
	}
	c.picture.mu.RLock()
	defer c.picture.mu.RUnlock()
	return c.picture.confirmed
}

// resource is the name of a domain in a request.
func (c *Client) resource(domain string) string {
	brand := c.o.Brand
	if brand == "" {
		brand = "-"
	}
	return "brands/" + brand + "/domains/" + domain
}

// Answer is with which keys to sign.
type Answer struct {
	// Keys all sign each message, one for each algorithm. None: do not sign, for
	// Reason.
	Keys []*Key
	// Fallback says that d= is not the domain of the sender, as its own keys cannot
	// be used.
	Fallback bool
	// Reason is why these keys, in UPPER_SNAKE.
	Reason string
	// ValidUntil is how long they may be used if dkimd does not answer.
	ValidUntil time.Time
}

// Keys says with which keys to sign mail of a domain now: that of the From address,
// in Unicode or as A-labels. It returns ErrUnknownDomain, ErrUnavailable,
// ErrRefused, and the error of ctx.
func (c *Client) Keys(ctx context.Context, domain string) (Answer, error) {
	name, err := normal(domain)
	if err != nil {
		return Answer{}, fmt.Errorf("%w: %q is no domain: %w", ErrRefused, domain, err)
	}
	if c.ctx.Err() != nil {
		return Answer{}, ErrClosed
	}
	var a *resolved
	if c.picture != nil {
		a, err = c.picture.resolve(c.o.Brand, name, c.now())
	} else {
		a, err = c.ask(ctx, name)
	}
	if err != nil {
		return Answer{}, err
	}
	answer := Answer{Fallback: a.fallback, Reason: a.reason, ValidUntil: a.until}
	for _, k := range a.keys {
		public, err := c.halves.public(ctx, k.GetKey())
		if errors.Is(err, ErrNotSigning) && c.cache != nil {
			c.cache.drop(name)
		}
		if err != nil {
			return Answer{}, err
		}
		answer.Keys = append(answer.Keys, &Key{
			Domain: k.GetDomain(), Selector: k.GetSelector(), Name: k.GetKey(), c: c, sender: name, until: a.until, public: public,
		})
	}
	return answer, nil
}

// Sign calls sign with the keys for a domain; when it fails as one of them no longer
// signs, as may happen while keys rotate, once more with those that do.
func (c *Client) Sign(ctx context.Context, domain string, sign func(Answer) error) error {
	for again := true; ; again = false {
		a, err := c.Keys(ctx, domain)
		if err == nil {
			err = sign(a)
		}
		if !again || !errors.Is(err, ErrNotSigning) {
			return err
		}
	}
}
