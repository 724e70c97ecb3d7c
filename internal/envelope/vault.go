package envelope

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"
	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
)

var (
	vaultKey    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	vaultEngine = regexp.MustCompile(`^[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*$`)
)

// openVault opens a key of the transit engine of a Vault. Where that is and how it
// is trusted stands in Vault's own environment variables (VAULT_ADDR,
// VAULT_CACERT, VAULT_NAMESPACE, ...); the token stands in VAULT_TOKEN or, so that
// it can be renewed, in the file of the parameter token_file.
func openVault(_ context.Context, u *url.URL) (*keyEncryptionKey, error) {
	if !vaultKey.MatchString(u.Host) || strings.Trim(u.Path, "/") != "" {
		return nil, errors.New("the URL names no key; use hashivault://NAME?engine=ENGINE&token_file=FILE, the parameters as needed")
	}
	t := &transit{key: u.Host, engine: "transit"}
	for name, values := range u.Query() {
		switch {
		case len(values) != 1:
			return nil, fmt.Errorf("parameter %q is given more than once", name)
		case name == "engine" && vaultEngine.MatchString(values[0]):
			t.engine = values[0]
		case name == "token_file" && filepath.IsAbs(values[0]):
			t.tokenFile = values[0]
		case name == "engine" || name == "token_file":
			return nil, fmt.Errorf("parameter %s: %q is no %s", name, values[0], map[string]string{"engine": "mount path", "token_file": "absolute path"}[name])
		default:
			return nil, fmt.Errorf("parameter %q is not known; there are engine and token_file", name)
		}
	}
	if err := checkVaultAddress(os.Getenv(api.EnvVaultAddress)); err != nil {
		return nil, err
	}
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	if t.client = client; t.tokenFile == "" && client.Token() == "" {
		return nil, errors.New("no token: set VAULT_TOKEN, or name a file that holds one with ?token_file=FILE")
	}
	label := "hashivault://" + t.key
	if t.engine != "transit" {
		label += "?engine=" + t.engine
	}
	return &keyEncryptionKey{label: label, keeper: secrets.NewKeeper(t), judge: judgeService}, nil
}

// checkVaultAddress sees to it that data keys do not cross a network in clear.
func checkVaultAddress(address string) error {
	u, err := url.Parse(address)
	switch {
	case address == "":
		return errors.New("VAULT_ADDR is not set: it says where Vault is, https://vault.example.net:8200")
	case err != nil || u.Host == "" || u.User != nil:
		return errors.New("VAULT_ADDR is no URL like https://vault.example.net:8200")
	case u.Scheme == "https" || u.Scheme == "unix":
		return nil
	}
	host, _, err := net.SplitHostPort(u.Host)
	if addr, perr := netip.ParseAddr(host); err == nil && (perr == nil && addr.IsLoopback() || host == "localhost") && u.Scheme == "http" {
		return nil
	}
	return errors.New("VAULT_ADDR must be https: data keys cross the network to it")
}

// transit is a key of Vault's transit engine, a driver.Keeper of gocloud.dev. Its
// own one takes no context, tells no errors apart and keeps its token for ever.
type transit struct {
	client                 *api.Client
	key, engine, tokenFile string
}

// Encrypt implements driver.Keeper.
func (t *transit) Encrypt(ctx context.Context, plaintext []byte) ([]byte, error) {
	text, err := t.call(ctx, "encrypt", "plaintext", base64.StdEncoding.EncodeToString(plaintext), "ciphertext")
	return []byte(text), err
}

// Decrypt implements driver.Keeper.
func (t *transit) Decrypt(ctx context.Context, ciphertext []byte) ([]byte, error) {
	text, err := t.call(ctx, "decrypt", "ciphertext", string(ciphertext), "plaintext")
	if err != nil {
		return nil, err
	}
	plaintext, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errNoAnswer
	}
	return plaintext, nil
}

// errNoAnswer is what comes of an answer of something that is no transit engine.
var errNoAnswer = errors.New("the answer is not that of a transit engine")

func (t *transit) call(ctx context.Context, operation, field, value, want string) (string, error) {
	client, err := t.authorized()
	if err != nil {
		return "", err
	}
	secret, err := client.Logical().WriteWithContext(ctx, path.Join(t.engine, operation, t.key), map[string]any{field: value})
	if err != nil {
		return "", t.explain(operation, err)
	}
	if secret == nil {
		return "", errNoAnswer
	}
	text, ok := secret.Data[want].(string)
	if !ok || text == "" {
		return "", errNoAnswer
	}
	return text, nil
}

// authorized is the client with the present token.
func (t *transit) authorized() (*api.Client, error) {
	if t.tokenFile == "" {
		return t.client, nil
	}
	token, err := os.ReadFile(t.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	client, err := t.client.CloneWithHeaders()
	if err != nil {
		return nil, err
	}
	client.SetToken(strings.TrimSpace(string(token)))
	return client, nil
}

// Close implements driver.Keeper.
func (t *transit) Close() error { return nil }

// ErrorAs implements driver.Keeper.
func (t *transit) ErrorAs(err error, target any) bool { return errors.As(err, target) }

// ErrorCode implements driver.Keeper.
func (t *transit) ErrorCode(err error) gcerrors.ErrorCode {
	if e, ok := errors.AsType[*vaultError](err); ok {
		return e.code
	}
	return gcerrors.Unknown
}

// vaultError is an answer of Vault that is an error, in one line and with what to do
// about it.
type vaultError struct {
	answer *api.ResponseError
	code   gcerrors.ErrorCode
	path   string
	hint   string
}

func (e *vaultError) Error() string {
	said := strings.Join(strings.Fields(strings.Join(e.answer.Errors, " ")), " ")
	said = strings.TrimPrefix(said, "1 error occurred: * ")
	return fmt.Sprintf("Vault answers %s with %d %s%s", e.path, e.answer.StatusCode, said, e.hint)
}

func (e *vaultError) Unwrap() error { return e.answer }

// explain says what an error of a call means.
func (t *transit) explain(operation string, err error) error {
	answer, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		return err
	}
	e := &vaultError{answer: answer, path: path.Join(t.engine, operation, t.key)}
	says := func(text string) bool {
		return slices.ContainsFunc(answer.Errors, func(s string) bool { return strings.Contains(s, text) })
	}
	switch answer.StatusCode {
	case http.StatusBadRequest:
		switch {
		case says("key not found"):
			e.code, e.hint = gcerrors.NotFound, fmt.Sprintf("; make it: vault write -f %s/keys/%s", t.engine, t.key)
		case says("too old"):
			e.code, e.hint = gcerrors.FailedPrecondition, "; lower the key's min_decryption_version, and raise it after dkimctl kek rotate"
		case operation == "encrypt":
			e.code = gcerrors.FailedPrecondition // of a type, or with settings, that it cannot be used with
		default:
			e.code = gcerrors.InvalidArgument
		}
	case http.StatusUnauthorized, http.StatusForbidden:
		e.code = gcerrors.PermissionDenied
		e.hint = "; the token has expired or is wrong, or its policy does not allow update of that path"
		if operation == "encrypt" {
			e.hint += ", or there is no such key"
		}
	case http.StatusNotFound:
		e.code, e.hint = gcerrors.NotFound, "; name the transit engine's mount path with ?engine=PATH"
	case http.StatusTooManyRequests:
		e.code = gcerrors.ResourceExhausted
	default:
		e.code = gcerrors.Internal // sealed, standby, being upgraded
	}
	return e
}
