package service

import (
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	// backupFormat is that of the values of etcd, and of the pieces.
	backupFormat = 1
	// backupPiece is how many octets of entries a piece has before it is sent.
	backupPiece = 256 << 10
	// backupEntries is how many entries it has at most.
	backupEntries = 5000
)

// Backup implements dkim.v1.Custody.
func (c *Custody) Backup(_ *dkimv1.BackupRequest, stream grpc.ServerStreamingServer[dkimv1.BackupPiece]) error {
	entries, size, count := &dkimv1.BackupEntries{}, 0, int64(0)
	flush := func() error {
		if len(entries.Entries) == 0 {
			return nil
		}
		err := stream.Send(&dkimv1.BackupPiece{Part: &dkimv1.BackupPiece_Entries{Entries: entries}})
		entries, size = &dkimv1.BackupEntries{}, 0 // what was sent is gRPC's
		return err
	}
	err := c.custody.Backup(stream.Context(), func(h custody.Header) error {
		return stream.Send(&dkimv1.BackupPiece{Part: &dkimv1.BackupPiece_Header{Header: &dkimv1.BackupHeader{
			Format: backupFormat, CreateTime: timestamppb.New(h.Time), Revision: h.Revision, KeyEncryptionKey: h.Label, KeyEncryptionCheck: h.Check,
		}}})
	}, func(e keystore.Entry) error {
		count++
		entries.Entries = append(entries.Entries, &dkimv1.BackupEntry{Key: []byte(e.Key), Value: e.Value})
		if size += len(e.Key) + len(e.Value); size < backupPiece && len(entries.Entries) < backupEntries {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = stream.Send(&dkimv1.BackupPiece{Part: &dkimv1.BackupPiece_End{End: &dkimv1.BackupEnd{EntryCount: count}}})
	}
	if errors.Is(err, keystore.ErrCompacted) {
		return fail(codes.Aborted, "BACKUP_EXPIRED", "the store forgot the moment of the backup before all of it was read; begin again")
	}
	return custodyFailure(err)
}

// Restore implements dkim.v1.Custody.
func (c *Custody) Restore(stream grpc.ClientStreamingServer[dkimv1.BackupPiece, dkimv1.RestoreResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return broken(err)
	}
	h := first.GetHeader()
	if h == nil || h.GetFormat() != backupFormat || !h.GetCreateTime().IsValid() || h.GetRevision() < 0 {
		return invalidBackup("it does not begin with a header of format 1, the only one that this dkimd knows")
	}
	header := custody.Header{
		Time: h.GetCreateTime().AsTime(), Revision: h.GetRevision(), Label: h.GetKeyEncryptionKey(), Check: h.GetKeyEncryptionCheck(),
	}
	count, ended := int64(0), false
	done, err := c.custody.Restore(stream.Context(), header, func() ([]keystore.Entry, error) {
		if ended {
			return nil, nil
		}
		p, err := stream.Recv()
		if err != nil {
			return nil, broken(err)
		}
		switch {
		case p.GetEnd() != nil:
			if n := p.GetEnd().GetEntryCount(); n != count {
				return nil, invalidBackup(fmt.Sprintf("it has %d entries, and should have %d", count, n))
			}
			ended = true
			return nil, nil
		case len(p.GetEntries().GetEntries()) == 0:
			return nil, invalidBackup("a piece has no entries")
		}
		entries := make([]keystore.Entry, len(p.GetEntries().GetEntries()))
		for i, e := range p.GetEntries().GetEntries() {
			entries[i] = keystore.Entry{Key: string(e.GetKey()), Value: e.GetValue()}
		}
		count += int64(len(entries))
		return entries, nil
	})
	if err != nil {
		return custodyFailure(err)
	}
	return stream.SendAndClose(&dkimv1.RestoreResponse{
		EntryCount: done.Entries, Revision: done.Revision, BackupTime: timestamppb.New(header.Time.Truncate(time.Microsecond)),
	})
}

// broken is what a failure to receive means: an end that comes too early is one.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return invalidBackup("it ends too early")
	}
	return err
}

func invalidBackup(why string) error {
	return fail(codes.InvalidArgument, "INVALID_BACKUP", custody.ErrInvalidBackup.Error()+": "+why+". If entries were restored already, nothing works until a restore is complete")
}

// restoreFailure turns what a restore refuses into a rejection, or returns nil.
func restoreFailure(err error) error {
	switch {
	case errors.Is(err, keystore.ErrNotEmpty):
		return fail(codes.FailedPrecondition, "STORE_NOT_EMPTY", err.Error()+": a backup is only restored to a new installation")
	case errors.Is(err, keystore.ErrIncomplete):
		return fail(codes.Aborted, "CONFLICT", err.Error()+"; find out who it is, and restore again")
	case errors.Is(err, schema.ErrCorrupt):
		return invalidBackup(err.Error())
	}
	return nil
}
