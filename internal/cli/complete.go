package cli

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

const (
	// completionTime is how long somebody who presses the tab key likes to wait.
	completionTime = 2 * time.Second
	// maxCompletions is as many names as a shell can show in a useful way.
	maxCompletions = 200
)

func (r *run) completion() *cobra.Command {
	var c *cobra.Command
	c = r.local(&cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completion script for bash, zsh, fish or powershell",
		Long: `Prints a script by which a shell completes commands, flags and the names of brands, domains, selectors, signers and zones. Names are
asked of dkimd; when it does not answer at once, none are offered.`,
		Example: `  source <(dkimctl completion bash)
  dkimctl completion bash >/etc/bash_completion.d/dkimctl
  dkimctl completion zsh >"${fpath[1]}/_dkimctl"
  dkimctl completion fish >~/.config/fish/completions/dkimctl.fish`,
	}, func(_ context.Context, args []string) error {
		switch root := c.Root(); args[0] {
		case "bash":
			return root.GenBashCompletionV2(r.Stdout, true)
		case "zsh":
			return root.GenZshCompletion(r.Stdout)
		case "fish":
			return root.GenFishCompletion(r.Stdout, true)
		case "powershell":
			return root.GenPowerShellCompletionWithDesc(r.Stdout)
		}
		return usageError{fmt.Sprintf("no completion for %q: use bash, zsh, fish or powershell", args[0])}
	})
	c.ValidArgsFunction = cobra.FixedCompletions([]string{"bash", "zsh", "fish", "powershell"}, cobra.ShellCompDirectiveNoFileComp)
	return c
}

// completeArguments completes an argument by its name in the command's Use.
func (r *run) completeArguments(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	names, _ := arguments(c)
	if len(args) >= len(names) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	switch names[len(args)] {
	case "ZONE":
		return r.completeZones(c.Context(), prefix)
	case "BRAND":
		return r.completeBrands(c.Context(), prefix)
	case "DOMAIN":
		return r.completeDomains(c.Context(), args[0], prefix)
	case "SIGNER":
		return r.offer(c.Context(), prefix, func(ctx context.Context, api dkimv1.KeyManagementClient) ([]string, error) {
			resp, err := call(ctx, r, api.ListSigners, &dkimv1.ListSignersRequest{PageSize: maxCompletions})
			return lastParts(resp.GetSigners()), err
		})
	case "SELECTOR":
		return r.offer(c.Context(), prefix, func(ctx context.Context, api dkimv1.KeyManagementClient) ([]string, error) {
			d, err := r.getDomain(ctx, api, args[0], args[1])
			var found []string
			for _, s := range d.GetSelectors() {
				found = append(found, s.GetSelector())
			}
			return found, err
		})
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func (r *run) completeZones(ctx context.Context, prefix string) ([]string, cobra.ShellCompDirective) {
	return r.offer(ctx, prefix, func(ctx context.Context, api dkimv1.KeyManagementClient) ([]string, error) {
		resp, err := call(ctx, r, api.ListZones, &dkimv1.ListZonesRequest{PageSize: maxCompletions})
		return lastParts(resp.GetZones()), err
	})
}

func (r *run) completeBrands(ctx context.Context, prefix string) ([]string, cobra.ShellCompDirective) {
	return r.offer(ctx, prefix, func(ctx context.Context, api dkimv1.KeyManagementClient) ([]string, error) {
		resp, err := call(ctx, r, api.ListBrands, &dkimv1.ListBrandsRequest{PageSize: 1000})
		return lastParts(resp.GetBrands()), err
	})
}

var domainPrefix = regexp.MustCompile(`^[a-z0-9.-]*$`)

func (r *run) completeDomains(ctx context.Context, brand, prefix string) ([]string, cobra.ShellCompDirective) {
	if !domainPrefix.MatchString(prefix) { // U-labels, or nothing that a domain begins with
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return r.offer(ctx, prefix, func(ctx context.Context, api dkimv1.KeyManagementClient) ([]string, error) {
		req := &dkimv1.ListDomainsRequest{Parent: brandName(brand), PageSize: maxCompletions}
		if prefix != "" {
			req.Filter = fmt.Sprintf("domain = %q", prefix+"*")
		}
		resp, err := call(ctx, r, api.ListDomains, req)
		return lastParts(resp.GetDomains()), err
	})
}

func lastParts[T interface{ GetName() string }](items []T) []string {
	var names []string
	for _, item := range items {
		names = append(names, lastPart(item.GetName()))
	}
	return names
}

// offer returns those names that begin with prefix; none when they cannot be
// had in time.
func (r *run) offer(ctx context.Context, prefix string, names func(context.Context, dkimv1.KeyManagementClient) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	r.timeout = min(r.timeout, completionTime)
	api, err := r.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := names(ctx, api)
	var found []string
	for _, name := range all {
		if strings.HasPrefix(name, prefix) && len(found) < maxCompletions {
			found = append(found, name)
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// complete makes values of a flag known to the shell.
func complete(c *cobra.Command, flag string, values func(ctx context.Context, prefix string) ([]string, cobra.ShellCompDirective)) {
	must(c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return values(c.Context(), prefix)
	}))
}

// noFiles keeps the shell from offering files for values of flags.
func noFiles(c *cobra.Command, flags ...string) {
	for _, flag := range flags {
		complete(c, flag, func(context.Context, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		})
	}
}

func completeAlgorithms(c *cobra.Command, flag string) {
	complete(c, flag, func(context.Context, string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, a := range keypair.Algorithms() {
			names = append(names, a.String())
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}

// require makes a flag mandatory.
func require(c *cobra.Command, flag string) { must(c.MarkFlagRequired(flag)) }

// must is for calls that fail only for a flag that is not there.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
