package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

const (
	keyEncryptionName = "keyEncryption"
	// kekPoll is how often "kek rotate" asks how far it is.
	kekPoll = 500 * time.Millisecond
)

func (r *run) kek() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "kek",
		Short: "The key-encryption key, which data keys are wrapped by",
		Example: `  dkimctl kek status
  dkimctl kek rotate`,
	}, r.kekStatus(), r.kekRotate())
}

// custody is the client of the Custody service.
func (r *run) custody() (dkimv1.CustodyClient, error) {
	if _, err := r.connect(); err != nil {
		return nil, err
	}
	return dkimv1.NewCustodyClient(r.session.conn), nil
}

func (r *run) kekStatus() *cobra.Command {
	return r.local(&cobra.Command{
		Use:     "status",
		Short:   "Show which key-encryption key wraps, and how far the last rotation is",
		Example: "  dkimctl kek status",
	}, func(ctx context.Context, _ []string) error {
		api, err := r.custody()
		if err != nil {
			return err
		}
		k, err := call(ctx, r, api.GetKeyEncryption, &dkimv1.GetKeyEncryptionRequest{Name: keyEncryptionName})
		if err != nil {
			return err
		}
		return r.printKeyEncryption(k)
	})
}

func (r *run) printKeyEncryption(k *dkimv1.KeyEncryption) error {
	return r.print(k, func(w io.Writer) error {
		pairs := []string{
			"Wraps", k.GetKey(),
			"Since", timeText(k.GetKeyTime()),
			"This dkimd has", strings.Join(k.GetAvailableKeys(), ", "),
		}
		if rot := k.GetRotation(); rot != nil {
			pairs = append(pairs,
				"Last rotation", rotationText(rot),
				"Begun", timeText(rot.GetStartTime()),
				"Last progress", timeText(rot.GetUpdateTime()),
				"To", rot.GetKey(),
				"Worked on by", rot.GetWorker(),
				"Error", rot.GetError(),
			)
		}
		return details(w, pairs...)
	})
}

func over(rot *dkimv1.KeyEncryptionRotation) bool {
	return rot.GetState() == dkimv1.KeyEncryptionRotation_STATE_DONE || rot.GetState() == dkimv1.KeyEncryptionRotation_STATE_FAILED
}

// rotationText is how far a rotation is.
func rotationText(rot *dkimv1.KeyEncryptionRotation) string {
	state := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(rot.GetState().String(), "STATE_"), "_", " "))
	text := state + ": " + strconv.FormatInt(rot.GetWrappedDataKeys(), 10) + " data keys wrapped"
	if rot.GetDataKeys() {
		text += fmt.Sprintf(", %d made, %d private keys sealed", rot.GetMadeDataKeys(), rot.GetSealedPrivateKeys())
	}
	if n := rot.GetFailures(); n > 0 {
		text += fmt.Sprintf(", %d keys could not be opened", n)
	}
	return text
}

const kekRotateHelp = `Lets the key-encryption key of dkimd's --kek-url wrap data keys from now on, and wraps all that are there anew with it. With
--data-keys every brand also gets a new data key, and all private keys are sealed anew; that takes some minutes more, since
calls that began before must have ended.

Everything goes on meanwhile. dkimd does the work: this command only shows how far it is, and may be interrupted and run
again; another dkimd carries on when one ends. First start every dkimd with the new key as --kek-url and the present one as
--kek-url-previous. When all is done the old one is not needed any more.`

func (r *run) kekRotate() *cobra.Command {
	req := &dkimv1.RotateKeyEncryptionRequest{Name: keyEncryptionName}
	var background bool
	c := r.local(&cobra.Command{
		Use:   "rotate",
		Short: "Wrap all data keys anew, with the key-encryption key of --kek-url",
		Long:  kekRotateHelp,
		Example: `  dkimctl kek rotate
  dkimctl kek rotate --to hashivault://dkim-2027 --data-keys`,
	}, func(ctx context.Context, _ []string) error {
		api, err := r.custody()
		if err != nil {
			return err
		}
		k, err := call(ctx, r, api.RotateKeyEncryption, req)
		if err != nil {
			return err
		}
		if !background {
			if k, err = r.awaitRotation(ctx, api, k); err != nil {
				return err
			}
		}
		if err := r.printKeyEncryption(k); err != nil {
			return err
		}
		if n := k.GetRotation().GetFailures(); n > 0 && over(k.GetRotation()) {
			return fmt.Errorf("%d keys could not be opened: keep the old key-encryption key, and look at the log of dkimd", n)
		}
		return nil
	})
	c.Flags().StringVar(&req.Key, "to", "", "refuse if dkimd's --kek-url is not this `key`, a URL without parameters")
	c.Flags().BoolVar(&req.DataKeys, "data-keys", false, "make new data keys, too, and seal all private keys anew")
	c.Flags().BoolVar(&background, "background", false, "do not wait for the end")
	noFiles(c, "to")
	return c
}

// awaitRotation shows how far the rotation is until it is over, and that it is.
func (r *run) awaitRotation(ctx context.Context, api dkimv1.CustodyClient, k *dkimv1.KeyEncryption) (*dkimv1.KeyEncryption, error) {
	started, shown := k.GetRotation().GetStartTime().AsTime(), ""
	ticker := time.NewTicker(kekPoll)
	defer ticker.Stop()
	for {
		text := rotationText(k.GetRotation())
		if problem := k.GetRotation().GetError(); problem != "" && k.GetRotation().GetFailures() == 0 {
			text += "; waits: " + problem
		}
		if text != shown {
			_, _ = fmt.Fprintln(r.Stderr, oneLine(text))
			shown = text
		}
		if over(k.GetRotation()) {
			return k, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; the rotation goes on, see `dkimctl kek status`", errInterrupted)
		case <-ticker.C:
		}
		next, err := call(ctx, r, api.GetKeyEncryption, &dkimv1.GetKeyEncryptionRequest{Name: keyEncryptionName})
		if err != nil {
			return nil, err
		}
		if !next.GetRotation().GetStartTime().AsTime().Equal(started) {
			return nil, errors.New("another rotation was begun meanwhile")
		}
		k = next
	}
}
