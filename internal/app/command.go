package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/coredump"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

// envPrefix and a flag's name in capitals make the environment variable that
// sets the flag: DKIMD_DATA_DIR for --data-dir. The command line wins.
const envPrefix = "DKIMD_"

// Command is the command line of a dkimd of the given version.
func Command(version string) *cobra.Command {
	root := &cobra.Command{
		Use:   "dkimd",
		Short: "Keep, publish and rotate DKIM keys",
		Long: `dkimd keeps the DKIM keys of a mailbox provider's customers: it generates them,
stores the private halves sealed, and publishes the public halves through etcd to
the CoreDNS nodes that serve the provider's zone.

Each flag can also be given as an environment variable: DKIMD_DATA_DIR for
--data-dir. The command line wins.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          onlySubcommands,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return fromEnvironment(cmd.Flags())
		},
	}
	root.AddCommand(standaloneCommand(), serveCommand(), milterCommand(), agentCommand(), pkiCommand())
	return root
}

// onlySubcommands is what a command does that is nothing by itself.
func onlySubcommands(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q; see %s --help", args[0], cmd.CommandPath())
	}
	return cmd.Help()
}

func standaloneCommand() *cobra.Command {
	var o Standalone
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "standalone",
		Short: "Run everything in one process: etcd, DNS, the API",
		Long: `Runs an embedded etcd, the DNS server and the gRPC service in one process, with
all data in one directory. The first start makes the zone, a CA with server and
admin certificates (<data-dir>/pki), and the client configuration
<data-dir>/dkimctl.yaml.`,
		Example: "  dkimd standalone\n  dkimd standalone --data-dir /var/lib/dkimd --zone keys.example.net --dns-listen 192.0.2.53:53",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out, o.Audit.Out = cmd.OutOrStdout(), cmd.OutOrStdout()
			return runWith(cmd, &logs, &o.Logger, func(ctx context.Context) error { return o.Run(ctx) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.DataDir, "data-dir", "./data", "`directory` of all data; created with mode 0700")
	f.StringVar(&o.Zone, "zone", "keys.example.net", "hosting `zone`, created on the first start; further ones with `dkimctl zone create`")
	f.StringVar(&o.DNS, "dns-listen", "127.0.0.1:1053", "`address` of the name server, UDP and TCP")
	o.KEK.add(f, "`URL` of the key-encryption key (default file://<data-dir>/kek.key, made on the first start)")
	listenFlags(f, &o.Listen)
	o.Access.add(f)
	o.Guard.add(f)
	o.Checks.add(f)
	o.Audit.add(f, "audit.log in the data directory")
	o.Signing.add(f)
	logs.add(f)
	return cmd
}

func serveCommand() *cobra.Command {
	var o Serve
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the API on an etcd cluster",
		Long: `Serves the API, gRPC and REST, on an etcd cluster. It holds no state: run two or
more. DNS is served by CoreDNS nodes with the dkim plugin.`,
		Example: `  dkimd serve --etcd-endpoint https://etcd1.example.net:2379 --etcd-endpoint https://etcd2.example.net:2379 \
    --etcd-ca ca.crt --etcd-cert dkimd1.crt --etcd-key dkimd1.key \
    --tls-ca ca.crt --tls-cert server.crt --tls-key server.key --kek-url file:///etc/dkimd/kek.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"etcd-endpoint", "tls-ca", "tls-cert", "tls-key", "kek-url"} {
				if f := cmd.Flags().Lookup(name); !f.Changed {
					return fmt.Errorf("--%s (or %s) is needed", name, envName(name))
				}
			}
			o.Audit.Out = cmd.OutOrStdout()
			return runWith(cmd, &logs, &o.Logger, func(ctx context.Context) error { return o.Run(ctx) })
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Etcd.Endpoints, "etcd-endpoint", nil, "client `URL` of an etcd member; repeat for each")
	f.StringVar(&o.Etcd.CAFile, "etcd-ca", "", "`file` with the CA of etcd's certificates")
	f.StringVar(&o.Etcd.CertFile, "etcd-cert", "", "`file` with the certificate to show to etcd")
	f.StringVar(&o.Etcd.KeyFile, "etcd-key", "", "`file` with its private key")
	f.StringVar(&o.CAFile, "tls-ca", "", "`file` with the CA of the clients' certificates")
	f.StringVar(&o.CertFile, "tls-cert", "", "`file` with the server's certificate; read again when it changes")
	f.StringVar(&o.KeyFile, "tls-key", "", "`file` with its private key")
	o.KEK.add(f, "`URL` of the key-encryption key: file:///path, made by `dkimd pki kek`, or that of a KMS (docs/custody.md)")
	listenFlags(f, &o.Listen)
	o.Access.add(f)
	o.Guard.add(f)
	o.Checks.add(f)
	o.Audit.add(f, "-")
	o.Signing.add(f)
	logs.add(f)
	return cmd
}

// runWith runs what a command is for, a process that has secrets in its memory,
// with the logger that its flags ask for. A start that a signal cuts short is no
// error.
func runWith(cmd *cobra.Command, logs *logFlags, logger **slog.Logger, run func(context.Context) error) (err error) {
	if *logger, err = logs.logger(cmd.ErrOrStderr()); err != nil {
		return err
	}
	if err := coredump.Disable(); err != nil {
		return err
	}
	if err = run(cmd.Context()); cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func listenFlags(f *pflag.FlagSet, l *Listen) {
	f.StringVar(&l.GRPC, "grpc-listen", "127.0.0.1:9443", "`address` of the gRPC service, TLS")
	f.StringVar(&l.HTTP, "http-listen", "127.0.0.1:9080", "`address` of REST, HTTPS")
	f.StringVar(&l.Metrics, "metrics-listen", "127.0.0.1:9081", "`address` of /metrics, /healthz and /readyz, plain HTTP")
	f.StringVar(&l.Disclosure, "disclosure-listen", "", "`address` where everybody may read the private keys that brands disclose, plain HTTP (default none)")
}

// logFlags are how dkimd logs, always to standard error.
type logFlags struct{ level, format string }

func (l *logFlags) add(f *pflag.FlagSet) {
	f.StringVar(&l.level, "log-level", "info", "least `level` that is logged: debug, info, warn or error")
	f.StringVar(&l.format, "log-format", "text", "`form` of log lines: text or json")
}

func (l *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	return telemetry.NewLogger(w, l.level, l.format)
}

func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment sets the flags that the command line left alone and the
// environment names.
func fromEnvironment(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		v, ok := os.LookupEnv(envName(f.Name))
		if !ok || f.Changed || f.Name == "help" || f.Name == "version" {
			return
		}
		if err := flags.Set(f.Name, v); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", envName(f.Name), err))
		}
	})
	return errors.Join(errs...)
}

func pkiCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Make certificates and the key-encryption key of a small installation",
		Long: `Makes a CA and the certificates of an installation of several processes. A larger
installation uses its own CA instead: dkimd wants server certificates for its
listeners, and client certificates with one URI SAN that begins with
spiffe://dkimzone/role/ and goes on with admin/NAME, brand/BRAND/NAME,
signer/[BRAND/]NAME or auditor/[BRAND/]NAME.`,
		RunE: onlySubcommands,
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "./pki", "`directory` of the CA and the certificates")

	issue := func(use, short, example string, args cobra.PositionalArgs, do func(ca *pki.CA, args []string) (string, string, error)) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Example: example, Args: args,
			RunE: func(cmd *cobra.Command, args []string) error {
				ca, err := pki.EnsureCA(dir, time.Now())
				if err != nil {
					return err
				}
				cert, key, err := do(ca, args)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "ca    %s\ncert  %s\nkey   %s\n", ca.CertFile(), cert, key)
				return nil
			},
		}
	}
	var exportKeys bool
	client := issue("client NAME ROLE [BRAND]", "Certificate of a caller (role admin, brand, signer or auditor), or of a user of etcd (role etcd)",
		"  dkimd pki client alice admin\n  dkimd pki client mx1 signer\n  dkimd pki client shop brand acme\n  dkimd pki client dns1 etcd", cobra.RangeArgs(2, 3),
		func(ca *pki.CA, args []string) (string, string, error) {
			id := pki.Identity{Role: args[1], Name: args[0], ExportKeys: exportKeys}
			if len(args) == 3 {
				id.Brand = args[2]
			}
			if id.Role != "etcd" || id.Brand != "" || id.ExportKeys {
				who := authn.Identity{Role: authn.Role(id.Role), Name: id.Name, Brand: id.Brand, ExportKeys: id.ExportKeys}
				if err := who.Check(); err != nil {
					return "", "", err
				}
			}
			return ca.EnsureClient(args[0], id, time.Now())
		})
	client.Flags().BoolVar(&exportKeys, "export-keys", false, "with the permission to read private keys out, for role admin")
	cmd.AddCommand(
		issue("server NAME HOST...", "Certificate of a dkimd, for the names and addresses it is called by",
			"  dkimd pki server dkimd1 dkimd1.example.net 192.0.2.10", cobra.MinimumNArgs(2),
			func(ca *pki.CA, args []string) (string, string, error) {
				return ca.EnsureServer(args[0], args[1:], time.Now())
			}),
		issue("peer NAME HOST...", "Certificate of an etcd member",
			"  dkimd pki peer etcd1 etcd1.example.net 192.0.2.20", cobra.MinimumNArgs(2),
			func(ca *pki.CA, args []string) (string, string, error) {
				return ca.EnsurePeer(args[0], args[1:], time.Now())
			}),
		client,
		&cobra.Command{
			Use: "kek FILE", Short: "A new key-encryption key, for --kek-url file:///FILE", Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return createKeyFile(cmd.OutOrStdout(), args[0]) },
		},
	)
	return cmd
}
