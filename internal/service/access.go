package service

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

const (
	minCredentialTTL = time.Minute
	defaultTokenTTL  = 90 * day
	maxTokenTTL      = 731 * day
	maxSecretTTL     = 3660 * day
)

var credentialIDPattern = regexp.MustCompile(`^[a-z0-9]{1,40}$`)

// roles are the roles of the API.
var roles = map[dkimv1.Role]authn.Role{
	dkimv1.Role_ROLE_ADMIN: authn.Admin, dkimv1.Role_ROLE_BRAND: authn.Brand,
	dkimv1.Role_ROLE_SIGNER: authn.Signer, dkimv1.Role_ROLE_AUDITOR: authn.Auditor,
}

// Access implements dkim.v1.AccessControl. It holds no state.
type Access struct {
	dkimv1.UnimplementedAccessControlServer

	store  *keystore.Store
	forget func(id string)
	now    func() time.Time
}

// NewAccess returns an Access. It calls forget with the id of a credential that
// was revoked. now is the clock by which credentials expire.
func NewAccess(store *keystore.Store, forget func(id string), now func() time.Time) *Access {
	return &Access{store: store, forget: forget, now: now}
}

// CreateToken implements dkim.v1.AccessControl.
func (a *Access) CreateToken(ctx context.Context, req *dkimv1.CreateTokenRequest) (*dkimv1.Token, error) {
	m := req.GetToken()
	id, token, hash := authn.NewToken()
	t := keystore.Token{
		ID: id, Hash: hash, Name: m.GetSubject(), ExportKeys: m.GetExportKeys(), Description: m.GetDescription(),
		CreateTime: a.now().Truncate(time.Microsecond), Creator: actor(ctx),
	}
	role, ok := roles[m.GetRole()]
	if !ok {
		return nil, invalid("token.role", "INVALID_TOKEN", "use ROLE_ADMIN, ROLE_BRAND, ROLE_SIGNER or ROLE_AUDITOR")
	}
	t.Role = string(role)
	if m.GetBrand() != "" {
		var err error
		if t.Brand, err = parseBrandName("token.brand", m.GetBrand()); err != nil {
			return nil, err
		}
	}
	if t.Name == "" {
		t.Name = id
	}
	if !signerPattern.MatchString(t.Name) {
		return nil, invalid("token.subject", "INVALID_TOKEN", fmt.Sprintf(
			"%.80q: use at most 63 of a-z, 0-9, \"-\", \"_\" and \".\", a letter or digit first", t.Name))
	}
	if err := (authn.Identity{Role: role, Name: t.Name, Brand: t.Brand, ExportKeys: t.ExportKeys}).Check(); err != nil {
		return nil, invalid("token", "INVALID_TOKEN", err.Error())
	}
	ttl, err := credentialTTL("token", "INVALID_TOKEN", m.GetTtl(), m.GetDescription(), defaultTokenTTL, maxTokenTTL)
	if err != nil {
		return nil, err
	}
	t.ExpireTime = t.CreateTime.Add(ttl)
	if err := a.store.CreateToken(ctx, t); err != nil {
		return nil, storeFailure(err)
	}
	created := tokenMessage(t)
	created.Secret = token
	return created, nil
}

// credentialTTL checks what tokens and secrets have in common, and returns how
// long one is valid.
func credentialTTL(field, reason string, given *durationpb.Duration, description string, byDefault, longest time.Duration) (time.Duration, error) {
	if n := utf8.RuneCountInString(description); n > maxDescription || !utf8.ValidString(description) {
		return 0, invalid(field+".description", reason, fmt.Sprintf("%d characters, at most %d are allowed", n, maxDescription))
	}
	if given == nil {
		return byDefault, nil
	}
	ttl := given.AsDuration().Truncate(time.Microsecond)
	if given.CheckValid() != nil || ttl < minCredentialTTL || ttl > longest {
		return 0, invalid(field+".ttl", reason, fmt.Sprintf("%s: use %s to %d days", ttl, minCredentialTTL, longest/day))
	}
	return ttl, nil
}

// ListTokens implements dkim.v1.AccessControl.
func (a *Access) ListTokens(ctx context.Context, req *dkimv1.ListTokensRequest) (*dkimv1.ListTokensResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pagePlace(req.GetPageToken(), "tokens")
	if err != nil {
		return nil, err
	}
	tokens, more, err := a.store.Tokens(ctx, after, size)
	if err != nil {
		return nil, storeFailure(err)
	}
	resp := &dkimv1.ListTokensResponse{}
	for _, t := range tokens {
		resp.Tokens = append(resp.Tokens, tokenMessage(t))
	}
	if more {
		resp.NextPageToken = pageToken("tokens", tokens[len(tokens)-1].ID)
	}
	return resp, nil
}

// RevokeToken implements dkim.v1.AccessControl.
func (a *Access) RevokeToken(ctx context.Context, req *dkimv1.RevokeTokenRequest) (*emptypb.Empty, error) {
	v, err := collections("name", req.GetName(), "tokens")
	if err != nil {
		return nil, err
	}
	if !credentialIDPattern.MatchString(v[0]) {
		return nil, invalid("name", "INVALID_NAME", fmt.Sprintf("%.60q is no id of a token: take it from ListTokens", v[0]))
	}
	if err := a.store.DeleteToken(ctx, v[0]); err != nil {
		return nil, credentialFailure(err)
	}
	a.forget(v[0])
	return &emptypb.Empty{}, nil
}

// CreateBrandSecret implements dkim.v1.AccessControl.
func (a *Access) CreateBrandSecret(ctx context.Context, req *dkimv1.CreateBrandSecretRequest) (*dkimv1.BrandSecret, error) {
	brand, err := parseBrandName("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	m := req.GetBrandSecret()
	ttl, err := credentialTTL("brand_secret", "INVALID_SECRET", m.GetTtl(), m.GetDescription(), 0, maxSecretTTL)
	if err != nil {
		return nil, err
	}
	secret, b := authn.NewBrandSecret(brand)
	b.Description, b.Creator, b.CreateTime = m.GetDescription(), actor(ctx), a.now().Truncate(time.Microsecond)
	if ttl != 0 {
		b.ExpireTime = b.CreateTime.Add(ttl)
	}
	for range conflictRetries {
		err = a.store.CreateBrandSecret(ctx, b)
		if !errors.Is(err, keystore.ErrConflict) {
			break
		}
	}
	if err != nil {
		return nil, credentialFailure(err)
	}
	created := secretMessage(b)
	created.Secret = secret
	return created, nil
}

// ListBrandSecrets implements dkim.v1.AccessControl.
func (a *Access) ListBrandSecrets(ctx context.Context, req *dkimv1.ListBrandSecretsRequest) (*dkimv1.ListBrandSecretsResponse, error) {
	brand, err := parseBrandName("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	if _, err := a.store.Brand(ctx, brand); err != nil {
		return nil, storeFailure(err)
	}
	secrets, err := a.store.BrandSecrets(ctx, brand)
	if err != nil {
		return nil, storeFailure(err)
	}
	resp := &dkimv1.ListBrandSecretsResponse{}
	for _, b := range secrets {
		resp.BrandSecrets = append(resp.BrandSecrets, secretMessage(b))
	}
	return resp, nil
}

// RevokeBrandSecret implements dkim.v1.AccessControl.
func (a *Access) RevokeBrandSecret(ctx context.Context, req *dkimv1.RevokeBrandSecretRequest) (*emptypb.Empty, error) {
	v, err := collections("name", req.GetName(), "brands", "secrets")
	if err != nil {
		return nil, err
	}
	if err := checkBrandID("name", v[0]); err != nil {
		return nil, err
	}
	if !credentialIDPattern.MatchString(v[1]) {
		return nil, invalid("name", "INVALID_NAME", fmt.Sprintf("%.60q is no id of a secret: take it from ListBrandSecrets", v[1]))
	}
	if err := a.store.DeleteBrandSecret(ctx, v[0], v[1]); err != nil {
		return nil, credentialFailure(err)
	}
	a.forget(v[1])
	return &emptypb.Empty{}, nil
}

func credentialFailure(err error) error {
	switch {
	case errors.Is(err, keystore.ErrTokenNotFound):
		return fail(codes.NotFound, "TOKEN_NOT_FOUND", err.Error()+"; ListTokens shows which are there")
	case errors.Is(err, keystore.ErrSecretNotFound):
		return fail(codes.NotFound, "SECRET_NOT_FOUND", err.Error()+"; ListBrandSecrets shows which are there")
	case errors.Is(err, keystore.ErrTooManySecrets):
		return fail(codes.FailedPrecondition, "TOO_MANY_SECRETS", err.Error()+"; revoke the one that is no longer used")
	}
	return storeFailure(err)
}

func tokenMessage(t keystore.Token) *dkimv1.Token {
	m := &dkimv1.Token{
		Name: "tokens/" + t.ID, Subject: t.Name, ExportKeys: t.ExportKeys, Description: t.Description,
		CreateTime: timestamp(t.CreateTime), ExpireTime: timestamp(t.ExpireTime), Creator: t.Creator,
	}
	for role, name := range roles {
		if string(name) == t.Role {
			m.Role = role
		}
	}
	if t.Brand != "" {
		m.Brand = "brands/" + t.Brand
	}
	return m
}

func secretMessage(b keystore.BrandSecret) *dkimv1.BrandSecret {
	return &dkimv1.BrandSecret{
		Name: "brands/" + b.Brand + "/secrets/" + b.ID, Description: b.Description,
		CreateTime: timestamp(b.CreateTime), ExpireTime: timestamp(b.ExpireTime), Creator: b.Creator,
	}
}

// boundBrand is the brand that the caller is bound to, or "".
func boundBrand(ctx context.Context) string {
	caller, _ := authn.FromContext(ctx)
	return caller.Brand
}

// isOf reports whether a caller who is bound to a brand, or to none, may know of
// something of a brand.
func isOf(bound, brand string) bool { return bound == "" || bound == brand }
