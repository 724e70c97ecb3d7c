package service

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// Custody implements dkim.v1.Custody. Any number of them may work on one store.
type Custody struct {
	dkimv1.UnimplementedCustodyServer

	custody *custody.Custody
}

// NewCustody returns a Custody.
func NewCustody(c *custody.Custody) *Custody { return &Custody{custody: c} }

const keyEncryptionName = "keyEncryption"

// GetKeyEncryption implements dkim.v1.Custody.
func (c *Custody) GetKeyEncryption(ctx context.Context, req *dkimv1.GetKeyEncryptionRequest) (*dkimv1.KeyEncryption, error) {
	if err := checkKeyEncryptionName(req.GetName()); err != nil {
		return nil, err
	}
	return c.keyEncryption(ctx)
}

// RotateKeyEncryption implements dkim.v1.Custody.
func (c *Custody) RotateKeyEncryption(ctx context.Context, req *dkimv1.RotateKeyEncryptionRequest) (*dkimv1.KeyEncryption, error) {
	if err := checkKeyEncryptionName(req.GetName()); err != nil {
		return nil, err
	}
	for range conflictRetries {
		_, err := c.custody.Rotate(ctx, req.GetDataKeys(), req.GetKey())
		if err == nil {
			return c.keyEncryption(ctx)
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return nil, custodyFailure(err)
		}
	}
	return nil, custodyFailure(keystore.ErrConflict)
}

func checkKeyEncryptionName(name string) error {
	if name != keyEncryptionName {
		return invalid("name", "INVALID_NAME", "must be "+keyEncryptionName)
	}
	return nil
}

func (c *Custody) keyEncryption(ctx context.Context) (*dkimv1.KeyEncryption, error) {
	s, err := c.custody.Status(ctx)
	if err != nil {
		return nil, custodyFailure(err)
	}
	k := &dkimv1.KeyEncryption{Name: keyEncryptionName, Key: s.Wrapping, AvailableKeys: s.Keys}
	if !s.Since.IsZero() {
		k.KeyTime = timestamppb.New(s.Since)
	}
	if r := s.Rotation; r.Revision != 0 {
		k.Rotation = &dkimv1.KeyEncryptionRotation{
			State: dkimv1.KeyEncryptionRotation_State(r.Phase), Key: r.Label, DataKeys: r.DataKeys, //nolint:gosec // the phases are these states
			StartTime: timestamppb.New(r.StartTime), UpdateTime: timestamppb.New(r.UpdateTime),
			WrappedDataKeys: int64(r.DataKeysWrapped), MadeDataKeys: int64(r.DataKeysMade), //nolint:gosec // counts
			SealedPrivateKeys: int64(r.PrivateKeysSealed), Failures: int64(r.Failures), //nolint:gosec // counts
			Error: r.Error, Worker: r.Worker,
		}
	}
	return k, nil
}

// custodyFailure turns a failure of what keeps keys sealed into a rejection.
func custodyFailure(err error) error {
	switch {
	case errors.Is(err, custody.ErrRunning):
		return fail(codes.FailedPrecondition, "ROTATION_RUNNING", err.Error()+"; wait for it to end")
	case errors.Is(err, custody.ErrOtherKey):
		return fail(codes.FailedPrecondition, "OTHER_KEY_ENCRYPTION_KEY", err.Error()+"; set its --kek-url, or ask another dkimd")
	case errors.Is(err, envelope.ErrWrongKey):
		return fail(codes.FailedPrecondition, "WRONG_KEY_ENCRYPTION_KEY", err.Error()+"; give dkimd that key by --kek-url-previous")
	}
	if failure := restoreFailure(err); failure != nil {
		return failure
	}
	return storeFailure(err)
}
