package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// maxKeyFile is many times what the largest key needs.
const maxKeyFile = 64 << 10

func (r *run) key() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "key",
		Short: "The keys in a domain's selectors",
		Example: `  dkimctl key get acme spamtrap.dk selector1
  dkimctl key publish acme spamtrap.dk mailer --public-key-file mailer.pem
  dkimctl key import acme spamtrap.dk mailer --private-key-file mailer.key --in-use`,
	}, r.keyGet(), r.keyList(), r.keyPublish(), r.keyImport(), r.keyExport(), r.keyRevoke(), r.keyDelete())
}

func (r *run) keyGet() *cobra.Command {
	return r.command(&cobra.Command{
		Use:   "get BRAND DOMAIN SELECTOR",
		Short: "Show the key that stands in a selector",
		Example: `  dkimctl key get acme spamtrap.dk selector1
  dkimctl key get acme spamtrap.dk selector1 -o json | jq -r .record`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		name, err := r.keyName(ctx, api, args[0], args[1], args[2])
		if err != nil {
			return err
		}
		k, err := call(ctx, r, api.GetKey, &dkimv1.GetKeyRequest{Name: name})
		if err != nil {
			return err
		}
		return r.printKey(k)
	})
}

// keyName is the name of the key that stands in a selector.
func (r *run) keyName(ctx context.Context, api dkimv1.KeyManagementClient, brand, domain, selector string) (string, error) {
	d, err := r.getDomain(ctx, api, brand, domain)
	if err != nil {
		return "", err
	}
	var have []string
	for _, s := range d.GetSelectors() {
		switch {
		case s.GetSelector() != strings.ToLower(selector):
			have = append(have, s.GetSelector())
		case s.GetKey() == "":
			return "", fmt.Errorf("selector %s of %s holds no key at present", selector, domain)
		default:
			return s.GetKey(), nil
		}
	}
	return "", fmt.Errorf("%s has no selector %q; it has %s", domain, selector, strings.Join(have, ", "))
}

func (r *run) keyList() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "list BRAND DOMAIN",
		Short:   "List the keys of a domain",
		Example: "  dkimctl key list acme spamtrap.dk",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		l := r.newList("keys", "SELECTOR", "ALGORITHM", "STATE", "CUSTODY", "TTL", "FINGERPRINT", "OWNER NAME")
		return l.pages(func(token string) (string, error) {
			resp, err := r.keyPage(ctx, api, domainName(args[0], args[1]), token)
			for _, k := range resp.GetKeys() {
				l.add(k, k.GetSelector(), algorithmText(k.GetAlgorithm()), stateText(k.GetState()), custodyText(k.GetCustody()),
					seconds(k.GetTtlSeconds()), k.GetFingerprint(), k.GetOwnerName())
			}
			return resp.GetNextPageToken(), err
		})
	})
}

func (r *run) keyPage(ctx context.Context, api dkimv1.KeyManagementClient, domain, token string) (*dkimv1.ListKeysResponse, error) {
	return call(ctx, r, api.ListKeys, &dkimv1.ListKeysRequest{Parent: domain, PageSize: pageSize, PageToken: token})
}

const publishHelp = `Publishes the public half of a key made elsewhere in a selector of its own. The domain is created if it is not there. The file
of --public-key-file holds a PEM block ("PUBLIC KEY" or "RSA PUBLIC KEY"), the base64 of p=, or a whole DKIM record. A
private key is refused before anything is sent. Publishing the same key again may change its TTL.

With --brand and --from-file it publishes all keys of a file, any number of them, many at a time: on each line a domain, a
selector and the base64 of a public key or a whole DKIM record, with a tab between them; lines that begin with # are comment.
It can be interrupted and run again: what is done stands in FILE.done and is not done again. When all are done, FILE.done is
removed. Lines that cannot be done are reported at the end, and the exit status is 1. With -o json or yaml the results are
printed, in the order in which they got ready: the name of each key and its owner name, which is the target of the CNAME.`

func (r *run) keyPublish() *cobra.Command {
	var file string
	var w waiting
	var job keyJob
	req := &dkimv1.PublishKeyRequest{}
	c := r.command(&cobra.Command{
		Use:   "publish [BRAND] [DOMAIN] [SELECTOR]",
		Short: "Publish public keys made elsewhere, one or those in a file",
		Long:  publishHelp,
		Example: `  dkimctl key publish acme spamtrap.dk mailer --public-key-file mailer.pem
  openssl pkey -in mailer.key -pubout | dkimctl key publish acme spamtrap.dk mailer --public-key-file - --ttl 300 --wait
  dkimctl key publish --brand acme --from-file keys.tsv --wait`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		if job.file != "" {
			job.ttl, job.testing, job.waiting = req.GetTtlSeconds(), req.GetTesting(), w
			return r.publishFile(ctx, api, job)
		}
		text, err := r.readPublicKey(file)
		if err != nil {
			return err
		}
		req.Parent, req.Selector, req.PublicKey = domainName(args[0], args[1]), args[2], text
		k, err := call(ctx, r, api.PublishKey, req)
		if err != nil {
			return err
		}
		if err := r.printKey(k); err != nil || !w.wanted {
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
	c.Flags().StringVar(&file, "public-key-file", "", "`file` with the public key, - for standard input")
	c.Flags().Int32Var(&req.TtlSeconds, "ttl", 0, "`seconds` a resolver may keep the record, 60 to 86400 (default the zone's)")
	c.Flags().BoolVar(&req.Testing, "testing", false, "publish with t=y: verifiers treat the mail as unsigned")
	c.Flags().StringVar(&job.file, "from-file", "", "publish the keys in this `file`")
	c.Flags().StringVar(&job.brand, "brand", "", "with --from-file: the `brand` of all its domains")
	c.Flags().IntVar(&job.parallel, "parallel", defaultKeyParallel, "with --from-file: how many batches to send at the same time, 1 to 64")
	noFiles(c, "ttl", "parallel")
	complete(c, "brand", r.completeBrands)
	w.define(c)
	c.PreRunE = func(c *cobra.Command, args []string) error { return checkPublish(c, args, job) }
	return c
}

// checkPublish sees to it that either one key is given or a file of them.
func checkPublish(c *cobra.Command, args []string, job keyJob) error {
	given := c.Flags().Changed
	switch names, _ := arguments(c); {
	case given("from-file") && len(args) > 0:
		return usageError{fmt.Sprintf("%q: with --from-file no arguments are expected, --brand says whose keys they are", args[0])}
	case given("from-file") && job.file == "":
		return usageError{"--from-file names no file"}
	case given("from-file") && given("public-key-file"):
		return usageError{"give --public-key-file or --from-file, not both"}
	case given("from-file") && job.brand == "":
		return usageError{"--brand is missing"}
	case !given("from-file") && (given("brand") || given("parallel")):
		return usageError{"--brand and --parallel are for --from-file"}
	case job.parallel < 1 || job.parallel > maxParallel:
		return usageError{"--parallel takes 1 to 64"}
	case !given("from-file") && len(args) < len(names):
		return usageError{strings.Join(names[len(args):], " and ") + " is missing"}
	case !given("from-file") && !given("public-key-file"):
		return usageError{`required flag(s) "public-key-file" not set`}
	}
	return nil
}

// readPublicKey reads a file that holds one good public key and nothing else.
func (r *run) readPublicKey(file string) (string, error) {
	return r.readKeyFile(file, "public key", func(data []byte) error {
		_, err := keypair.ParsePublicKey(data)
		return err
	})
}

// readKeyFile reads a file, - for standard input, that is what it should be if parse
// says so. Its errors repeat nothing of the contents.
func (r *run) readKeyFile(file, what string, parse func([]byte) error) (string, error) {
	in := r.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("%s: %w", what, err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxKeyFile+1))
	defer clear(data)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", what, err)
	case len(data) > maxKeyFile:
		return "", fmt.Errorf("%s is larger than %d KiB: that is no %s", file, maxKeyFile>>10, what)
	}
	if err := parse(data); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return string(data), nil
}

func (r *run) keyDelete() *cobra.Command {
	var yes bool
	var w waiting
	req := &dkimv1.DeleteKeyRequest{}
	c := r.command(&cobra.Command{
		Use:   "delete BRAND DOMAIN SELECTOR",
		Short: "Withdraw a key that was published",
		Long: `Withdraws a key that "key publish" published; the domain stays. Mail it signed no longer verifies. Keys that the service
made are withdrawn by rotation only.

` + confirmHelp,
		Example: `  dkimctl key delete acme spamtrap.dk mailer
  dkimctl key delete acme spamtrap.dk mailer --yes --wait`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		name, err := r.keyName(ctx, api, args[0], args[1], args[2])
		if err != nil {
			return err
		}
		question := fmt.Sprintf("Withdraw the key in selector %s of %s? Mail it signed no longer verifies.", args[2], args[1])
		if err := r.confirm(ctx, yes, question); err != nil {
			return err
		}
		req.Name = name
		d, err := call(ctx, r, api.DeleteKey, req)
		if err != nil {
			return err
		}
		if err := r.print(d, func(w io.Writer) error {
			return say(w, "the key in selector %s of %s is withdrawn", strings.ToLower(args[2]), lastPart(d.GetName()))
		}); err != nil {
			return err
		}
		return r.wait(ctx, api, w, served{zone: d.GetZone(), revision: d.GetRevision()})
	})
	yesFlag(c, &yes)
	etagFlag(c, &req.Etag)
	w.define(c)
	return c
}

func (r *run) printKey(k *dkimv1.Key) error {
	testing, imported := "", ""
	if k.GetTesting() {
		testing = "yes"
	}
	if k.GetImported() {
		imported = "yes"
	}
	return r.print(k, func(w io.Writer) error {
		return details(w,
			"Selector", k.GetSelector(),
			"Algorithm", algorithmText(k.GetAlgorithm()),
			"State", stateText(k.GetState()),
			"Custody", custodyText(k.GetCustody()),
			"Key", lastPart(k.GetName()),
			"Fingerprint", k.GetFingerprint(),
			"Testing", testing,
			"Imported", imported,
			"Prepared", timeText(k.GetPrepareTime()),
			"Activated", timeText(k.GetActivateTime()),
			"Retired", timeText(k.GetRetireTime()),
			"Revoked", timeText(k.GetRevokeTime()),
			"TTL", seconds(k.GetTtlSeconds()),
			"Owner name", k.GetOwnerName(),
			"Record", k.GetRecord(),
		)
	})
}
