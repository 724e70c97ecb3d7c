package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

const (
	// clockSkew is how far the issuer's clock may be off.
	clockSkew = time.Minute
	// keyAge is how long a key of the issuer is used before it is looked whether it
	// is still one.
	keyAge = 10 * time.Minute
	// issuerTimeout bounds a question to the issuer.
	issuerTimeout = 5 * time.Second
	// maxIssuerBody bounds its answer.
	maxIssuerBody = 1 << 20

	// Questions to the issuer, whatever tokens are shown.
	askBurst    = 10
	askInterval = 6 * time.Second
)

// The claims that say a caller's role and brand, unless told otherwise.
const (
	DefaultRoleClaim  = "dkimzone_role"
	DefaultBrandClaim = "dkimzone_brand"
)

// signatureAlgorithms are those whose keys are public: no "none", no HMAC.
var signatureAlgorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

// errIssuer is the error of a token that cannot be judged without the issuer.
var errIssuer = errors.New("issuer unavailable")

// IssuerOptions say whose JWTs are accepted.
type IssuerOptions struct {
	URL      string // the iss claim; https
	Audience string // that the aud claim must have
	// RoleClaim has the caller's role, or a list with just one; a dotted path if no
	// claim is called so. Default DefaultRoleClaim.
	RoleClaim string
	// BrandClaim has the brand that the caller is bound to, in the same way. Default
	// DefaultBrandClaim.
	BrandClaim string
	CAFile     string // of the issuer's certificate; empty: the system's
	// KeySetURL is where its keys are. Empty: where its configuration says, at URL +
	// /.well-known/openid-configuration.
	KeySetURL string
	Now       func() time.Time
}

// Issuer verifies the JWTs of an OpenID Connect issuer (RFC 7519). It asks the
// issuer for its keys when it needs them. It is safe for concurrent use.
type Issuer struct {
	o      IssuerOptions
	client *http.Client

	mu      sync.Mutex
	keysURL string // "" until known
	keys    *oidc.RemoteKeySet
	asked   time.Time          // when keys was taken into use
	next    *oidc.RemoteKeySet // is to take its place
}

// NewIssuer checks the options. It does not ask the issuer, which may be away.
func NewIssuer(o IssuerOptions) (*Issuer, error) {
	if o.Audience == "" {
		return nil, errors.New("an audience is needed: tokens for others must not count here")
	}
	for _, u := range []string{o.URL, o.KeySetURL} {
		if u == "" && o.URL != "" {
			continue
		}
		if err := checkURL(u); err != nil {
			return nil, err
		}
	}
	if o.RoleClaim == "" {
		o.RoleClaim = DefaultRoleClaim
	}
	if o.BrandClaim == "" {
		o.BrandClaim = DefaultBrandClaim
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, Proxy: http.ProxyFromEnvironment,
		ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: time.Minute,
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA of the issuer: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", o.CAFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &Issuer{o: o, keysURL: o.KeySetURL, client: &http.Client{
		Transport: &sparing{inner: transport, now: o.Now, limit: newThrottle(askBurst, askInterval)}, Timeout: issuerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// checkURL refuses what others on the way could change.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return fmt.Errorf("%q is no https URL", text)
	}
	if u.Scheme == "https" {
		return nil
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("%q: use https; http is for loopback addresses only", text)
}

// sparing asks the issuer no more than now and then, and reads no endless answers.
type sparing struct {
	inner http.RoundTripper
	now   func() time.Time
	limit *throttle
}

// RoundTrip implements http.RoundTripper.
func (s *sparing) RoundTrip(r *http.Request) (*http.Response, error) {
	if ok, wait := s.limit.take("", s.now()); !ok {
		return nil, busyError{wait}
	}
	resp, err := s.inner.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = limitedBody{io.LimitReader(resp.Body, maxIssuerBody), resp.Body}
	return resp, nil
}

type limitedBody struct {
	io.Reader
	io.Closer
}

// identify returns whom a JWT is of and until when. Its errors wrap errWrong and
// errIssuer, or are expiredError and busyError.
func (i *Issuer) identify(ctx context.Context, raw string) (Identity, time.Time, error) {
	if err := i.discover(ctx); err != nil {
		return Identity{}, time.Time{}, err
	}
	keys := &keySet{issuer: i}
	verifier := oidc.NewVerifier(i.o.URL, keys, &oidc.Config{
		ClientID: i.o.Audience, SupportedSigningAlgs: signatureAlgorithms,
		Now: func() time.Time { return i.o.Now().Add(-clockSkew) },
	})
	token, err := verifier.Verify(ctx, raw)
	if keys.failure != nil {
		return Identity{}, time.Time{}, keys.failure
	}
	if _, ok := errors.AsType[*oidc.TokenExpiredError](err); ok {
		return Identity{}, time.Time{}, expiredError{"token"}
	}
	if err != nil {
		return Identity{}, time.Time{}, fmt.Errorf("%w: %w", errWrong, err)
	}
	id, err := i.identity(token)
	if err != nil {
		return Identity{}, time.Time{}, fmt.Errorf("%w: %w", errWrong, err)
	}
	return id, token.Expiry.Add(clockSkew), nil
}

func (i *Issuer) identity(token *oidc.IDToken) (Identity, error) {
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return Identity{}, err
	}
	// The library is more generous.
	if nbf, ok := claims["nbf"].(float64); ok && i.o.Now().Add(clockSkew).Before(time.Unix(int64(nbf), 0)) {
		return Identity{}, errors.New("it is not valid yet")
	}
	id := Identity{Name: token.Subject}
	roles := claimValues(claims, i.o.RoleClaim)
	roles = slices.DeleteFunc(roles, func(r string) bool { return !slices.Contains(roleNames, r) })
	if len(roles) != 1 {
		return Identity{}, fmt.Errorf("claim %s names %d roles of this service, want one", i.o.RoleClaim, len(roles))
	}
	id.Role = Role(roles[0])
	switch brands := claimValues(claims, i.o.BrandClaim); len(brands) {
	case 0:
	case 1:
		if id.Brand = brands[0]; id.Brand == "" {
			return Identity{}, fmt.Errorf("claim %s is empty", i.o.BrandClaim)
		}
	default:
		return Identity{}, fmt.Errorf("claim %s names %d brands, want one", i.o.BrandClaim, len(brands))
	}
	return id, id.Check()
}

var roleNames = []string{string(Admin), string(Brand), string(Signer), string(Auditor)}

// claimValues are the strings of a claim: those of a list, or the only one. A
// value of another kind counts as an empty string, so that it is not overlooked.
func claimValues(claims map[string]any, name string) []string {
	value, ok := claims[name]
	if !ok {
		var at any = claims
		for part := range strings.SplitSeq(name, ".") {
			m, isMap := at.(map[string]any)
			if !isMap {
				return nil
			}
			if at, ok = m[part]; !ok {
				return nil
			}
		}
		value = at
	}
	text := func(v any) string { s, _ := v.(string); return s }
	list, isList := value.([]any)
	if !isList {
		return []string{text(value)}
	}
	var values []string
	for _, v := range list {
		values = append(values, text(v))
	}
	return values
}

// discover asks the issuer where its keys are, unless that is known.
func (i *Issuer) discover(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.keysURL != "" {
		return nil
	}
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, i.client), i.o.URL)
	if err != nil {
		return issuerFailure(err)
	}
	var found struct {
		URL string `json:"jwks_uri"`
	}
	if err := provider.Claims(&found); err != nil {
		return issuerFailure(err)
	}
	if err := checkURL(found.URL); err != nil {
		return issuerFailure(fmt.Errorf("jwks_uri: %w", err))
	}
	i.keysURL = found.URL
	return nil
}

func issuerFailure(err error) error {
	if busy, ok := errors.AsType[busyError](err); ok {
		return busy
	}
	return fmt.Errorf("%w: %w", errIssuer, err)
}

// keySet is the issuer's keys for one token.
type keySet struct {
	issuer  *Issuer
	failure error // why they could not be had
}

// VerifySignature implements oidc.KeySet.
func (k *keySet) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	current, next := k.issuer.keySets()
	if next != nil {
		payload, err := next.VerifySignature(ctx, jwt)
		if !unreachable(err) {
			k.issuer.replace(next)
			return payload, err
		}
		if current == nil {
			k.failure = issuerFailure(err)
			return nil, err
		}
	}
	payload, err := current.VerifySignature(ctx, jwt)
	if unreachable(err) {
		k.failure = issuerFailure(err)
	}
	return payload, err
}

// unreachable reports whether a signature could not be judged for want of keys.
func unreachable(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "fetching keys")
}

// keySets returns the keys in use, nil at first, and new ones that are to take
// their place, nil while they are young.
func (i *Issuer) keySets() (current, next *oidc.RemoteKeySet) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.next == nil && (i.keys == nil || i.o.Now().Sub(i.asked) >= keyAge) {
		i.next = oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), i.client), i.keysURL) //nolint:contextcheck // it outlives the call
	}
	return i.keys, i.next
}

func (i *Issuer) replace(keys *oidc.RemoteKeySet) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.next == keys {
		i.keys, i.asked, i.next = keys, i.o.Now(), nil
	}
}
