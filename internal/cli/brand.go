package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func brandName(brand string) string { return "brands/" + brand }

func (r *run) brand() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "brand",
		Short: "Brands, the tenants that domains belong to",
		Example: `  dkimctl brand create acme
  dkimctl brand list`,
	}, r.brandCreate(), r.brandGet(), r.brandList(), r.brandUpdate(), r.brandPlan(), r.brandRotate(), r.brandDelete(), r.brandSecret())
}

func (r *run) brandCreate() *cobra.Command {
	var zone string
	var f brandFlags
	c := r.command(&cobra.Command{
		Use:   "create BRAND",
		Short: "Create a brand",
		Long: `Creates a brand: 1 to 40 letters a to z, digits and dashes, a letter first. Its domains are hosted in one zone for good.
While there is only one zone, it need not be named.

` + modeHelp + "\n\n" + policyHelp,
		Example: `  dkimctl brand create acme
  dkimctl brand create acme --zone keys.example.net --display-name 'Acme Mail'
  dkimctl brand create acme --max-domains 5000
  dkimctl brand create acme --mode shared --rotate-every 60d --max-per-hour 1000`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		b := f.message()
		if zone != "" {
			b.Zone = zoneName(zone)
		}
		b, err := call(ctx, r, api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: args[0], Brand: b})
		if err != nil {
			return err
		}
		return r.printBrand(b)
	})
	c.Flags().StringVar(&zone, "zone", "", "the `zone` that hosts its domains (default the only one there is)")
	f.define(c)
	complete(c, "zone", r.completeZones)
	return c
}

const modeHelp = `With --mode domain, the default, mail of each domain is signed with keys of its own. With default it is signed with the
brand's own key, in the name of the provider; with shared, with one key for all domains of the brand, each of which adds
CNAMEs to it.`

// brandFlags are the settings of a brand.
type brandFlags struct {
	displayName string
	mode        modeFlag
	maxDomains  int64
	disclosure  bool
	lag         *durationpb.Duration
	policy      policyFlags
	fields      map[string]string // field by flag
}

func (f *brandFlags) define(c *cobra.Command) {
	c.Flags().StringVar(&f.displayName, "display-name", "", "`name` for people")
	c.Flags().Var(&f.mode, "mode", "with which keys mail is signed: domain, default or shared (default domain)")
	noFiles(c, "display-name")
	complete(c, "mode", func(context.Context, string) ([]string, cobra.ShellCompDirective) {
		return slices.Sorted(maps.Keys(signingModes)), cobra.ShellCompDirectiveNoFileComp
	})
	c.Flags().Int64Var(&f.maxDomains, "max-domains", 0, "how many `domains` of customers it may have; 0: any number")
	noFiles(c, "max-domains")
	c.Flags().Var((*onOffFlag)(&f.disclosure), "disclosure", "`on`: make private keys public some time after they are destroyed; off: never")
	c.Flags().Var(&spanFlag{&f.lag}, "disclosure-lag", "`time` from the destruction of a key until it is disclosed, at least 8d (default 30d)")
	noFiles(c, "disclosure-lag")
	complete(c, "disclosure", func(context.Context, string) ([]string, cobra.ShellCompDirective) {
		return []string{"off", "on"}, cobra.ShellCompDirectiveNoFileComp
	})
	f.policy.define(c)
	f.fields = map[string]string{
		"display-name": "display_name", "mode": "signing_mode", "max-domains": "max_domains", "disclosure": "disclosure.enabled", "disclosure-lag": "disclosure.lag",
	}
	maps.Copy(f.fields, f.policy.fields)
}

func (f *brandFlags) message() *dkimv1.Brand {
	return &dkimv1.Brand{
		DisplayName: f.displayName, SigningMode: dkimv1.SigningMode(f.mode), RotationPolicy: &f.policy.policy,
		MaxDomains: f.maxDomains, Disclosure: &dkimv1.KeyDisclosure{Enabled: f.disclosure, Lag: f.lag},
	}
}

// onOffFlag is on or off.
type onOffFlag bool

func (f *onOffFlag) String() string { return onOff(bool(*f)) }

func (f *onOffFlag) Set(s string) error {
	if s != "on" && s != "off" {
		return errors.New("use on or off")
	}
	*f = s == "on"
	return nil
}

func (*onOffFlag) Type() string { return "on" }

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// disclosureText is empty for a brand that has never wanted disclosure.
func disclosureText(d *dkimv1.KeyDisclosure) string {
	switch {
	case d == nil:
		return ""
	case d.GetLag() == nil:
		return onOff(d.GetEnabled())
	}
	return onOff(d.GetEnabled()) + ", " + spanText(d.GetLag()) + " after the key was destroyed"
}

// quotaText is empty for a brand that may have any number of domains.
func quotaText(b *dkimv1.Brand) string {
	if b.GetMaxDomains() == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d", b.GetDomainCount(), b.GetMaxDomains())
}

// signingModes are the modes in the words of dkimctl.
var signingModes = map[string]dkimv1.SigningMode{
	"domain":  dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN,
	"default": dkimv1.SigningMode_SIGNING_MODE_BRAND_DEFAULT,
	"shared":  dkimv1.SigningMode_SIGNING_MODE_BRAND_SHARED,
}

// modeFlag is a signing mode.
type modeFlag dkimv1.SigningMode

func (m *modeFlag) String() string { return modeText(dkimv1.SigningMode(*m)) }

func (m *modeFlag) Set(s string) error {
	mode, ok := signingModes[s]
	if !ok {
		return errors.New("use domain, default or shared")
	}
	*m = modeFlag(mode)
	return nil
}

func (*modeFlag) Type() string { return "mode" }

func modeText(m dkimv1.SigningMode) string {
	for text, known := range signingModes {
		if known == m {
			return text
		}
	}
	return ""
}

func (r *run) brandGet() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "get BRAND",
		Short:   "Show a brand",
		Example: "  dkimctl brand get acme",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		b, err := call(ctx, r, api.GetBrand, &dkimv1.GetBrandRequest{Name: brandName(args[0])})
		if err != nil {
			return err
		}
		return r.printBrand(b)
	})
}

func (r *run) brandList() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "list",
		Short:   "List the brands",
		Example: "  dkimctl brand list",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, _ []string) error {
		l := r.newList("brands", "BRAND", "ZONE", "DISPLAY NAME", "CREATED")
		return l.pages(func(token string) (string, error) {
			resp, err := call(ctx, r, api.ListBrands, &dkimv1.ListBrandsRequest{PageSize: pageSize, PageToken: token})
			for _, b := range resp.GetBrands() {
				l.add(b, lastPart(b.GetName()), lastPart(b.GetZone()), b.GetDisplayName(), timeText(b.GetCreateTime()))
			}
			return resp.GetNextPageToken(), err
		})
	})
}

func (r *run) brandUpdate() *cobra.Command {
	var f brandFlags
	var etag string
	var c *cobra.Command
	c = r.command(&cobra.Command{
		Use:   "update BRAND",
		Short: "Change a brand's settings",
		Long:  "Changes those settings of a brand that flags name.\n\n" + modeHelp + "\n\n" + policyHelp,
		Example: `  dkimctl brand update acme --display-name 'Acme Mail'
  dkimctl brand update acme --mode shared
  dkimctl brand update acme --max-domains 10000
  dkimctl brand update acme --disclosure on --disclosure-lag 30d
  dkimctl brand update acme --rotate-every 60d --freeze 2026-11-27T00:00:00Z/2026-11-30T00:00:00Z`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		b := f.message()
		b.Name, b.Etag = brandName(args[0]), etag
		updated, err := call(ctx, r, api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: b, UpdateMask: mask(c, f.fields)})
		if err != nil {
			return err
		}
		return r.printBrand(updated)
	})
	f.define(c)
	etagFlag(c, &etag)
	c.PreRunE = func(c *cobra.Command, _ []string) error { return needChange(c, f.fields) }
	return c
}

func (r *run) brandDelete() *cobra.Command {
	var yes bool
	req := &dkimv1.DeleteBrandRequest{}
	c := r.command(&cobra.Command{
		Use:   "delete BRAND",
		Short: "Delete a brand that has no domains left",
		Long:  "Deletes a brand that has no domains left.\n\n" + confirmHelp,
		Example: `  dkimctl brand delete acme
  dkimctl brand delete acme --yes`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		if err := r.confirm(ctx, yes, fmt.Sprintf("Delete brand %s?", args[0])); err != nil {
			return err
		}
		req.Name = brandName(args[0])
		resp, err := call(ctx, r, api.DeleteBrand, req)
		if err != nil {
			return err
		}
		return r.print(resp, func(w io.Writer) error { return say(w, "brand %s is deleted", args[0]) })
	})
	yesFlag(c, &yes)
	etagFlag(c, &req.Etag)
	return c
}

func (r *run) printBrand(b *dkimv1.Brand) error {
	return r.print(b, func(w io.Writer) error {
		return details(w,
			"Brand", lastPart(b.GetName()),
			"Zone", lastPart(b.GetZone()),
			"Display name", b.GetDisplayName(),
			"Mode", modeText(b.GetSigningMode()),
			"Rotation", policyText(b.GetRotationPolicy()),
			"Disclosure", disclosureText(b.GetDisclosure()),
			"Domains", quotaText(b),
			"Default keys", lastPart(b.GetDefaultDomain()),
			"Shared keys", lastPart(b.GetSharedDomain()),
			"Created", timeText(b.GetCreateTime()),
			"Etag", b.GetEtag(),
		)
	})
}
