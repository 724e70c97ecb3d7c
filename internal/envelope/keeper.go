package envelope

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
)

var (
	// ErrKeeperUnavailable is wrapped when the keeper of a key-encryption key, a
	// service elsewhere, did not answer or could not do its work. It may later.
	ErrKeeperUnavailable = errors.New("the keeper of the key-encryption key does not answer")

	// ErrKeeperRefuses is wrapped when the keeper of a key-encryption key does not
	// let this process use it, or does not have it. Somebody has to mend that.
	ErrKeeperRefuses = errors.New("the keeper of the key-encryption key refuses")
)

// keeperTimeout bounds one call to a keeper, tries and all.
const keeperTimeout = 15 * time.Second

// Keeper holds the key-encryption keys of a process: the first one, which is to
// wrap data keys, and others that still open them, so that one can take the
// place of another without an interruption. It is safe for concurrent use.
type Keeper struct {
	keys []*keyEncryptionKey
}

// keyEncryptionKey is one key-encryption key.
type keyEncryptionKey struct {
	label  string // what people and the store know it by
	keeper *secrets.Keeper
	// judge says what an error of a call means: ErrWrongKey,
	// ErrKeeperUnavailable, ErrKeeperRefuses, or nil for neither.
	judge func(error) error
}

// opener opens a key-encryption key by its URL, which has no user and no fragment.
type opener func(ctx context.Context, u *url.URL) (*keyEncryptionKey, error)

var openers = map[string]opener{
	"file": openFile, "awskms": openAWS, "gcpkms": openGCP, "azurekeyvault": openAzure, "hashivault": openVault,
}

// OpenKeeper opens the key-encryption key that a URL names, and further ones
// that are only to open what they wrapped:
//
//   - file:///etc/dkimzone/kek.key: a file as [CreateKeyFile] makes it, which only its owner may read
//   - awskms://KEY?region=R, KEY an id, alias/NAME, or /ARN: AWS KMS
//   - gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K: Google Cloud KMS
//   - azurekeyvault://VAULT.vault.azure.net/keys/NAME/VERSION: Azure Key Vault
//   - hashivault://NAME?engine=E&token_file=F: the transit engine of the Vault at VAULT_ADDR
//
// An error wraps os.ErrNotExist when a key file is not there. No error shows a
// key, nor a URL of an unknown scheme, which may contain one. Services are not asked
// anything yet. The caller closes the Keeper.
func OpenKeeper(ctx context.Context, rawURL string, further ...string) (*Keeper, error) {
	k := &Keeper{}
	for _, raw := range append([]string{rawURL}, further...) {
		key, err := openKey(ctx, raw)
		if err == nil && k.find(key.label) != nil {
			err = fmt.Errorf("%s is given twice", key.label)
			_ = key.keeper.Close() // it was not used
		}
		if err != nil {
			_ = k.Close() // none was used
			return nil, fmt.Errorf("key-encryption key: %w", err)
		}
		k.keys = append(k.keys, key)
	}
	return k, nil
}

func openKey(ctx context.Context, rawURL string) (*keyEncryptionKey, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme == "" {
		return nil, errors.New("not a URL; use file:///absolute/path/to/kek.key or " + schemes("file"))
	}
	open, ok := openers[u.Scheme]
	switch {
	case !ok:
		return nil, fmt.Errorf("URLs of scheme %q are not supported; use file:///absolute/path/to/kek.key or %s", u.Scheme, schemes("file"))
	case u.User != nil || u.Fragment != "" || u.Opaque != "" && u.Scheme != "file":
		return nil, fmt.Errorf("a URL of scheme %q has no user, no password and no fragment, and // after the colon", u.Scheme)
	}
	key, err := open(ctx, u)
	if err != nil && u.Scheme != "file" {
		return nil, fmt.Errorf("%s: %w", u.Scheme, err)
	}
	return key, err
}

// schemes lists those of KMS URLs, without one.
func schemes(without string) string {
	var all []string
	for _, s := range slices.Sorted(maps.Keys(openers)) {
		if s != without {
			all = append(all, s+"://")
		}
	}
	return strings.Join(all, ", ")
}

// Labels name the keys, the first one first: URLs without parameters.
func (k *Keeper) Labels() []string {
	labels := make([]string, len(k.keys))
	for i, key := range k.keys {
		labels[i] = key.label
	}
	return labels
}

// Close releases what the keys hold. Calls of others fail afterwards.
func (k *Keeper) Close() error {
	var errs []error
	for _, key := range k.keys {
		errs = append(errs, key.keeper.Close())
	}
	return errors.Join(errs...)
}

func (k *Keeper) find(label string) *keyEncryptionKey {
	for _, key := range k.keys {
		if key.label == label {
			return key
		}
	}
	return nil
}

// decrypt opens what one of the keys wrapped, preferably the one of that label,
// and returns that key. If none can, the error wraps ErrWrongKey only when all of
// them said so.
func (k *Keeper) decrypt(ctx context.Context, wrapped []byte, preferred string) ([]byte, *keyEncryptionKey, error) {
	keys := k.keys
	if p := k.find(preferred); p != nil {
		keys = slices.Concat([]*keyEncryptionKey{p}, slices.DeleteFunc(slices.Clone(keys), func(key *keyEncryptionKey) bool { return key == p }))
	}
	var failed error
	for _, key := range keys {
		plain, err := key.decrypt(ctx, wrapped)
		if err == nil {
			return plain, key, nil
		}
		if failed == nil || errors.Is(failed, ErrWrongKey) {
			failed = err
		}
	}
	return nil, nil, failed
}

func (key *keyEncryptionKey) decrypt(ctx context.Context, wrapped []byte) ([]byte, error) {
	callCtx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	plain, err := key.keeper.Decrypt(callCtx, wrapped)
	if err != nil {
		return nil, key.failure(ctx, err)
	}
	return plain, nil
}

func (key *keyEncryptionKey) encrypt(ctx context.Context, plain []byte) ([]byte, error) {
	callCtx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	wrapped, err := key.keeper.Encrypt(callCtx, plain)
	if err != nil {
		return nil, key.failure(ctx, err)
	}
	return wrapped, nil
}

// try returns the known text, wrapped, and has seen that the key opens it.
func (key *keyEncryptionKey) try(ctx context.Context) (check []byte, err error) {
	if check, err = key.encrypt(ctx, []byte(checkText)); err != nil {
		return nil, err
	}
	text, err := key.decrypt(ctx, check)
	if err != nil {
		return nil, err
	}
	if string(text) != checkText {
		return nil, fmt.Errorf("%s: %w", key.label, ErrCorrupt)
	}
	return check, nil
}

func (key *keyEncryptionKey) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", key.label, ctx.Err())
	}
	if meaning := key.judge(err); meaning != nil {
		return fmt.Errorf("%s: %w: %w", key.label, meaning, err)
	}
	return fmt.Errorf("%s: %w", key.label, err)
}

// judgeService is what an error of a service elsewhere means.
func judgeService(err error) error {
	switch gcerrors.Code(err) {
	case gcerrors.InvalidArgument:
		return ErrWrongKey
	case gcerrors.Unknown, gcerrors.Internal, gcerrors.ResourceExhausted, gcerrors.DeadlineExceeded, gcerrors.Canceled:
		return ErrKeeperUnavailable
	}
	return ErrKeeperRefuses
}
