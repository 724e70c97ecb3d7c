package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	stdlog "log" //nolint:depguard // to turn the library's lines into ours
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/dkimzone/dkimzone/internal/milter"
	"github.com/dkimzone/dkimzone/internal/telemetry"
	"github.com/dkimzone/dkimzone/signer"
)

// Milter is a mail filter that signs.
type Milter struct {
	// Listen is "host:port" or "unix:/path".
	Listen string
	// Metrics is "host:port", "" for none.
	Metrics string
	// Connection is how to reach dkimd.
	Connection
	// Mode is "remote" or "local".
	Mode string
	// SignerName is the name to register in local mode, "" for that in the certificate.
	SignerName string
	// OnTrouble is "tempfail" or "accept".
	OnTrouble string
	// InternalHosts are addresses or CIDRs.
	InternalHosts []string
	// LongLines is "broken", "unsigned" or "whole", and LineLimit when a line is long.
	LongLines string
	LineLimit int
	// SignHeaders and OversignHeaders are names of header fields.
	SignHeaders, OversignHeaders []string
	// Timeout is how long signing a message may take.
	Timeout time.Duration
	// Logger is told of each message.
	Logger *slog.Logger
}

func milterCommand() *cobra.Command {
	var o Milter
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "milter",
		Short: "Sign the mail of Postfix or Sendmail",
		Long: `Signs the mail of Postfix or Sendmail as a mail filter, with the keys that dkimd
names: mail of authenticated clients and of internal hosts, for the domain of its From
address. It connects to dkimd as a signer, with a certificate or a token of that role.`,
		Example: "  dkimd milter --listen 127.0.0.1:8891 --dkimd dkimd1.example.net:9443 --dkimd dkimd2.example.net:9443 \\\n" +
			"    --tls-ca ca.crt --tls-cert mx1.crt --tls-key mx1.key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runWith(cmd, &logs, &o.Logger, func(ctx context.Context) error { return o.Run(ctx) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "127.0.0.1:8891", "`address` for the mail server: host:port, or unix:/path")
	f.StringVar(&o.Metrics, "metrics-listen", "127.0.0.1:8892", "`address` of /metrics, /healthz and /readyz, plain HTTP; \"\" for none")
	o.Connection.add(f)
	f.StringVar(&o.Mode, "mode", "remote", "who makes signatures: remote for dkimd, or local with private keys that dkimd hands out (--allow-key-fetch); `mode`")
	f.StringVar(&o.SignerName, "signer-name", "", "`name` to register as in local mode (default that in the certificate)")
	f.StringVar(&o.OnTrouble, "on-trouble", string(milter.TempFail), "what becomes of mail that cannot be signed now: tempfail or accept, unsigned; `action`")
	f.StringSliceVar(&o.InternalHosts, "internal-host", []string{"127.0.0.0/8", "::1/128"}, "address or `CIDR` of SMTP clients whose mail is signed without authentication; repeat for each")
	f.StringSliceVar(&o.SignHeaders, "sign-header", milter.SignHeaders, "`name` of a header field to sign if it is there; repeat for each")
	f.StringSliceVar(&o.OversignHeaders, "oversign-header", []string{"from"}, "`name` of a header field that nobody may add to a signed message; repeat for each; From always is one")
	f.StringVar(&o.LongLines, "long-lines", string(milter.Broken), "how mail is signed that has lines over --line-limit: broken, as Postfix sends them; unsigned; or whole, as they are; `way`")
	f.IntVar(&o.LineLimit, "line-limit", 998, "`octets` after which the mail server breaks a line that it sends")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Second, "how long signing a message may take")
	logs.add(f)
	return cmd
}

// Run signs until ctx ends.
func (o *Milter) Run(ctx context.Context) error {
	hosts, err := prefixes(o.InternalHosts)
	if err != nil {
		return fmt.Errorf("--internal-host: %w", err)
	}
	so, err := o.signerOptions()
	if err != nil {
		return err
	}
	client, err := signer.New(so)
	if err != nil {
		return err
	}
	defer func() {
		if err := client.Close(); err != nil {
			o.Logger.WarnContext(ctx, "last report of use failed", slog.Any("error", err))
		}
	}()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server, err := milter.New(milter.Options{
		Client: client, InternalHosts: hosts, SignHeaders: o.SignHeaders, OversignHeaders: o.OversignHeaders,
		OnTrouble: milter.Trouble(o.OnTrouble), LongLines: milter.LongLines(o.LongLines), LineLimit: o.LineLimit,
		Timeout: o.Timeout, Logger: o.Logger, Metrics: registry,
	})
	if err != nil {
		return err
	}
	o.addAge(client, registry)
	stopMetrics, err := serveMetrics(o.Metrics, registry, telemetry.Check{Name: "signing", Func: client.Check}, o.Logger)
	if err != nil {
		return err
	}
	defer stopMetrics()
	// The library has no other way to say what is wrong with a connection.
	stdlog.SetFlags(0)
	stdlog.SetOutput(slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn).Writer())

	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	err = client.Ready(ready)
	cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		o.Logger.WarnContext(ctx, "no dkimd answers yet", slog.Any("error", err))
	}
	ln, err := listenMilter(o.Listen)
	if err != nil {
		return err
	}
	o.Logger.InfoContext(ctx, "milter ready", slog.String("address", ln.Addr().String()), slog.String("mode", o.Mode), slog.String("metrics", o.Metrics))
	return server.Serve(ctx, ln)
}

// addAge adds a metric of how old what is known is, for who signs here.
func (o *Milter) addAge(client *signer.Client, registry *prometheus.Registry) {
	if o.Mode == "local" {
		addAge(registry, "milter", "Time since what signs was last known to be what dkimd says; infinite before it was.", client.Confirmed)
	}
}

func (o *Milter) signerOptions() (signer.Options, error) {
	so, err := o.Connection.options(o.Logger)
	if err != nil {
		return so, err
	}
	if o.Timeout <= 0 {
		return so, fmt.Errorf("--timeout is %s; it must be more than 0", o.Timeout)
	}
	so.Timeout = o.Timeout
	switch o.Mode {
	case "remote":
		if o.SignerName != "" {
			return so, errors.New("--signer-name is for --mode local")
		}
	case "local":
		so.Local, so.Watch, so.Register = true, true, &signer.Registration{Name: o.SignerName, Description: "dkimd milter"}
	default:
		return so, fmt.Errorf("--mode is remote or local, not %q", o.Mode)
	}
	return so, nil
}

// tokenFile reads a token from a file that nobody but its owner may read.
func tokenFile(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("--token-file: %s can be read by others than its owner (mode %04o): revoke the token if it may have been seen, else chmod 600 it", name, mode)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", fmt.Errorf("--token-file: %s holds no token", name)
	}
	return token, nil
}

// prefixes reads addresses and CIDRs.
func prefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, addrErr := netip.ParseAddr(s)
			if addrErr != nil {
				return nil, fmt.Errorf("%q is neither an address nor a CIDR", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// listenMilter listens at "host:port" or "unix:/path". A socket file is for its owner
// and group; one that nobody listens at is replaced.
func listenMilter(address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return net.Listen("tcp", strings.TrimPrefix(address, "inet:"))
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket != 0 {
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close() // it was to see whether somebody is there
			return nil, fmt.Errorf("listen at %s: another process does", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // the mail server is another user, of the group
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}
