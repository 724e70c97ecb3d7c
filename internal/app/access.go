package app

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/authn"
)

// Access says who may call besides the holders of certificates of our own CA with
// a role in their URI SAN, of tokens, and of brands' secrets.
type Access struct {
	// DNSNames are NAME=ROLE/…: who the holder of a certificate for a DNS name is.
	DNSNames []string
	// Issuer is that of the JWTs which are accepted; none with an empty URL.
	Issuer authn.IssuerOptions
}

func (a *Access) add(f *pflag.FlagSet) {
	f.StringArrayVar(&a.DNSNames, "client-dns-san", nil, "`name=role/name` of clients whose certificates have a DNS SAN and no role, such as mx1.example.net=signer/mx1; repeat for each")
	f.StringVar(&a.Issuer.URL, "oidc-issuer", "", "`URL` of the OpenID Connect issuer whose JWTs are accepted (default none)")
	f.StringVar(&a.Issuer.Audience, "oidc-audience", "", "`audience` that they must be for; needed with --oidc-issuer")
	f.StringVar(&a.Issuer.RoleClaim, "oidc-role-claim", authn.DefaultRoleClaim, "`claim` with the caller's role: admin, brand, signer or auditor")
	f.StringVar(&a.Issuer.BrandClaim, "oidc-brand-claim", authn.DefaultBrandClaim, "`claim` with the brand that the caller is bound to")
	f.StringVar(&a.Issuer.CAFile, "oidc-ca", "", "`file` with the CA of the issuer's certificate (default those of the system)")
	f.StringVar(&a.Issuer.KeySetURL, "oidc-jwks-url", "", "`URL` of the issuer's keys (default the one that its configuration names)")
}

// authenticator is one that knows what store keeps and what a says.
func (a *Access) authenticator(store authn.Credentials, logger *slog.Logger) (*authn.Authenticator, error) {
	o := authn.Options{Credentials: store, Now: time.Now, Logger: logger}
	var err error
	if o.DNSNames, err = authn.ParseDNSNames(a.DNSNames); err != nil {
		return nil, fmt.Errorf("--client-dns-san: %w", err)
	}
	if a.Issuer.URL == "" {
		if a.Issuer.Audience != "" || a.Issuer.CAFile != "" || a.Issuer.KeySetURL != "" {
			return nil, fmt.Errorf("--oidc-audience, --oidc-ca and --oidc-jwks-url are of use only with --oidc-issuer")
		}
		return authn.New(o), nil
	}
	issuer := a.Issuer
	issuer.Now = time.Now
	if o.Issuer, err = authn.NewIssuer(issuer); err != nil {
		return nil, fmt.Errorf("--oidc-issuer: %w", err)
	}
	return authn.New(o), nil
}
