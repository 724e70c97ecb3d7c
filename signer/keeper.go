package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// KeyInfo is a key without anything to sign with.
type KeyInfo struct {
	Domain   string // d=
	Selector string // s=
	// Algorithm is "rsa-sha256" or "ed25519-sha256".
	Algorithm string
	// Name is the resource, brands/{brand}/domains/{domain}/keys/{key}.
	Name string
}

// Owner is the name of the domain that has the key, as Options.Holds and
// Client.Held take it.
func (k KeyInfo) Owner() string { return ownerOf(k.Name) }

// SigningDomain is what to sign mail of one domain with, by all that is watched.
type SigningDomain struct {
	// Domain is that of the From address, as A-labels.
	Domain string
	// Keys are as in Answer, from the domain or from its brand. None: do not sign.
	Keys     []KeyInfo
	Fallback bool
	// Hold is how long they may be used after Everything.Confirmed.
	Hold time.Duration
}

// Everything is all that a Client with Watch knows.
type Everything struct {
	// Domains has each domain once, in no order.
	Domains []SigningDomain
	// Default is what mail of domains that nobody has is signed with, if there is
	// an Options.Brand. Its Domain is "".
	Default SigningDomain
	// Standby are keys that may come to sign and must not yet, each once. They are
	// there with Options.Register.
	Standby []KeyInfo
	// Confirmed is when all this was last known to be right, by the clock of this
	// process.
	Confirmed time.Time
	// Changed is closed when there is more to tell.
	Changed <-chan struct{}
}

// Everything says with which keys to sign mail of all domains, for those who tell
// another program. It returns ErrUnavailable while nothing is known; Changed is
// set even so. It needs Options.Watch.
func (c *Client) Everything() (Everything, error) {
	p := c.picture
	if p == nil {
		return Everything{}, errors.New("signer: Everything needs Watch")
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	e := Everything{Confirmed: p.confirmed, Changed: p.told}
	if c.ctx.Err() != nil {
		return e, ErrClosed
	}
	if p.confirmed.IsZero() {
		return e, ErrUnavailable
	}
	standby := make(map[string]bool)
	add := func(keys []*dkimv1.SigningKey) {
		for _, k := range keys {
			if !standby[k.GetKey()] {
				standby[k.GetKey()] = true
				e.Standby = append(e.Standby, keyInfo(k))
			}
		}
	}
	for _, b := range p.brands {
		add(b.GetStandbyKeys())
	}
	e.Domains = make([]SigningDomain, 0, len(p.domains))
	for name, d := range p.domains {
		add(d.GetStandbyKeys())
		owner, _ := cutName(d.GetName())
		e.Domains = append(e.Domains, signingDomain(name, d, p.brands[owner]))
	}
	if b := p.brands[c.o.Brand]; c.o.Brand != "" && b != nil {
		e.Default = signingDomain("", nil, b)
	}
	return e, nil
}

// signingDomain is resolve for all domains; d or b may be nil.
func signingDomain(name string, d *dkimv1.SigningDomain, b *dkimv1.SigningBrand) SigningDomain {
	a := choose(d, b)
	s := SigningDomain{Domain: name, Fallback: a.fallback, Hold: a.hold}
	for _, k := range a.keys {
		s.Keys = append(s.Keys, keyInfo(k))
	}
	return s
}

func keyInfo(k *dkimv1.SigningKey) KeyInfo {
	i := KeyInfo{Domain: k.GetDomain(), Selector: k.GetSelector(), Algorithm: "rsa-sha256", Name: k.GetKey()}
	if k.GetAlgorithm() == dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519 {
		i.Algorithm = "ed25519-sha256"
	}
	return i
}

// PrivateKey is a key that dkimd handed out.
type PrivateKey struct {
	// Name is the resource that was asked for.
	Name string
	// PKCS8 is the key in DER. Whoever has it should clear it after use.
	PKCS8 []byte
	// Err is why it was not handed out: ErrNotSigning, ErrRefused, ErrUnavailable.
	Err error
}

// PrivateKeys has dkimd hand out private keys that sign or stand by, in the order
// of names. They are neither kept nor reported: see Options.Holds. It needs
// Options.Register. It returns ErrRefused and ErrUnavailable if all of it fails, and
// none of the keys then.
func (c *Client) PrivateKeys(ctx context.Context, names ...string) ([]PrivateKey, error) {
	if c.o.Register == nil {
		return nil, errors.New("signer: PrivateKeys needs Register: dkimd hands out keys to registered signers only")
	}
	keys := make([]PrivateKey, 0, len(names))
	for len(names) > 0 {
		n := min(len(names), fetchBatch)
		batch, err := c.privateKeys(ctx, names[:n])
		if err != nil {
			for _, k := range keys {
				clear(k.PKCS8)
			}
			return nil, err
		}
		keys = append(keys, batch...)
		names = names[n:]
	}
	return keys, nil
}

func (c *Client) privateKeys(ctx context.Context, names []string) ([]PrivateKey, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	req := &dkimv1.FetchPrivateKeysRequest{Keys: names}
	resp, err := c.api.FetchPrivateKeys(ctx, req)
	if reasonOfError(err) == "SIGNER_NOT_FOUND" { // what registers it in the background was slower
		if err = c.register(ctx); err == nil {
			resp, err = c.api.FetchPrivateKeys(ctx, req)
		}
	}
	if err != nil {
		return nil, failure(err)
	}
	if len(resp.GetResults()) != len(names) {
		return nil, fmt.Errorf("%w: %d answers to %d keys", ErrUnavailable, len(resp.GetResults()), len(names))
	}
	keys := make([]PrivateKey, len(names))
	for i, name := range names {
		r := resp.GetResults()[i]
		keys[i] = PrivateKey{Name: name, PKCS8: r.GetPrivateKey()}
		if r.GetError() != nil {
			keys[i].Err = failureOf(status.FromProto(r.GetError()))
		} else if _, err := x509.ParsePKCS8PrivateKey(r.GetPrivateKey()); err != nil {
			clear(r.GetPrivateKey())
			keys[i].PKCS8, keys[i].Err = nil, fmt.Errorf("%w: %s is no private key", ErrUnavailable, name)
		}
	}
	return keys, nil
}

// Held says that Options.Holds says something new of domains, of the form
// brands/{brand}/domains/{domain}. It is reported within about a second, again
// until dkimd took it, and once more some minutes later.
func (c *Client) Held(domains ...string) {
	if c.used == nil || c.o.Holds == nil {
		return
	}
	c.used.mu.Lock()
	defer c.used.mu.Unlock()
	for _, d := range domains {
		c.used.mark(d, true)
	}
}
