package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func (r *run) zoneExport() *cobra.Command {
	var file string
	c := r.command(&cobra.Command{
		Use:   "export ZONE",
		Short: "Print a zone as a master file",
		Long: `Prints all that a zone serves, as it stands at one moment, as a master file (RFC 1035) that other name servers load. With
--to-file it is written to a file, which appears, or is replaced, only when it is complete; otherwise the exit status says
so, and the last line, "; end of zone".`,
		Example: `  dkimctl zone export keys.example.net | named-checkzone keys.example.net /dev/stdin
  dkimctl zone export keys.example.net --to-file keys.example.net.zone`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		req := &dkimv1.ExportZoneRequest{Name: zoneName(args[0])}
		if file == "" {
			return r.export(ctx, api, req, r.Stdout)
		}
		return writeWhole(file, 0o644, func(w io.Writer) error { return r.export(ctx, api, req, w) })
	})
	c.Flags().StringVar(&file, "to-file", "", "write to this `file`")
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		switch {
		case c.Flags().Changed("to-file") && file == "":
			return usageError{"--to-file names no file"}
		case r.format != formatTable:
			return usageError{"an export is a master file, -o does not change it; --to-file names a file to write"}
		}
		return nil
	}
	return c
}

// export writes a zone file as it comes. It may take as long as it likes, but
// not longer than the time limit for the next piece.
func (r *run) export(ctx context.Context, api dkimv1.KeyManagementClient, req *dkimv1.ExportZoneRequest, w io.Writer) error {
	callCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(r.timeout, func() { cancel(context.DeadlineExceeded) })
	defer stalled.Stop()
	stream, err := api.ExportZone(callCtx, req)
	for err == nil {
		var resp *dkimv1.ExportZoneResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		stalled.Reset(r.timeout)
		if _, err := w.Write(resp.GetData()); err != nil {
			return fmt.Errorf("write the zone: %w", err)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	f := r.failure(err)
	if f.code == codes.Canceled && ctx.Err() == nil {
		return fmt.Errorf("dkimd sent nothing more of the zone for %s: try again, or give it more with --timeout", r.timeout)
	}
	return f
}

// writeWhole makes or replaces a file, if write succeeds.
func writeWhole(path string, mode os.FileMode, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.part")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = write(f)
	if err == nil {
		err = errors.Join(f.Sync(), f.Chmod(mode))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}
