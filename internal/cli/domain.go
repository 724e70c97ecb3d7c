package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func domainName(brand, domain string) string { return brandName(brand) + "/domains/" + domain }

// brandOf is the brand in the name of a domain or a key.
func brandOf(name string) string {
	_, rest, _ := strings.Cut(name, "/")
	brand, _, _ := strings.Cut(rest, "/")
	return brand
}

func (r *run) domain() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "domain",
		Short: "Customers' domains and the CNAMEs they add",
		Example: `  dkimctl domain provision acme spamtrap.dk --wait
  dkimctl domain cnames acme spamtrap.dk
  dkimctl domain rotate acme spamtrap.dk`,
	}, r.domainProvision(), r.domainGet(), r.domainDescribe(), r.domainList(), r.domainCheck(), r.domainUpdate(), r.domainRotate(), r.domainHistory(),
		r.domainDelete(), r.domainCNAMEs(), r.domainWatch())
}

func (r *run) domainGet() *cobra.Command {
	return r.command(&cobra.Command{
		Use:   "get BRAND DOMAIN",
		Short: "Show a domain and its selectors",
		Example: `  dkimctl domain get acme spamtrap.dk
  dkimctl domain get acme bücher.example -o json`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		d, err := r.getDomain(ctx, api, args[0], args[1])
		if err != nil {
			return err
		}
		return r.printDomain(d)
	})
}

func (r *run) getDomain(ctx context.Context, api dkimv1.KeyManagementClient, brand, domain string) (*dkimv1.Domain, error) {
	return call(ctx, r, api.GetDomain, &dkimv1.GetDomainRequest{Name: domainName(brand, domain)})
}

func (r *run) domainList() *cobra.Command {
	var filter string
	c := r.command(&cobra.Command{
		Use:   "list [BRAND]",
		Short: "List the domains of a brand, or of all",
		Long: `Lists the domains of a brand or, without one, of all brands.

A filter consists of terms joined by AND: domain = "*.dk" ("*" may stand at either end), host_label = "spamtrap-dk",
algorithm = RSA_2048, key_state = PREPARED, kind = CUSTOMER. A term about keys holds if it does for one of the domain's keys.`,
		Example: `  dkimctl domain list
  dkimctl domain list acme --filter 'domain = "*.dk" AND key_state = RETIRING'
  dkimctl domain list acme -o json`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		parent := brandName("-")
		if len(args) > 0 {
			parent = brandName(args[0])
		}
		l := r.newList("domains", "BRAND", "DOMAIN", "ALGORITHM", "SELECTORS", "CNAME TARGETS")
		return l.pages(func(token string) (string, error) {
			resp, err := call(ctx, r, api.ListDomains, &dkimv1.ListDomainsRequest{Parent: parent, PageSize: pageSize, PageToken: token, Filter: filter})
			for _, d := range resp.GetDomains() {
				l.add(d, domainCells(d)...)
			}
			return resp.GetNextPageToken(), err
		})
	})
	c.Flags().StringVar(&filter, "filter", "", "list only the domains that fulfil this `condition`")
	noFiles(c, "filter")
	return c
}

// domainCells are the cells of a domain in a list. The CNAME targets of its
// selectors differ only in the selector in front.
func domainCells(d *dkimv1.Domain) []string {
	var used, selectors []string
	targets := ""
	for _, s := range d.GetSelectors() {
		if a := algorithmText(s.GetAlgorithm()); !slices.Contains(used, a) {
			used = append(used, a)
		}
		selectors = append(selectors, selectorText(s))
		if to := s.GetCnameTarget(); to != "" { // a brand's own domains have none
			targets = "SELECTOR" + strings.TrimPrefix(to, s.GetSelector())
		}
	}
	return []string{brandOf(d.GetName()), lastPart(d.GetName()), strings.Join(used, ","), strings.Join(selectors, ","), targets}
}

func selectorText(s *dkimv1.Selector) string {
	if s.GetKey() == "" {
		return s.GetSelector() + "=empty"
	}
	return s.GetSelector() + "=" + stateText(s.GetKeyState())
}

func (r *run) domainRotate() *cobra.Command {
	var w waiting
	req := &dkimv1.RotateDomainRequest{}
	c := r.command(&cobra.Command{
		Use:   "rotate BRAND DOMAIN",
		Short: "Let the standby key of a domain sign from now on",
		Long: `Makes the standby key of each algorithm the one that signs, if DNS and the signers prove that it may. The key that signed
until now goes on being published, so that mail on its way still verifies. With --when-ready it happens as soon as the proof
is there.`,
		Example: `  dkimctl domain rotate acme spamtrap.dk
  dkimctl domain rotate acme spamtrap.dk --when-ready`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		req.Name = domainName(args[0], args[1])
		d, err := call(ctx, r, api.RotateDomain, req)
		if err != nil {
			return err
		}
		if err := r.printDomain(d); err != nil {
			return err
		}
		return r.wait(ctx, api, w, served{zone: d.GetZone(), revision: d.GetRevision()})
	})
	c.Flags().BoolVar(&req.WhenReady, "when-ready", false, "rotate as soon as the standby is proven, and do not refuse while it is not")
	etagFlag(c, &req.Etag)
	w.define(c)
	return c
}

func (r *run) domainDelete() *cobra.Command {
	var yes bool
	var w waiting
	req := &dkimv1.DeleteDomainRequest{}
	c := r.command(&cobra.Command{
		Use:   "delete BRAND DOMAIN",
		Short: "Withdraw a domain's records and destroy its keys",
		Long: `Withdraws all records of a domain and destroys its keys at once: mail they signed no longer verifies. The name that the
customer's CNAMEs point at stays reserved for the brand.

` + confirmHelp,
		Example: `  dkimctl domain delete acme spamtrap.dk
  dkimctl domain delete acme spamtrap.dk --yes --wait`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		question := fmt.Sprintf("Delete domain %s of brand %s? Its keys are destroyed, mail they signed no longer verifies.", args[1], args[0])
		if err := r.confirm(ctx, yes, question); err != nil {
			return err
		}
		req.Name = domainName(args[0], args[1])
		d, err := call(ctx, r, api.DeleteDomain, req)
		if err != nil {
			return err
		}
		if err := r.print(d, func(w io.Writer) error {
			return say(w, "domain %s of brand %s is deleted", lastPart(d.GetName()), brandOf(d.GetName()))
		}); err != nil {
			return err
		}
		if names := d.GetDanglingCnames(); len(names) > 0 {
			_, _ = fmt.Fprintln(r.Stderr, oneLine("dkimctl: warning: CNAMEs of the customer pointed here when they were last looked at, and should be removed: "+strings.Join(names, ", ")))
		}
		return r.wait(ctx, api, w, served{zone: d.GetZone(), revision: d.GetRevision()})
	})
	yesFlag(c, &yes)
	etagFlag(c, &req.Etag)
	w.define(c)
	return c
}

func (r *run) domainCNAMEs() *cobra.Command {
	return r.command(&cobra.Command{
		Use:   "cnames BRAND DOMAIN",
		Short: "Print the CNAME records that the customer adds",
		Long: `Prints the CNAME records that the customer adds to the zone of the domain, as lines of a zone file. They stay as they are,
whatever keys rotate. With -o json or yaml it prints the domain, whose selectors have the names in cnameOwner and
cnameTarget.`,
		Example: "  dkimctl domain cnames acme spamtrap.dk >>spamtrap.dk.zone",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		d, err := r.getDomain(ctx, api, args[0], args[1])
		if err != nil {
			return err
		}
		return r.print(d, func(w io.Writer) error {
			t := newTable(w)
			for _, s := range d.GetSelectors() {
				if s.GetCnameOwner() == "" { // of a brand's own key domain
					continue
				}
				row(t, s.GetCnameOwner()+".", "3600 IN CNAME", s.GetCnameTarget()+".")
			}
			return t.Flush()
		})
	})
}

// domainText is the name of a domain, also as people write it.
func domainText(d *dkimv1.Domain) string {
	name := lastPart(d.GetName())
	if d.GetUnicodeDomain() != name {
		name += " (" + d.GetUnicodeDomain() + ")"
	}
	return name
}

func (r *run) printDomain(d *dkimv1.Domain) error {
	return r.print(d, func(w io.Writer) error {
		if err := details(w,
			"Domain", domainText(d),
			"Brand", brandOf(d.GetName()),
			"Zone", lastPart(d.GetZone()),
			"Created", timeText(d.GetCreateTime()),
			"Changed", timeText(d.GetUpdateTime()),
			"Etag", d.GetEtag(),
		); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		t := newTable(w)
		row(t, "SELECTOR", "ALGORITHM", "STATE", "CUSTODY", "CNAME TARGET")
		for _, s := range d.GetSelectors() {
			state, custody := "", ""
			if s.GetKey() != "" {
				state, custody = stateText(s.GetKeyState()), custodyText(s.GetCustody())
			}
			row(t, s.GetSelector(), algorithmText(s.GetAlgorithm()), state, custody, s.GetCnameTarget())
		}
		return t.Flush()
	})
}
