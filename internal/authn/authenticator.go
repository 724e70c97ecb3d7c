package authn

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

const (
	// recheck is how old the store's word on a credential may be, and so how long
	// one that was revoked through another dkimd may still be used.
	recheck = 10 * time.Second
	// grace is how long a credential stays good while the store does not answer.
	grace = 10 * time.Minute
	// maxAuthorization bounds the authorization header.
	maxAuthorization = 16 << 10
	// argonWait is how long a secret waits to be looked at.
	argonWait  = 2 * time.Second
	retryStore = time.Second
	// verifyTimeout bounds a verdict.
	verifyTimeout = 10 * time.Second

	// Attempts with wrong credentials, for each address, and for each brand and
	// secret that is named.
	attemptBurst    = 20
	attemptInterval = 3 * time.Second
)

// Credentials is where tokens and secrets are stored; *keystore.Store is one. It
// must be safe for concurrent use.
type Credentials interface {
	Token(ctx context.Context, id string) (keystore.Token, error)
	BrandSecrets(ctx context.Context, brand string) ([]keystore.BrandSecret, error)
}

// Options are what an Authenticator works with.
type Options struct {
	Credentials Credentials
	// DNSNames says who the holders of certificates with a DNS SAN are, by name in
	// lower case. May be nil.
	DNSNames map[string]Identity
	// Issuer verifies JWTs; nil: none are accepted.
	Issuer *Issuer
	Now    func() time.Time
	Logger *slog.Logger
}

// Authenticator tells who calls. It is safe for concurrent use.
type Authenticator struct {
	o        Options
	cache    *cache
	attempts *throttle // by address
	names    *throttle // by brand or secret
	lanes    lanes
	flights  singleflight.Group
}

// New returns an Authenticator.
func New(o Options) *Authenticator {
	return &Authenticator{
		o: o, cache: newCache(), lanes: newLanes(),
		attempts: newThrottle(attemptBurst, attemptInterval), names: newThrottle(attemptBurst, attemptInterval),
	}
}

// Forget makes this process ask the store again about the token or secret of an
// id: it was revoked.
func (a *Authenticator) Forget(id string) { a.cache.dropID(id) }

// Authenticate returns who makes the gRPC call of ctx. An authorization header
// decides alone, and must be valid; without one it is the leaf of the verified
// client certificate. The errors are refusals for the caller: UNAUTHENTICATED,
// RESOURCE_EXHAUSTED and UNAVAILABLE, without a word on what else there is.
func (a *Authenticator) Authenticate(ctx context.Context) (Caller, error) {
	return a.authenticate(ctx, false)
}

// authenticate is Authenticate, and again so of a caller who was let in: then it is
// no attempt, of which his address may have none left.
func (a *Authenticator) authenticate(ctx context.Context, again bool) (Caller, error) {
	addr := callerAddr(ctx)
	md, _ := metadata.FromIncomingContext(ctx)
	switch values := md.Get("authorization"); {
	case len(values) > 1:
		return Caller{}, unauthenticated("several authorization headers: send one")
	case len(values) == 1:
		return a.fromHeader(ctx, values[0], addr, again)
	}
	return a.fromCertificate(ctx, addr)
}

func (a *Authenticator) fromCertificate(ctx context.Context, addr netip.Addr) (Caller, error) {
	cert := verifiedLeaf(ctx)
	if cert == nil {
		return Caller{}, unauthenticated(messageNone)
	}
	id, err := FromCertificate(cert, a.o.DNSNames)
	if err != nil {
		return Caller{}, unauthenticated(err.Error() + "; present a certificate that this installation's CA issued for a role")
	}
	if a.o.Now().After(cert.NotAfter) { // the connection is older
		return Caller{}, unauthenticated("the client certificate has expired: connect again with its successor")
	}
	return Caller{Identity: id, Method: Certificate, Addr: addr}, nil
}

func verifiedLeaf(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

func callerAddr(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	if tcp, ok := p.Addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	addr, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return addr.Addr().Unmap()
}

// errWrong is the verdict on credentials that are not good.
var errWrong = errors.New("wrong credentials")

// expiredError is the verdict on credentials that were good.
type expiredError struct{ what string }

func (e expiredError) Error() string { return e.what + " has expired" }

// busyError is the verdict on credentials that there is no time to look at.
type busyError struct{ wait time.Duration }

func (busyError) Error() string { return "too many attempts" }

// claimant is who presents a credential.
type claimant struct {
	Caller

	again bool // he was let in with it
}

func (a *Authenticator) fromHeader(ctx context.Context, value string, addr netip.Addr, again bool) (Caller, error) {
	scheme, credential, _ := strings.Cut(value, " ")
	credential = strings.TrimLeft(credential, " ")
	c := claimant{Caller{Addr: addr}, again}
	wrong := func(context.Context, grant) (grant, error) { return grant{}, errWrong }
	switch {
	case len(value) > maxAuthorization:
		credential = "" // not worth a digest
	case strings.EqualFold(scheme, "bearer"):
		c.Method = Token
		if id := credentialID(tokenPrefix, credential); id != "" {
			return a.verify(ctx, c, id, []string{credential}, a.checkToken(id, credential))
		}
		if a.o.Issuer != nil && strings.Count(credential, ".") == 2 {
			c.Method = JWT
			return a.verify(ctx, c, "", []string{credential}, a.checkJWT(credential))
		}
	case strings.EqualFold(scheme, "basic"):
		c.Method = Secret
		raw, err := base64.StdEncoding.Strict().DecodeString(credential)
		brand, secret, ok := strings.Cut(string(raw), ":")
		if err == nil && ok && brandForm.MatchString(brand) {
			id := credentialID(secretPrefix, secret)
			return a.verify(ctx, c, id, []string{brand, secret}, a.checkSecret(brand, id, secret))
		}
	}
	return a.verify(ctx, c, "", []string{"", credential}, wrong)
}

// verdict judges a credential. It gets what was found the last time, or a zero
// grant.
type verdict func(context.Context, grant) (grant, error)

// verify lets check judge a credential, unless it was found right a moment ago.
// Calls with the same credential wait for one verdict.
func (a *Authenticator) verify(ctx context.Context, c claimant, id string, parts []string, check verdict) (Caller, error) {
	digest := a.cache.digest(append([]string{string(c.Method)}, parts...)...)
	if g, ok := a.cache.get(digest); ok && a.fresh(g) {
		return g.caller(c.Caller), nil
	}
	flight := string(digest[:])
	if c.again {
		flight += "again"
	}
	result := a.flights.DoChan(flight, func() (any, error) {
		shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
		defer cancel()
		return a.judge(shared, c, id, digest, check)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return Caller{}, r.Err
		}
		g, _ := r.Val.(grant)
		return g.caller(c.Caller), nil
	case <-ctx.Done():
		return Caller{}, status.FromContextError(ctx.Err()).Err()
	}
}

func (a *Authenticator) fresh(g grant) bool {
	now := a.o.Now()
	return now.Sub(g.asked) < recheck && !g.expired(now)
}

// judge asks for a verdict, remembers it, and puts it into words for the caller.
func (a *Authenticator) judge(ctx context.Context, c claimant, id string, digest [32]byte, check verdict) (grant, error) {
	now, key := a.o.Now(), addrKey(c.Addr)
	before, known := a.cache.get(digest)
	if known && a.fresh(before) { // since a moment ago
		return before, nil
	}
	attempt := !known && !c.again
	if attempt {
		if ok, wait := a.attempts.take(key, now); !ok {
			return grant{}, tooMany(wait)
		}
	}
	found, err := check(ctx, before)
	if err == nil {
		found.asked, found.confirmed = now, now
		a.cache.put(digest, found)
		if attempt {
			a.attempts.giveBack(key)
		}
		return found, nil
	}
	who := slog.Group("credential", slog.String("method", string(c.Method)), slog.String("id", id), slog.String("address", c.Addr.String()))
	expired, isExpired := errors.AsType[expiredError](err)
	busy, isBusy := errors.AsType[busyError](err)
	switch {
	case errors.Is(err, errWrong) || isExpired:
		a.cache.drop(digest)
		a.o.Logger.LogAttrs(ctx, slog.LevelWarn, "credentials refused", slog.String("reason", cut(err)), who)
		if isExpired {
			return grant{}, unauthenticated("the " + expired.Error())
		}
		return grant{}, unauthenticated(messageWrong)
	case isBusy:
		return grant{}, tooMany(busy.wait)
	}
	// Nobody knows: that is no attempt.
	if attempt {
		a.attempts.giveBack(key)
	}
	reason, what := ReasonUnavailable, "the store that knows the credentials"
	switch {
	case errors.Is(err, errIssuer):
		reason, what = ReasonIssuer, "the issuer of the token"
	case !errors.Is(err, keystore.ErrUnavailable):
		return grant{}, err
	}
	if known && now.Sub(before.confirmed) < grace && !before.expired(now) {
		before.asked = now
		a.cache.put(digest, before)
		return before, nil
	}
	a.o.Logger.LogAttrs(ctx, slog.LevelWarn, "credentials cannot be verified", slog.String("error", cut(err)), who)
	return grant{}, refusal.New(codes.Unavailable, reason, what+" does not answer; try again", refusal.Retry(retryStore)).Err()
}

func tooMany(wait time.Duration) error {
	return refusal.New(codes.ResourceExhausted, ReasonTooManyAttempts, "too many attempts to authenticate; try again later", refusal.Retry(max(wait, time.Second))).Err()
}

func (a *Authenticator) checkToken(id, token string) verdict {
	return func(ctx context.Context, _ grant) (grant, error) {
		t, err := a.o.Credentials.Token(ctx, id)
		if errors.Is(err, keystore.ErrTokenNotFound) {
			return grant{}, errWrong
		}
		if err != nil {
			return grant{}, err
		}
		g := grant{
			identity: Identity{Role: Role(t.Role), Name: t.Name, Brand: t.Brand, ExportKeys: t.ExportKeys}, id: id, expires: t.ExpireTime,
		}
		switch {
		case !sameHash(t.Hash, tokenHash(token)) || g.identity.Check() != nil:
			return grant{}, errWrong
		case g.expired(a.o.Now()):
			return grant{}, expiredError{"token"}
		}
		return g, nil
	}
}

func (a *Authenticator) checkSecret(brand, id, secret string) verdict {
	return func(ctx context.Context, before grant) (grant, error) {
		secrets, err := a.o.Credentials.BrandSecrets(ctx, brand)
		if err != nil {
			return grant{}, err
		}
		stored, there := decoy, false
		for _, s := range secrets {
			if id != "" && s.ID == id {
				stored, there = s, true
			}
		}
		g := grant{identity: Identity{Role: Brand, Name: id, Brand: brand}, id: id, hash: stored.Hash, expires: stored.ExpireTime}
		if !there || !sameHash(stored.Hash, before.hash) { // else it was computed before
			if right, err := a.compare(ctx, brand, there, secret, stored); err != nil {
				return grant{}, err
			} else if !right {
				return grant{}, errWrong
			}
		}
		if g.expired(a.o.Now()) {
			return grant{}, expiredError{"secret"}
		}
		return g, nil
	}
}

// compare reports whether a secret is the stored one, which there says is one at
// all. It takes as long if it is not.
func (a *Authenticator) compare(ctx context.Context, brand string, there bool, secret string, stored keystore.BrandSecret) (bool, error) {
	// Who does not know the id of a secret cannot use up its attempts.
	key, lane := brand, a.lanes.guessed
	if there {
		key, lane = brand+"/"+stored.ID, a.lanes.known
	}
	if ok, wait := a.names.take(key, a.o.Now()); !ok {
		return false, busyError{wait}
	}
	ctx, cancel := context.WithTimeout(ctx, argonWait)
	defer cancel()
	select {
	case lane <- struct{}{}:
		defer func() { <-lane }()
	case <-ctx.Done():
		a.names.giveBack(key)
		return false, busyError{argonWait}
	}
	right := sameHash(argon(secret, stored), stored.Hash) && there
	if right {
		a.names.giveBack(key)
	}
	return right, nil
}

func (a *Authenticator) checkJWT(token string) verdict {
	return func(ctx context.Context, _ grant) (grant, error) {
		id, expires, err := a.o.Issuer.identify(ctx, token)
		if err != nil {
			return grant{}, err
		}
		return grant{identity: id, expires: expires}, nil
	}
}

// cut is what err says, as far as it belongs on a line: an issuer and a forger may
// have much to say.
func cut(err error) string { return fmt.Sprintf("%.300s", err.Error()) }
