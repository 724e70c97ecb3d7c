package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/backup"
)

const restoreHelp = `Restores a backup to a new installation, one without brands; its zones are replaced. dkimd must have the key-encryption key
that the backup's data keys were wrapped by: the command refuses before it changes anything if it has not. With --dry-run
it only reads the file and says whether it is whole.

While it restores, every other call to the installation fails, and name servers answer nothing of its zones. If it
is interrupted that stays so: run it again, it begins from the beginning. Present a certificate, since tokens are not
known until the end. Serials of the zones go on beyond those that they had.`

func (r *run) restore() *cobra.Command {
	var identity, passphrase string
	var dryRun bool
	c := r.local(&cobra.Command{
		Use:   "restore FILE",
		Short: "Restore a backup to a new installation",
		Long:  restoreHelp,
		Example: `  dkimctl restore dkim.backup --dry-run
  dkimctl restore dkim.backup --identity key.txt`,
	}, func(ctx context.Context, args []string) error {
		lock, err := r.restoreLock(identity, passphrase)
		if err != nil {
			return err
		}
		// A file that is not whole is not to leave half an installation.
		check := &backupCheck{}
		if err := readBackup(ctx, args[0], lock, check.add); err != nil {
			return err
		}
		if !check.ended {
			return fmt.Errorf("%s: %w", args[0], backup.ErrCut)
		}
		if dryRun {
			return say(r.Stdout, "%s is whole: %d entries, as of revision %d at %s, wrapped by %s", args[0], check.count,
				check.header.GetRevision(), timeText(check.header.GetCreateTime()), check.header.GetKeyEncryptionKey())
		}
		resp, err := r.sendBackup(ctx, args[0], lock, int(check.count))
		if err != nil {
			return err
		}
		return r.print(resp, func(w io.Writer) error {
			return say(w, "%d entries of %s are restored", resp.GetEntryCount(), timeText(resp.GetBackupTime()))
		})
	})
	c.Flags().StringVar(&identity, "identity", "", "`file` with the identity of age that opens it, AGE-SECRET-KEY-1...")
	c.Flags().StringVar(&passphrase, "passphrase-file", "", "open it with the passphrase in the first line of this `file`")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only look whether the file is whole")
	c.ValidArgsFunction = nil
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		if identity != "" && c.Flags().Changed("passphrase-file") {
			return usageError{"give --identity or --passphrase-file, not both"}
		}
		return nil
	}
	return c
}

// restoreLock is what opens a backup.
func (r *run) restoreLock(identity, passphraseFile string) (backup.Lock, error) {
	if identity == "" {
		text, err := r.passphrase(passphraseFile, false)
		if err != nil {
			return backup.Lock{}, err
		}
		return backup.Passphrase(text)
	}
	f, err := os.Open(identity)
	if err != nil {
		return backup.Lock{}, fmt.Errorf("identity: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	lock, err := backup.Identities(f)
	if err != nil {
		return backup.Lock{}, fmt.Errorf("%s: %w", identity, err)
	}
	return lock, nil
}

// readBackup calls each with the pieces of a backup.
func readBackup(ctx context.Context, path string, lock backup.Lock, each func(*dkimv1.BackupPiece) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	file, err := backup.NewReader(f, lock)
	for err == nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		var record []byte
		if record, err = file.Next(); err != nil {
			break
		}
		p := &dkimv1.BackupPiece{}
		if err = proto.Unmarshal(record, p); err == nil {
			err = each(p)
		}
	}
	if errors.Is(err, io.EOF) && !errors.Is(err, backup.ErrCut) && !errors.Is(err, backup.ErrNoBackup) {
		return nil
	}
	if failed, ok := errors.AsType[*failure](err); ok {
		return failed
	}
	return fmt.Errorf("%s: %w", path, err)
}

// sendBackup sends a backup of count entries. It may take as long as it likes.
func (r *run) sendBackup(ctx context.Context, path string, lock backup.Lock, count int) (*dkimv1.RestoreResponse, error) {
	api, err := r.custody()
	if err != nil {
		return nil, err
	}
	stream, err := api.Restore(ctx)
	if err != nil {
		return nil, r.failure(err)
	}
	bar := r.newCounts(count, "entries", 100_000)
	defer bar.finish()
	err = readBackup(ctx, path, lock, func(p *dkimv1.BackupPiece) error {
		bar.add(len(p.GetEntries().GetEntries()))
		return stream.Send(p)
	})
	// io.EOF says that dkimd has answered already.
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return nil, r.failure(err)
	}
	return resp, nil
}
