package cli

import (
	"context"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

const (
	defaultParallel = 8
	maxParallel     = 64
)

const provisionHelp = `Makes sure that a domain exists and that each of its selectors holds a published key, and shows the CNAME targets for the
customer. What is there already stays as it is, so it does no harm to run it again.

Without --selector a new domain gets selector1 and selector2 of one algorithm: rsa2048 unless --algorithm says rsa3072,
rsa4096 or ed25519. There must be two selectors of each algorithm at least, so that keys can take turns.

With --from-file it provisions all domains of a file: one on each line, by itself or followed by an algorithm; from # to the
end of a line is comment. It can be interrupted and run again: the domains that are done stand in FILE.done and are not done
again. When all are done, FILE.done is removed. Lines that cannot be done are reported at the end, and the exit status is 1.
With -o json or yaml the domains are printed as "domain list" prints them, in the order in which they got ready.`

// provisionFlags say how a domain is provisioned.
type provisionFlags struct {
	algorithm algorithmFlag
	selectors selectorFlags
	ttl       int32
	testing   bool
}

func (r *run) domainProvision() *cobra.Command {
	var f provisionFlags
	var w waiting
	var file string
	var parallel int
	c := r.command(&cobra.Command{
		Use:   "provision BRAND [DOMAIN]",
		Short: "Provision a domain, or those in a file, with keys",
		Long:  provisionHelp,
		Example: `  dkimctl domain provision acme spamtrap.dk --wait
  dkimctl domain provision acme spamtrap.dk --algorithm rsa4096
  dkimctl domain provision acme spamtrap.dk --selector s1 --selector s2 --selector e1:ed25519 --selector e2:ed25519
  dkimctl domain provision acme --from-file domains.txt`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		if file != "" {
			return r.provisionFile(ctx, api, fileJob{brand: args[0], file: file, parallel: parallel, flags: f, waiting: w})
		}
		d, err := call(ctx, r, api.ProvisionDomain, f.request(args[0], args[1], 0))
		if err != nil {
			return err
		}
		if err := r.printDomain(d); err != nil || !w.wanted {
			return err
		}
		s, err := r.provisioned(ctx, api, d)
		if err != nil {
			return err
		}
		return r.wait(ctx, api, w, s)
	})
	flags := c.Flags()
	flags.Var(&f.algorithm, "algorithm", "algorithm of new selectors that name none: rsa2048 (the default), rsa3072, rsa4096 or ed25519")
	flags.Var(&f.selectors, "selector", "a selector to manage; repeat it for each, at least two of each algorithm")
	flags.Int32Var(&f.ttl, "ttl", 0, "`seconds` a resolver may keep new records, 60 to 86400 (default the zone's)")
	flags.BoolVar(&f.testing, "testing", false, "publish new keys with t=y: verifiers treat the mail as unsigned")
	flags.StringVar(&file, "from-file", "", "provision the domains in this `file`")
	flags.IntVar(&parallel, "parallel", defaultParallel, "with --from-file: how many domains to provision at the same time, 1 to 64")
	w.define(c)
	completeAlgorithms(c, "algorithm")
	noFiles(c, "selector", "ttl", "parallel")
	c.PreRunE = func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < 2 && !c.Flags().Changed("from-file"):
			return usageError{"DOMAIN or --from-file is missing"}
		case len(args) == 2 && c.Flags().Changed("from-file"):
			return usageError{"give DOMAIN or --from-file, not both"}
		case c.Flags().Changed("from-file") && file == "":
			return usageError{"--from-file names no file"}
		case c.Flags().Changed("parallel") && file == "":
			return usageError{"--parallel is for --from-file"}
		case parallel < 1 || parallel > maxParallel:
			return usageError{"--parallel takes 1 to 64"}
		}
		return nil
	}
	return c
}

// request is for one domain. algorithm, if not 0, goes before that of the flags.
func (f provisionFlags) request(brand, domain string, algorithm keypair.Algorithm) *dkimv1.ProvisionDomainRequest {
	if algorithm == 0 {
		algorithm = keypair.Algorithm(f.algorithm)
	}
	return &dkimv1.ProvisionDomainRequest{
		Name:       domainName(brand, domain),
		Selectors:  f.selectors,
		Algorithm:  algorithmMessage(algorithm),
		Testing:    f.testing,
		TtlSeconds: f.ttl,
	}
}
