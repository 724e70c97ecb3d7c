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

func tokenName(id string) string { return "tokens/" + id }

func (r *run) access() dkimv1.AccessControlClient {
	return dkimv1.NewAccessControlClient(r.session.conn)
}

func (r *run) token() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "token",
		Short: "Bearer tokens, for callers without a certificate",
		Example: `  dkimctl token create --role admin --subject alice
  dkimctl token create --role brand --brand acme -o json
  dkimctl token list`,
	}, r.tokenCreate(), r.tokenList(), r.tokenRevoke())
}

const onceHelp = "It is shown once: only a hash of it is stored. In JSON and YAML it is the field \"secret\"."

func (r *run) tokenCreate() *cobra.Command {
	t := &dkimv1.Token{}
	var brand string
	c := r.command(&cobra.Command{
		Use:   "create",
		Short: "Create a bearer token and show it",
		Long: `Creates a bearer token and shows it. ` + onceHelp + `

The roles are admin, who may do everything; brand, who manages the domains of one brand; signer, who signs mail; and auditor,
who reads everything but private keys. Brand needs a --brand; a signer or auditor with one has to do with that brand only.`,
		Example: `  dkimctl token create --role admin --subject alice
  dkimctl token create --role brand --brand acme --ttl 30d -o json
  dkimctl token create --role signer --subject mx1`,
	}, func(ctx context.Context, _ dkimv1.KeyManagementClient, _ []string) error {
		if brand != "" {
			t.Brand = brandName(brand)
		}
		created, err := call(ctx, r, r.access().CreateToken, &dkimv1.CreateTokenRequest{Token: t})
		if err != nil {
			return err
		}
		return r.print(created, func(w io.Writer) error {
			return details(w,
				"Token", lastPart(created.GetName()),
				"Role", roleText(created.GetRole()),
				"Brand", lastPart(created.GetBrand()),
				"Subject", created.GetSubject(),
				"Export keys", yesText(created.GetExportKeys()),
				"Description", created.GetDescription(),
				"Expires", timeText(created.GetExpireTime()),
				"Secret", created.GetSecret(),
			)
		})
	})
	c.Flags().Var((*roleFlag)(&t.Role), "role", "what it allows: admin, brand, signer or auditor")
	require(c, "role")
	complete(c, "role", func(context.Context, string) ([]string, cobra.ShellCompDirective) {
		return slices.Sorted(maps.Keys(roleWords)), cobra.ShellCompDirectiveNoFileComp
	})
	c.Flags().StringVar(&brand, "brand", "", "the only `brand` it is for")
	complete(c, "brand", r.completeBrands)
	c.Flags().StringVar(&t.Subject, "subject", "", "`name` of its holder; that of a signer (default the id of the token)")
	c.Flags().StringVar(&t.Description, "description", "", "`text` for people")
	c.Flags().Var(&ttlFlag{&t.Ttl}, "ttl", "how long it is valid, at most 731d (default 90d)")
	c.Flags().BoolVar(&t.ExportKeys, "export-keys", false, "with the permission to read private keys out, for role admin")
	noFiles(c, "subject", "description", "ttl")
	return c
}

func (r *run) tokenList() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "list",
		Short:   "List the tokens, without what is secret of them",
		Example: "  dkimctl token list",
	}, func(ctx context.Context, _ dkimv1.KeyManagementClient, _ []string) error {
		l := r.newList("tokens", "TOKEN", "ROLE", "BRAND", "SUBJECT", "EXPIRES", "CREATOR", "DESCRIPTION")
		return l.pages(func(page string) (string, error) {
			resp, err := call(ctx, r, r.access().ListTokens, &dkimv1.ListTokensRequest{PageSize: pageSize, PageToken: page})
			for _, t := range resp.GetTokens() {
				l.add(t, lastPart(t.GetName()), roleText(t.GetRole()), lastPart(t.GetBrand()), t.GetSubject(), timeText(t.GetExpireTime()),
					t.GetCreator(), t.GetDescription())
			}
			return resp.GetNextPageToken(), err
		})
	})
}

func (r *run) tokenRevoke() *cobra.Command {
	var yes bool
	c := r.command(&cobra.Command{
		Use:     "revoke TOKEN",
		Short:   "Revoke a token, by its id",
		Long:    "Revokes a token for good. Every dkimd refuses it within 10 seconds.\n\n" + confirmHelp,
		Example: "  dkimctl token revoke 4tq2w7c3kxha --yes",
	}, func(ctx context.Context, _ dkimv1.KeyManagementClient, args []string) error {
		if err := r.confirm(ctx, yes, fmt.Sprintf("Revoke token %s?", args[0])); err != nil {
			return err
		}
		resp, err := call(ctx, r, r.access().RevokeToken, &dkimv1.RevokeTokenRequest{Name: tokenName(args[0])})
		if err != nil {
			return err
		}
		return r.print(resp, func(w io.Writer) error { return say(w, "token %s is revoked", args[0]) })
	})
	yesFlag(c, &yes)
	return c
}

func (r *run) brandSecret() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "secret",
		Short: "Secrets by which a brand's own systems call",
		Example: `  dkimctl brand secret create acme
  dkimctl brand secret list acme`,
	}, r.secretCreate(), r.secretList(), r.secretRevoke())
}

func (r *run) secretCreate() *cobra.Command {
	s := &dkimv1.BrandSecret{}
	c := r.command(&cobra.Command{
		Use:   "create BRAND",
		Short: "Create a secret of a brand and show it",
		Long: `Creates a secret of a brand and shows it. ` + onceHelp + ` With it the brand's systems call as the user that is
named like the brand (HTTP Basic), and may do what role brand may.

Two secrets of a brand are valid at once: to change it, create the second, let all systems use it, and revoke the first.`,
		Example: `  dkimctl brand secret create acme
  dkimctl brand secret create acme --ttl 365d -o json`,
	}, func(ctx context.Context, _ dkimv1.KeyManagementClient, args []string) error {
		created, err := call(ctx, r, r.access().CreateBrandSecret, &dkimv1.CreateBrandSecretRequest{Parent: brandName(args[0]), BrandSecret: s})
		if err != nil {
			return err
		}
		return r.print(created, func(w io.Writer) error {
			return details(w,
				"Brand", args[0],
				"Secret id", lastPart(created.GetName()),
				"Description", created.GetDescription(),
				"Expires", timeText(created.GetExpireTime()),
				"Secret", created.GetSecret(),
			)
		})
	})
	c.ValidArgsFunction = r.completeArguments // of a brand that is there
	c.Flags().StringVar(&s.Description, "description", "", "`text` for people")
	c.Flags().Var(&ttlFlag{&s.Ttl}, "ttl", "how long it is valid, at most 3660d (default until it is revoked)")
	noFiles(c, "description", "ttl")
	return c
}

func (r *run) secretList() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "list BRAND",
		Short:   "List the secrets of a brand, without what is secret of them",
		Example: "  dkimctl brand secret list acme",
	}, func(ctx context.Context, _ dkimv1.KeyManagementClient, args []string) error {
		resp, err := call(ctx, r, r.access().ListBrandSecrets, &dkimv1.ListBrandSecretsRequest{Parent: brandName(args[0])})
		if err != nil {
			return err
		}
		l := r.newList("brandSecrets", "SECRET ID", "CREATED", "EXPIRES", "CREATOR", "DESCRIPTION")
		for _, s := range resp.GetBrandSecrets() {
			l.add(s, lastPart(s.GetName()), timeText(s.GetCreateTime()), timeText(s.GetExpireTime()), s.GetCreator(), s.GetDescription())
		}
		return l.end()
	})
}

func (r *run) secretRevoke() *cobra.Command {
	var yes bool
	c := r.command(&cobra.Command{
		Use:     "revoke BRAND SECRET",
		Short:   "Revoke a secret of a brand, by its id",
		Long:    "Revokes a secret of a brand for good. Every dkimd refuses it within 10 seconds.\n\n" + confirmHelp,
		Example: "  dkimctl brand secret revoke acme 4tq2w7c3kxha --yes",
	}, func(ctx context.Context, _ dkimv1.KeyManagementClient, args []string) error {
		if err := r.confirm(ctx, yes, fmt.Sprintf("Revoke secret %s of brand %s?", args[1], args[0])); err != nil {
			return err
		}
		resp, err := call(ctx, r, r.access().RevokeBrandSecret, &dkimv1.RevokeBrandSecretRequest{Name: brandName(args[0]) + "/secrets/" + args[1]})
		if err != nil {
			return err
		}
		return r.print(resp, func(w io.Writer) error { return say(w, "secret %s of brand %s is revoked", args[1], args[0]) })
	})
	yesFlag(c, &yes)
	return c
}

// roleWords are the API's roles in the words of dkimctl.
var roleWords = map[string]dkimv1.Role{
	"admin": dkimv1.Role_ROLE_ADMIN, "brand": dkimv1.Role_ROLE_BRAND, "signer": dkimv1.Role_ROLE_SIGNER, "auditor": dkimv1.Role_ROLE_AUDITOR,
}

// roleFlag is a role.
type roleFlag dkimv1.Role

func (f *roleFlag) String() string { return roleText(dkimv1.Role(*f)) }

func (f *roleFlag) Set(s string) error {
	role, ok := roleWords[s]
	if !ok {
		return errors.New("use admin, brand, signer or auditor")
	}
	*f = roleFlag(role)
	return nil
}

func (*roleFlag) Type() string { return "role" }

func roleText(role dkimv1.Role) string {
	for text, known := range roleWords {
		if known == role {
			return text
		}
	}
	return ""
}

// ttlFlag is a time span in the form of spanFlag, which here has no level above.
type ttlFlag struct{ to **durationpb.Duration }

func (f *ttlFlag) String() string { return (&spanFlag{f.to}).String() }

func (f *ttlFlag) Set(s string) error {
	if s == "inherit" || (&spanFlag{f.to}).Set(s) != nil {
		return errors.New("use a time such as 90d, 36h or 30m")
	}
	return nil
}

func (*ttlFlag) Type() string { return "time" }

func yesText(yes bool) string {
	if yes {
		return "yes"
	}
	return ""
}
