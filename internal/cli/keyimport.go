package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

const keyImportHelp = `Takes over a key pair that was made elsewhere: publishes its public half in a selector, and gives dkimd the private half to
sign with. dkimd rotates the selector from then on. The file of --private-key-file holds PKCS #1 or PKCS #8 in PEM, the
base64 of either, or the base64 of an Ed25519 seed. Unsafe keys are refused before anything is sent: RSA other than 2048,
3072 or 4096 bits, exponents other than 65537, ROCA keys, keys with close primes, the example keys of the RFCs.

With --in-use the key is ACTIVE at once: that is for keys that sign mail already and stand in the customer's DNS, as a TXT
record or behind a CNAME. Without it the key is PREPARED, and signs when DNS proves it and its turn comes.

Whoever made the key may still have it: it goes with the next rotation. Stop other signers that use it before that.`

func (r *run) keyImport() *cobra.Command {
	var file string
	var w waiting
	req := &dkimv1.ImportKeyRequest{}
	c := r.command(&cobra.Command{
		Use:   "import BRAND DOMAIN SELECTOR",
		Short: "Take over a key pair made elsewhere",
		Long:  keyImportHelp,
		Example: `  dkimctl key import acme spamtrap.dk mailer --private-key-file mailer.private --in-use
  dkimctl key import acme spamtrap.dk mailer --private-key-file mailer.private --dry-run
  ssh mx1 cat /etc/dkimkeys/mailer.private | dkimctl key import acme spamtrap.dk mailer --private-key-file - --in-use --wait`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		text, err := r.readPrivateKey(file)
		if err != nil {
			return err
		}
		req.Parent, req.Selector, req.PrivateKey = domainName(args[0], args[1]), args[2], text
		k, err := call(ctx, r, api.ImportKey, req)
		if err != nil {
			return err
		}
		if err := r.printKey(k); err != nil || !w.wanted || req.GetValidateOnly() {
			return err
		}
		b, err := call(ctx, r, api.GetBrand, &dkimv1.GetBrandRequest{Name: brandName(brandOf(k.GetName()))})
		if err != nil {
			return err
		}
		return r.wait(ctx, api, w, served{
			zone: b.GetZone(), revision: k.GetRevision(), records: map[string]string{k.GetOwnerName(): k.GetRecord()},
		})
	})
	c.Flags().StringVar(&file, "private-key-file", "", "`file` with the private key, - for standard input")
	c.Flags().BoolVar(&req.InUse, "in-use", false, "the key signs mail already")
	c.Flags().BoolVar(&req.ValidateOnly, "dry-run", false, "say what would be done, and change nothing")
	c.Flags().Int32Var(&req.TtlSeconds, "ttl", 0, "`seconds` a resolver may keep the record, 60 to 86400 (default the zone's)")
	c.Flags().BoolVar(&req.Testing, "testing", false, "publish with t=y: verifiers treat the mail as unsigned")
	noFiles(c, "ttl")
	require(c, "private-key-file")
	w.define(c)
	return c
}

// readPrivateKey reads a file that holds one good private key and nothing else, and
// warns if others can read it.
func (r *run) readPrivateKey(file string) (string, error) {
	if info, err := os.Stat(file); err == nil && file != "-" {
		if text := openToOthers(file, info); text != "" {
			_, _ = fmt.Fprintln(r.Stderr, "dkimctl: "+text)
		}
	}
	return r.readKeyFile(file, "private key", func(data []byte) error {
		_, err := keypair.ParsePrivateKey(data)
		return err
	})
}

// openToOthers is a warning that other users can read or change a private key; ""
// if they cannot.
func openToOthers(file string, info os.FileInfo) string {
	if info.Mode().Perm()&0o026 == 0 {
		return ""
	}
	return fmt.Sprintf("%s is open to other users (mode %04o): who has read it can sign, so rotate soon", file, info.Mode().Perm())
}
