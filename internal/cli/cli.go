// Package cli is dkimctl: the commands by which operators use the KeyManagement
// API, what they print, and how they fail.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// Exit statuses of dkimctl.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// defaultTimeout is as long as dkimd works on a call at most.
const defaultTimeout = 2 * time.Minute

// Program is dkimctl in its surroundings. Terminals are recognised where a
// stream is an *os.File.
type Program struct {
	Version        string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Run executes one command line, without the program's name, and returns the
// exit status: 0; 1 after an error, of which Stderr got one line; 2 when the
// command line is wrong. It returns early when ctx ends.
func (p Program) Run(ctx context.Context, args []string) int {
	r := &run{Program: p, timeout: defaultTimeout, format: formatTable}
	root := r.root()
	root.SetArgs(args)
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	r.disconnect()
	if err == nil {
		return exitOK
	}
	text, code := err.Error(), exitError
	if _, wrong := errors.AsType[usageError](err); wrong || !r.started {
		text, code = fmt.Sprintf("%s (see %s --help)", text, cmd.CommandPath()), exitUsage
	}
	_, _ = fmt.Fprintln(p.Stderr, "dkimctl: "+oneLine(text))
	return code
}

// run is one execution of a command line.
type run struct {
	Program

	// Global flags.
	configFile string
	address    string
	format     format
	timeout    time.Duration

	started bool // the command line was right, the command has begun
	session *session
}

// errInterrupted is the error of what ended because ctx did.
var errInterrupted = errors.New("interrupted")

// usageError is a mistake in the command line that shows only once the command
// has begun.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

const rootHelp = `dkimctl manages the zones, brands, domains and keys of a dkimzone installation through dkimd.

It finds dkimd and the certificate or token to show it in a configuration file: the one of --config, else of the environment
variable DKIMCTL_CONFIG, else ./data/dkimctl.yaml, else dkimzone/dkimctl.yaml in the user's configuration directory.
"dkimd standalone" writes such a file into its data directory.

The exit status is 0 when all went well, 1 after an error and 2 when the command line is wrong.`

func (r *run) root() *cobra.Command {
	root := r.group(&cobra.Command{
		Use:   "dkimctl",
		Short: "Manage the DKIM keys of customers' domains",
		Long:  rootHelp,
		Example: `  dkimctl brand create acme
  dkimctl domain provision acme spamtrap.dk --wait
  dkimctl domain cnames acme spamtrap.dk`,
		Version:           r.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}, r.zone(), r.brand(), r.domain(), r.key(), r.imports(), r.signer(), r.kek(), r.backup(), r.restore(), r.resolve(), r.audit(), r.token(), r.completion(), r.version())
	root.SetVersionTemplate("dkimctl {{.Version}}\n")
	// A group runs only to say that a command is missing.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if not .HasAvailableSubCommands}}", 1))

	flags := root.PersistentFlags()
	flags.StringVar(&r.configFile, "config", "", "configuration `file`")
	flags.StringVar(&r.address, "address", "", "`host:port` of dkimd instead of the one in the configuration")
	flags.VarP(&r.format, "output", "o", "how to print results: table, json (the API message) or yaml")
	flags.Var((*limit)(&r.timeout), "timeout", "how long to wait for the answer to a call, and after it for name servers")
	complete(root, "config", func(context.Context, string) ([]string, cobra.ShellCompDirective) {
		return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
	})
	complete(root, "output", func(context.Context, string) ([]string, cobra.ShellCompDirective) {
		return []string{string(formatTable), string(formatJSON), string(formatYAML)}, cobra.ShellCompDirectiveNoFileComp
	})
	return root
}

// group makes c a command that only holds others.
func (r *run) group(c *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	c.AddCommand(subcommands...)
	c.Args = cobra.ArbitraryArgs
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			c.SetOut(r.Stderr)
			if err := c.Help(); err != nil {
				return err
			}
			return usageError{"a command is missing"}
		}
		text := fmt.Sprintf("%q is no command", args[0])
		if similar := c.SuggestionsFor(args[0]); len(similar) > 0 {
			text += ", did you mean " + strings.Join(similar, " or ") + "?"
		}
		return usageError{text}
	}
	return c
}

// command completes c, whose Use names its arguments in capitals, those that
// may be missing in brackets. run gets the client of the API.
func (r *run) command(c *cobra.Command, run func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error) *cobra.Command {
	r.local(c, func(ctx context.Context, args []string) error {
		api, err := r.connect()
		if err != nil {
			return err
		}
		return run(ctx, api, args)
	})
	if c.Name() != "create" {
		c.ValidArgsFunction = r.completeArguments
	}
	return c
}

// local is like command for one that needs no API.
func (r *run) local(c *cobra.Command, run func(ctx context.Context, args []string) error) *cobra.Command {
	c.Args = checkArguments
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(c *cobra.Command, args []string) error {
		r.started = true
		return run(c.Context(), args)
	}
	return c
}

// arguments are the names of c's arguments, and how many are required.
func arguments(c *cobra.Command) (names []string, required int) {
	for _, name := range strings.Fields(c.Use)[1:] {
		if bare := strings.Trim(name, "[]"); bare == name {
			required++
			names = append(names, name)
		} else {
			names = append(names, bare)
		}
	}
	return names, required
}

func checkArguments(c *cobra.Command, args []string) error {
	names, required := arguments(c)
	switch {
	case len(names) == 0 && len(args) > 0:
		return fmt.Errorf("%q: no arguments are expected", args[0])
	case len(args) < required:
		return fmt.Errorf("%s is missing", strings.Join(names[len(args):required], " and "))
	case len(args) > len(names):
		return fmt.Errorf("%q is one argument too many after %s", args[len(names)], strings.Join(names, " "))
	}
	return nil
}

func (r *run) version() *cobra.Command {
	return r.local(&cobra.Command{
		Use:     "version",
		Short:   "Print the version of dkimctl",
		Example: "  dkimctl version",
	}, func(context.Context, []string) error {
		_, err := fmt.Fprintln(r.Stdout, "dkimctl "+r.Version)
		return err
	})
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// oneLine makes of text from elsewhere something that stays on its line of a
// terminal.
func oneLine(text string) string {
	return strings.Join(strings.Fields(strings.Map(func(c rune) rune {
		if c < ' ' || 0x7f <= c && c < 0xa0 {
			return ' '
		}
		return c
	}, text)), " ")
}
