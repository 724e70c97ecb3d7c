package custody

import (
	"context"
	"errors"
	"fmt"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/mint"
)

// ErrExportOff says that this process gives no private key away.
var ErrExportOff = errors.New("the export of private keys is off")

// PrivateKey opens the private half of a key. It returns ErrExportOff unless
// KeyExport is set, keystore.ErrKeyNotFound when none is kept, or errors of the
// Store and of the Sealer.
func (c *Custody) PrivateKey(ctx context.Context, brand string, domain dnsname.Domain, id string) (*keypair.KeyPair, error) {
	if !c.KeyExport {
		return nil, ErrExportOff
	}
	sealed, err := c.Store.SealedKey(ctx, brand, domain, id)
	if err != nil {
		return nil, err
	}
	plain, err := c.Sealer.Open(ctx, brand, mint.KeyName(brand, string(domain), id), sealed)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	pair, err := keypair.Unmarshal(plain)
	if err != nil {
		return nil, fmt.Errorf("key %s of %s: %w", id, domain, err)
	}
	return pair, nil
}
