package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func signerName(id string) string { return "signers/" + id }

func (r *run) signer() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "signer",
		Short: "The signers that registered, which rotations wait for",
		Example: `  dkimctl signer list
  dkimctl signer delete mx1`,
	}, r.signerGet(), r.signerList(), r.signerDelete())
}

func (r *run) signerGet() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "get SIGNER",
		Short:   "Show a signer",
		Example: "  dkimctl signer get mx1",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		s, err := call(ctx, r, api.GetSigner, &dkimv1.GetSignerRequest{Name: signerName(args[0])})
		if err != nil {
			return err
		}
		return r.print(s, func(w io.Writer) error {
			return details(w,
				"Signer", lastPart(s.GetName()),
				"Brand", lastPart(s.GetBrand()),
				"Description", s.GetDescription(),
				"Registered", timeText(s.GetRegisterTime()),
				"Lease until", timeText(s.GetLeaseExpireTime()),
				"Lease", spanText(s.GetLeaseDuration()),
			)
		})
	})
}

func (r *run) signerList() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "list",
		Short:   "List the signers",
		Long:    "Lists the signers that registered. A rotation waits until each whose lease is not over holds the new key.",
		Example: "  dkimctl signer list",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, _ []string) error {
		l := r.newList("signers", "SIGNER", "BRAND", "REGISTERED", "LEASE UNTIL", "DESCRIPTION")
		return l.pages(func(token string) (string, error) {
			resp, err := call(ctx, r, api.ListSigners, &dkimv1.ListSignersRequest{PageSize: pageSize, PageToken: token})
			for _, s := range resp.GetSigners() {
				l.add(s, lastPart(s.GetName()), lastPart(s.GetBrand()), timeText(s.GetRegisterTime()), timeText(s.GetLeaseExpireTime()), s.GetDescription())
			}
			return resp.GetNextPageToken(), err
		})
	})
}

func (r *run) signerDelete() *cobra.Command {
	var yes bool
	c := r.command(&cobra.Command{
		Use:   "delete SIGNER",
		Short: "Forget a signer that is gone for good",
		Long: `Forgets a signer, so that no rotation waits for it any more. One that is only away is no reason: it stops counting when its
lease is over. It may register again.

` + confirmHelp,
		Example: "  dkimctl signer delete mx1",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		if err := r.confirm(ctx, yes, fmt.Sprintf("Forget signer %s? Rotations no longer wait for it.", args[0])); err != nil {
			return err
		}
		resp, err := call(ctx, r, api.DeleteSigner, &dkimv1.DeleteSignerRequest{Name: signerName(args[0])})
		if err != nil {
			return err
		}
		return r.print(resp, func(w io.Writer) error { return say(w, "signer %s is forgotten", args[0]) })
	})
	yesFlag(c, &yes)
	return c
}

func (r *run) resolve() *cobra.Command {
	brand := "-"
	c := r.command(&cobra.Command{
		Use:   "resolve DOMAIN",
		Short: "Say with which keys mail of a domain is signed now, and why",
		Long: `Says what signers are told: with which keys, d= and s= mail of a domain is signed at this moment, and why. Without --brand it
is that of the brand that has the domain.`,
		Example: `  dkimctl resolve spamtrap.dk
  dkimctl resolve spamtrap.dk --brand acme`,
	}, func(ctx context.Context, _ dkimv1.KeyManagementClient, args []string) error {
		resp, err := call(ctx, r, dkimv1.NewSignerClient(r.session.conn).ResolveSigningKeys,
			&dkimv1.ResolveSigningKeysRequest{Name: domainName(brand, args[0])})
		if err != nil {
			return err
		}
		return r.print(resp, func(w io.Writer) error {
			if err := say(w, "%s [%s]", resp.GetMessage(), resp.GetReason()); err != nil || len(resp.GetKeys()) == 0 {
				return err
			}
			t := newTable(w)
			row(t, "D=", "S=", "ALGORITHM", "KEY")
			for _, k := range resp.GetKeys() {
				row(t, k.GetDomain(), k.GetSelector(), algorithmText(k.GetAlgorithm()), k.GetKey())
			}
			return t.Flush()
		})
	})
	c.Flags().StringVar(&brand, "brand", brand, "the `brand` that sends the mail")
	complete(c, "brand", r.completeBrands)
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}
