package service

import (
	"context"
	"encoding/pem"
	"errors"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
)

// ExportPrivateKey implements dkim.v1.Custody.
func (c *Custody) ExportPrivateKey(ctx context.Context, req *dkimv1.ExportPrivateKeyRequest) (*dkimv1.ExportPrivateKeyResponse, error) {
	n, id, err := parseKeyName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	if !c.custody.KeyExport {
		return nil, fail(codes.FailedPrecondition, "KEY_EXPORT_OFF", custody.ErrExportOff.Error()+"; dkimd --allow-key-export switches it on")
	}
	d, err := c.custody.Store.Domain(ctx, n.brand, n.domain)
	if err != nil {
		return nil, custodyFailure(err)
	}
	k := d.Key(id)
	if k == nil {
		return nil, keyNotFound(n, id)
	}
	pair, err := c.custody.PrivateKey(ctx, n.brand, n.domain, id)
	switch {
	case errors.Is(err, keystore.ErrKeyNotFound):
		return nil, fail(codes.FailedPrecondition, "NO_PRIVATE_KEY", "the private half of this key is not kept here")
	case err != nil:
		return nil, custodyFailure(err)
	case mint.Fingerprint(pair.Public()) != k.Fingerprint:
		return nil, errors.New("the stored private key is not that of the key")
	}
	der, err := pair.PKCS8()
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return &dkimv1.ExportPrivateKeyResponse{
		Name: mint.KeyName(n.brand, string(n.domain), id), PrivateKey: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}, nil
}
