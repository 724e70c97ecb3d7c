package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/takeover"
)

const takeoverHelp = `Each key is taken over as "key import" does, under the domain and selector that it signs with: private half sealed, public half
published, the selector managed from then on. A key that the configuration has sign is ACTIVE at once, any other PREPARED. The
customers' TXT records need not change for it; when they become CNAMEs, rotation can begin.

--dry-run asks dkimd about every key, says what would become of it and why one is refused, and changes nothing. Private keys
are in no output.

It can be interrupted and run again: what is done stands in the file of --journal and is not done again. When all are done,
that file is removed. What cannot be done is reported at the end, and the exit status is 1. With -o json or yaml the keys are
printed, with their owner names, which are the targets of the CNAMEs.`

func (r *run) imports() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "import",
		Short: "Take over the keys of another signer",
		Long:  "Takes over the private keys of an installation that signs already, many at a time.\n\n" + takeoverHelp,
		Example: `  dkimctl import opendkim --brand acme --dry-run
  dkimctl import rspamd --brand acme
  dkimctl import directory /srv/dkim --brand acme --pattern '{domain}/{selector}.private'`,
	}, r.importOpenDKIM(), r.importRspamd(), r.importDirectory())
}

// takeoverJob is a takeover.
type takeoverJob struct {
	kind     string // of the installation
	brand    string
	journal  string
	parallel int
	dryRun   bool
	testing  bool
	ttl      int32
	waiting  waiting
	// allInUse says that keys are in use though nothing says so, if there is no
	// other of the domain.
	allInUse bool
}

// define adds the flags that all kinds have.
func (j *takeoverJob) define(r *run, c *cobra.Command) {
	c.Flags().StringVar(&j.brand, "brand", "", "the `brand` that gets the domains")
	c.Flags().BoolVar(&j.dryRun, "dry-run", false, "report what would be done, and change nothing")
	c.Flags().StringVar(&j.journal, "journal", "", "`file` that keeps what is done (default import-BRAND.done)")
	c.Flags().IntVar(&j.parallel, "parallel", defaultParallel, "how many domains to take over at the same time, 1 to 64")
	c.Flags().Int32Var(&j.ttl, "ttl", 0, "`seconds` a resolver may keep the records, 60 to 86400 (default the zone's)")
	c.Flags().BoolVar(&j.testing, "testing", false, "publish with t=y: verifiers treat the mail as unsigned")
	noFiles(c, "parallel", "ttl")
	complete(c, "brand", r.completeBrands)
	require(c, "brand")
	j.waiting.define(c)
	c.PreRunE = func(*cobra.Command, []string) error {
		switch {
		case j.parallel < 1 || j.parallel > maxParallel:
			return usageError{"--parallel takes 1 to 64"}
		case j.dryRun && j.waiting.wanted:
			return usageError{"--wait is not for --dry-run"}
		}
		return nil
	}
}

func (r *run) importOpenDKIM() *cobra.Command {
	var o takeover.OpenDKIM
	job := takeoverJob{kind: "opendkim"}
	c := r.command(&cobra.Command{
		Use:   "opendkim [CONFIG]",
		Short: "Take over the keys of an OpenDKIM",
		Long: `Takes over the keys of an OpenDKIM: those of KeyTable and SigningTable, or of Domain, Selector and KeyFile in opendkim.conf
(default /etc/opendkim.conf). Tables may be file:, refile: or csl:. Where a table has "%" for the domain of the sender, the
domains are those that the SigningTable names, those of --domain and, if the path of the key has the "%", those that have a
key file.

` + takeoverHelp,
		Example: `  dkimctl import opendkim --brand acme --dry-run
  dkimctl import opendkim --brand acme --wait
  dkimctl import opendkim --brand acme --key-table KeyTable --signing-table SigningTable --root /backup/mx1`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		switch {
		case len(args) > 0:
			o.Config = args[0]
		case o.KeyTable == "":
			o.Config = o.Path("/etc/opendkim.conf", "")
		}
		return r.takeOver(ctx, api, job, o.List)
	})
	c.Flags().StringVar(&o.KeyTable, "key-table", "", "`file` of the KeyTable instead of the configured one")
	c.Flags().StringVar(&o.SigningTable, "signing-table", "", "`file` of the SigningTable instead of the configured one")
	takeoverPlaces(c, &o.Files, &o.Domains)
	job.define(r, c)
	return c
}

func (r *run) importRspamd() *cobra.Command {
	var o takeover.Rspamd
	job := takeoverJob{kind: "rspamd"}
	c := r.command(&cobra.Command{
		Use:   "rspamd [CONFIG]",
		Short: "Take over the keys of an rspamd",
		Long: `Takes over the keys of rspamd's module dkim_signing, as local.d/dkim_signing.conf (default in /etc/rspamd) configures it: its
domain sections, selector_map, path_map, key_table, and the files that its path means. Keys in Redis or Vault are not read.

` + takeoverHelp,
		Example: `  dkimctl import rspamd --brand acme --dry-run
  rspamadm configdump dkim_signing > dkim_signing.conf; dkimctl import rspamd dkim_signing.conf --brand acme
  dkimctl import rspamd --brand acme --path '/var/lib/rspamd/dkim/$domain.$selector.key' --selector-map selectors.map`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		switch {
		case len(args) > 0:
			o.Config = args[0]
		case o.Path == "" && o.SelectorMap == "" && o.PathMap == "":
			o.Config = o.Files.Path("/etc/rspamd/local.d/dkim_signing.conf", "")
		}
		return r.takeOver(ctx, api, job, o.List)
	})
	c.Flags().StringVar(&o.Path, "path", "", "`path` of key files with $domain and $selector, instead of the configured one")
	c.Flags().StringVar(&o.Selector, "selector", "", "`selector` of domains without one, instead of the configured one")
	c.Flags().StringVar(&o.SelectorMap, "selector-map", "", "`file` of selectors instead of the configured one")
	c.Flags().StringVar(&o.PathMap, "path-map", "", "`file` of paths instead of the configured one")
	noFiles(c, "path", "selector")
	takeoverPlaces(c, &o.Files, &o.Domains)
	job.define(r, c)
	return c
}

// takeoverPlaces adds the flags of configuration that is read.
func takeoverPlaces(c *cobra.Command, files *takeover.Files, domains *[]string) {
	c.Flags().StringVar(&files.Root, "root", "", "`directory` to put in front of the absolute paths in the configuration")
	c.Flags().StringSliceVar(domains, "domain", nil, "a `domain` that signs and stands in no table; may be repeated")
	noFiles(c, "domain")
}

func (r *run) importDirectory() *cobra.Command {
	var pattern string
	job := takeoverJob{kind: "directory"}
	c := r.command(&cobra.Command{
		Use:   "directory DIRECTORY",
		Short: "Take over a directory of key files",
		Long: `Takes over the private keys in a directory, whose names say what they are for: by default example.com.selector.key. In
--pattern {domain} and {selector} stand for these, and there may be a level of directories.

Nothing in a directory says which keys are in use. They are PREPARED, or with --in-use ACTIVE where a domain has one key of
an algorithm only.

` + takeoverHelp,
		Example: `  dkimctl import directory /srv/dkim --brand acme --dry-run
  dkimctl import directory /etc/dkimkeys --brand acme --in-use --pattern '{domain}/{selector}.private'`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		return r.takeOver(ctx, api, job, func() (takeover.Inventory, error) { return takeover.Directory(args[0], pattern) })
	})
	c.Flags().StringVar(&pattern, "pattern", takeover.DefaultPattern, "`form` of the names of key files")
	c.Flags().BoolVar(&job.allInUse, "in-use", false, "the keys sign mail already")
	noFiles(c, "pattern")
	job.define(r, c)
	return c
}

// title says on what it depends that a key is done; see fileJob.title.
func (j takeoverJob) title(b *dkimv1.Brand) string {
	words := []string{"# import", j.kind, b.GetName(), b.GetCreateTime().AsTime().UTC().Format(time.RFC3339Nano)}
	if j.allInUse {
		words = append(words, "--in-use")
	}
	if j.testing {
		words = append(words, "--testing")
	}
	if j.ttl != 0 {
		words = append(words, "--ttl", fmt.Sprint(j.ttl))
	}
	return strings.Join(words, " ")
}

// ofDomain are the keys of one domain, which are taken over one after the other.
type ofDomain struct {
	domain dnsname.Domain
	keys   []*foundKey
}

// byDomain sorts keys by domain, in the order of the first of each.
func byDomain(keys []*foundKey) []ofDomain {
	var all []ofDomain
	at := make(map[dnsname.Domain]int)
	for _, k := range keys {
		i, ok := at[k.Domain]
		if !ok {
			i = len(all)
			at[k.Domain] = i
			all = append(all, ofDomain{domain: k.Domain})
		}
		all[i].keys = append(all[i].keys, k)
	}
	return all
}

// settle sees to it that at most one key of each algorithm of a domain is in use:
// the first one that signs.
func (d ofDomain) settle(allInUse bool) {
	for i, k := range d.keys {
		same := func(other *foundKey) bool { return other != k && other.algorithm == k.algorithm }
		switch {
		case k.refused != nil:
		case allInUse && slices.ContainsFunc(d.keys, same):
			k.note = "not in use, as nothing says which of the domain's keys signs"
		case allInUse:
			k.InUse = true
		case k.InUse:
			before := slices.IndexFunc(d.keys[:i], func(other *foundKey) bool { return same(other) && other.InUse && other.refused == nil })
			if before >= 0 {
				k.InUse = false
				k.note = fmt.Sprintf("not in use, as selector %s signs with the same algorithm", d.keys[before].Selector)
			}
		}
	}
}
