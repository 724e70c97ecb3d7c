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
  dkimctl key publish acme spamtrap.dk mailer --public-key-file mailer.pem`,
	}, r.keyGet(), r.keyList(), r.keyPublish(), r.keyDelete())
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

func (r *run) keyPublish() *cobra.Command {
	var file string
	var w waiting
	req := &dkimv1.PublishKeyRequest{}
	c := r.command(&cobra.Command{
		Use:   "publish BRAND DOMAIN SELECTOR",
		Short: "Publish the public half of a key made elsewhere",
		Long: `Publishes the public half of a key made elsewhere in a selector of its own. The domain is created if it is not there. The file
holds a PEM block ("PUBLIC KEY" or "RSA PUBLIC KEY"), the base64 of p=, or a whole DKIM record. A private key is refused
before anything is sent. Publishing the same key again may change its TTL.`,
		Example: `  dkimctl key publish acme spamtrap.dk mailer --public-key-file mailer.pem
  openssl pkey -in mailer.key -pubout | dkimctl key publish acme spamtrap.dk mailer --public-key-file - --ttl 300 --wait`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
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
	noFiles(c, "ttl")
	require(c, "public-key-file")
	w.define(c)
	return c
}

// readPublicKey reads a file and makes sure that there is nothing in it but one
// good public key. Its errors repeat nothing of the contents.
func (r *run) readPublicKey(file string) (string, error) {
	in := r.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("public key: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxKeyFile+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("public key: %w", err)
	case len(data) > maxKeyFile:
		return "", fmt.Errorf("%s is larger than %d KiB: that is no public key", file, maxKeyFile>>10)
	}
	if _, err := keypair.ParsePublicKey(data); err != nil {
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
	testing := ""
	if k.GetTesting() {
		testing = "yes"
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
