package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/backup"
)

const backupHelp = `Writes all that the installation holds, as it stands at one moment, into one file, encrypted by age (age-encryption.org): to
the recipients of --recipient, or with a passphrase, which it asks for on a terminal. The file appears, or is replaced, only
when it is complete. dkimd goes on meanwhile.

Private keys are sealed in it, as they are in etcd: whoever restores it needs the key-encryption key (--kek-url of dkimd)
as well. Keep that apart from it, and do not lose it.`

func (r *run) backup() *cobra.Command {
	var recipients []string
	var passphrase string
	c := r.local(&cobra.Command{
		Use:   "backup FILE",
		Short: "Write the whole installation into one encrypted file",
		Long:  backupHelp,
		Example: `  dkimctl backup dkim.backup
  dkimctl backup dkim.backup --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  dkimctl backup dkim.backup --passphrase-file /etc/dkimzone/backup.passphrase`,
	}, func(ctx context.Context, args []string) error {
		lock, err := r.backupLock(recipients, passphrase)
		if err != nil {
			return err
		}
		api, err := r.custody()
		if err != nil {
			return err
		}
		var h *dkimv1.BackupHeader
		var count int64
		err = writeWhole(args[0], 0o600, func(w io.Writer) error {
			h, count, err = r.receiveBackup(ctx, api, w, lock)
			return err
		})
		if err != nil {
			return err
		}
		return say(r.Stdout, "%s holds %d entries, as of revision %d at %s", args[0], count, h.GetRevision(), timeText(h.GetCreateTime()))
	})
	c.Flags().StringArrayVar(&recipients, "recipient", nil, "encrypt to this `recipient` of age, age1...; may be repeated")
	c.Flags().StringVar(&passphrase, "passphrase-file", "", "encrypt with the passphrase in the first line of this `file`")
	noFiles(c, "recipient")
	c.ValidArgsFunction = nil
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		switch {
		case r.format != formatTable:
			return usageError{"a backup is a file of its own form, -o does not change it"}
		case len(recipients) > 0 && c.Flags().Changed("passphrase-file"):
			return usageError{"give --recipient or --passphrase-file, not both"}
		}
		return nil
	}
	return c
}

// backupLock is what a backup is encrypted with.
func (r *run) backupLock(recipients []string, passphraseFile string) (backup.Lock, error) {
	if len(recipients) > 0 {
		return backup.Recipients(recipients...)
	}
	text, err := r.passphrase(passphraseFile, true)
	if err != nil {
		return backup.Lock{}, err
	}
	return backup.Passphrase(text)
}

// passphrase reads a passphrase from a file or, twice if it is a new one, from the
// terminal.
func (r *run) passphrase(file string, twice bool) (string, error) {
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("passphrase: %w", err)
		}
		line, _, _ := strings.Cut(string(data), "\n")
		if line = strings.TrimSuffix(line, "\r"); line == "" {
			return "", fmt.Errorf("passphrase: the first line of %s is empty", file)
		}
		return line, nil
	}
	in, ok := r.Stdin.(*os.File)
	if !ok || !isTerminal(r.Stdin) {
		return "", usageError{"there is no terminal to ask for a passphrase: name --passphrase-file, or a key of age"}
	}
	ask := func(question string) (string, error) {
		_, _ = fmt.Fprint(r.Stderr, question)
		text, err := term.ReadPassword(int(in.Fd()))
		_, _ = fmt.Fprintln(r.Stderr)
		if err != nil {
			return "", fmt.Errorf("passphrase: %w", err)
		}
		return string(text), nil
	}
	text, err := ask("Passphrase of the backup: ")
	if err != nil || !twice {
		return text, err
	}
	again, err := ask("Once more: ")
	switch {
	case err != nil:
		return "", err
	case text != again:
		return "", errors.New("these were two different passphrases")
	case len(text) < 12:
		return "", errors.New("a passphrase needs 12 characters at least")
	}
	return text, nil
}

// receiveBackup writes a backup to w as it comes. It may take as long as it likes,
// but not longer than the time limit for the next piece.
func (r *run) receiveBackup(ctx context.Context, api dkimv1.CustodyClient, w io.Writer, lock backup.Lock) (*dkimv1.BackupHeader, int64, error) {
	file, err := backup.NewWriter(w, lock)
	if err != nil {
		return nil, 0, err
	}
	callCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(r.timeout, func() { cancel(context.DeadlineExceeded) })
	defer stalled.Stop()
	var check backupCheck
	stream, err := api.Backup(callCtx, &dkimv1.BackupRequest{})
	for err == nil {
		var p *dkimv1.BackupPiece
		if p, err = stream.Recv(); err != nil {
			break
		}
		stalled.Reset(r.timeout)
		if err := check.add(p); err != nil {
			return nil, 0, err
		}
		record, err := proto.Marshal(p)
		if err != nil {
			return nil, 0, fmt.Errorf("write the backup: %w", err)
		}
		if err := file.Write(record); err != nil {
			return nil, 0, err
		}
	}
	if !errors.Is(err, io.EOF) {
		f := r.failure(err)
		if f.code == codes.Canceled && ctx.Err() == nil {
			return nil, 0, fmt.Errorf("dkimd sent nothing more of the backup for %s: try again, or give it more with --timeout", r.timeout)
		}
		return nil, 0, f
	}
	if !check.ended {
		return nil, 0, errors.New("dkimd ended the backup too early")
	}
	return check.header, check.count, file.Close()
}

// backupCheck follows the pieces of a backup and tells whether it is whole.
type backupCheck struct {
	header *dkimv1.BackupHeader
	count  int64
	ended  bool
}

func (b *backupCheck) add(p *dkimv1.BackupPiece) error {
	switch {
	case b.ended:
		return errors.New("the backup goes on after its end")
	case (b.header == nil) != (p.GetHeader() != nil):
		return errors.New("the backup does not begin with one header")
	case p.GetHeader() != nil:
		b.header = p.GetHeader()
	case p.GetEnd() != nil:
		if b.ended = true; p.GetEnd().GetEntryCount() != b.count {
			return fmt.Errorf("the backup has %d entries, and should have %d", b.count, p.GetEnd().GetEntryCount())
		}
	default:
		b.count += int64(len(p.GetEntries().GetEntries()))
	}
	return nil
}
