package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func (r *run) keyExport() *cobra.Command {
	var file string
	c := r.command(&cobra.Command{
		Use:   "export BRAND DOMAIN SELECTOR",
		Short: "Read out the private key in a selector",
		Long: `Writes the private key that is in a selector, as PKCS #8 in PEM, to the file of --to-file, which only its owner may read, or
else to standard output. dkimd must have been started with --allow-key-export, and the caller have the permission to export keys
("dkimctl token create --export-keys", "dkimd pki client NAME admin --export-keys"). Each export is in the audit log.`,
		Example: "  dkimctl key export acme spamtrap.dk selector1 --to-file selector1.pem",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		name, err := r.keyName(ctx, api, args[0], args[1], args[2])
		if err != nil {
			return err
		}
		custody, err := r.custody()
		if err != nil {
			return err
		}
		resp, err := call(ctx, r, custody.ExportPrivateKey, &dkimv1.ExportPrivateKeyRequest{Name: name})
		if err != nil {
			return err
		}
		if file == "" {
			return r.print(resp, func(w io.Writer) error {
				_, err := io.WriteString(w, resp.GetPrivateKey())
				return err
			})
		}
		return writeWhole(file, 0o600, func(w io.Writer) error {
			if _, err := io.WriteString(w, resp.GetPrivateKey()); err != nil {
				return fmt.Errorf("write the key: %w", err)
			}
			return nil
		})
	})
	c.Flags().StringVar(&file, "to-file", "", "write to this `file`")
	return c
}
