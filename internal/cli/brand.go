package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func brandName(brand string) string { return "brands/" + brand }

func (r *run) brand() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "brand",
		Short: "Brands, the tenants that domains belong to",
		Example: `  dkimctl brand create acme
  dkimctl brand list`,
	}, r.brandCreate(), r.brandGet(), r.brandList(), r.brandUpdate(), r.brandDelete())
}

func (r *run) brandCreate() *cobra.Command {
	var zone, displayName string
	c := r.command(&cobra.Command{
		Use:   "create BRAND",
		Short: "Create a brand",
		Long: `Creates a brand: 1 to 40 letters a to z, digits and dashes, a letter first. Its domains are hosted in one zone for good.
While there is only one zone, it need not be named.`,
		Example: `  dkimctl brand create acme
  dkimctl brand create acme --zone keys.example.net --display-name 'Acme Mail'`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		b := &dkimv1.Brand{DisplayName: displayName}
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
	displayNameFlag(c, &displayName)
	complete(c, "zone", r.completeZones)
	return c
}

func displayNameFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "display-name", "", "`name` for people")
	noFiles(c, "display-name")
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
	fields := map[string]string{"display-name": "display_name"}
	b := &dkimv1.Brand{}
	var c *cobra.Command
	c = r.command(&cobra.Command{
		Use:     "update BRAND",
		Short:   "Change a brand's display name",
		Example: "  dkimctl brand update acme --display-name 'Acme Mail'",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		b.Name = brandName(args[0])
		updated, err := call(ctx, r, api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: b, UpdateMask: mask(c, fields)})
		if err != nil {
			return err
		}
		return r.printBrand(updated)
	})
	displayNameFlag(c, &b.DisplayName)
	etagFlag(c, &b.Etag)
	c.PreRunE = func(c *cobra.Command, _ []string) error { return needChange(c, fields) }
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
			"Created", timeText(b.GetCreateTime()),
			"Etag", b.GetEtag(),
		)
	})
}
