package envelope

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/aws/smithy-go"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/awskms"
	"gocloud.dev/secrets/azurekeyvault"
	"gocloud.dev/secrets/gcpkms"
)

var (
	awsKey   = regexp.MustCompile(`^(?:alias/[A-Za-z0-9/_-]+|mrk-[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(?:key|alias)/[A-Za-z0-9/_-]+)$`)
	gcpKey   = regexp.MustCompile(`^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$`)
	azureKey = regexp.MustCompile(`^[a-z0-9-]+\.vault\.[a-z0-9.-]+/keys/[A-Za-z0-9-]+/[0-9a-f]{32}$`)
)

// openAWS opens a key of AWS KMS. Credentials come from where the AWS SDK looks
// for them.
func openAWS(ctx context.Context, u *url.URL) (*keyEncryptionKey, error) {
	id := strings.TrimPrefix(u.Host+u.Path, "/")
	if !awsKey.MatchString(id) {
		return nil, fmt.Errorf("%q is no key id, alias/NAME or ARN of a key; use awskms://alias/NAME?region=REGION or awskms:///ARN?region=REGION", id)
	}
	q := u.Query()
	if !q.Has("region") && !q.Has("profile") && os.Getenv("AWS_REGION") == "" && os.Getenv("AWS_DEFAULT_REGION") == "" && os.Getenv("AWS_PROFILE") == "" {
		return nil, errors.New("no region is given: add ?region=REGION, or set AWS_REGION")
	}
	keeper, err := new(awskms.URLOpener).OpenKeeperURL(ctx, u)
	if err != nil {
		return nil, err
	}
	return &keyEncryptionKey{label: "awskms://" + u.Host + u.Path, keeper: keeper, judge: judgeAWS}, nil
}

func judgeAWS(err error) error {
	if e, ok := errors.AsType[smithy.APIError](err); ok && e.ErrorCode() == "IncorrectKeyException" {
		return ErrWrongKey
	}
	return judgeService(err)
}

// openGCP opens a key of Google Cloud KMS with the Application Default
// Credentials.
func openGCP(ctx context.Context, u *url.URL) (*keyEncryptionKey, error) {
	id := u.Host + u.Path
	if !gcpKey.MatchString(id) {
		return nil, fmt.Errorf("%q is no key; use gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY", id)
	}
	for name := range u.Query() {
		if name != "additional_authenticated_data" {
			return nil, fmt.Errorf("parameter %q is not known", name)
		}
	}
	keeper, err := secrets.DefaultURLMux().OpenKeeperURL(ctx, u)
	if err != nil {
		return nil, err
	}
	return &keyEncryptionKey{label: "gcpkms://" + id, keeper: keeper, judge: judgeService}, nil
}

var _ = gcpkms.Scheme // registers the opener that openGCP uses

// openAzure opens a version of a key of Azure Key Vault. Without its version a
// key would open nothing any more once it got a new one.
func openAzure(ctx context.Context, u *url.URL) (*keyEncryptionKey, error) {
	id := u.Host + u.Path
	if !azureKey.MatchString(id) {
		return nil, fmt.Errorf("%q is no version of a key; use azurekeyvault://VAULT.vault.azure.net/keys/NAME/VERSION", id)
	}
	keeper, err := (&azurekeyvault.URLOpener{ClientMaker: azurekeyvault.DefaultClientMaker}).OpenKeeperURL(ctx, u)
	if err != nil {
		return nil, err
	}
	return &keyEncryptionKey{label: "azurekeyvault://" + id, keeper: keeper, judge: judgeService}, nil
}
