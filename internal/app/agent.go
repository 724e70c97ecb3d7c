package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/dkimzone/dkimzone/internal/agent"
	"github.com/dkimzone/dkimzone/internal/telemetry"
	"github.com/dkimzone/dkimzone/signer"
)

// Agent keeps the files of a signer in step.
type Agent struct {
	// Connection is how to reach dkimd.
	Connection
	// Format is how the signer reads keys, one of agent.Formats, or agent.TemplateName
	// with the file Template.
	Format, Template string
	// Dir is for the signer's files, User the one that they belong to, or Group the one
	// that may read them; both by name or id, "" for none.
	Dir, User, Group string
	// ReloadPIDFile and ReloadCommand are how the signer is made to read them again.
	ReloadPIDFile, ReloadCommand string
	// CacheDir and CacheKeyFile have defaults beside Dir.
	CacheDir, CacheKeyFile string
	// Metrics is "host:port", "" for none.
	Metrics string
	// SignerName is the name to register, "" for that in the certificate.
	SignerName string
	// Logger is told of each change.
	Logger *slog.Logger
}

func agentCommand() *cobra.Command {
	var o Agent
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Keep the key files of OpenDKIM, Exim and others in step",
		Long: `Runs beside a program that signs mail and reads keys from files, and keeps these in
step with dkimd: a file for each key, and tables that say which of them sign. A change
is in the files within a second. It connects to dkimd as a signer, with a certificate
or a token of that role, and dkimd has to allow it to fetch private keys
(--allow-key-fetch).`,
		Example: "  dkimd agent --format opendkim --dir /var/lib/dkimd-agent/opendkim --reload-pid-file /run/opendkim/opendkim.pid \\\n" +
			"    --dkimd dkimd1.example.net:9443 --dkimd dkimd2.example.net:9443 --tls-ca ca.crt --tls-cert mx1.crt --tls-key mx1.key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runWith(cmd, &logs, &o.Logger, func(ctx context.Context) error { return o.Run(ctx) })
		},
	}
	f := cmd.Flags()
	o.Connection.add(f)
	f.StringVar(&o.Format, "format", "", "what signs: "+strings.Join(formatNames(), ", "))
	f.StringVar(&o.Template, "template", "", "`file` NAME.tmpl, a text/template of Go that makes the file NAME, for --format template")
	f.StringVar(&o.Dir, "dir", "", "`directory` for its files and for nothing else; made with mode 0700")
	f.StringVar(&o.Group, "group", "", "`group` that may read the files, by name or id (default none; mode 0640 and 0750 with it)")
	f.StringVar(&o.User, "user", "", "`user` that the files belong to, by name or id: that of the signer, when the agent runs as root (default that of the agent)")
	f.StringVar(&o.ReloadPIDFile, "reload-pid-file", "", "`file` with the id of the process that gets SIGUSR1 after each change")
	f.StringVar(&o.ReloadCommand, "reload-command", "", "`command` of the shell that is run after each change")
	f.StringVar(&o.CacheDir, "cache-dir", "", "`directory` for an encrypted copy, from which files are restored while no dkimd answers (default that of --dir and .cache)")
	f.StringVar(&o.CacheKeyFile, "cache-key-file", "", "`file` with the key of that copy, 32 octets; made if it is not there (default that of --cache-dir and .key)")
	f.StringVar(&o.Metrics, "metrics-listen", "127.0.0.1:8893", "`address` of /metrics, /healthz and /readyz, plain HTTP; \"\" for none")
	f.StringVar(&o.SignerName, "signer-name", "", "`name` to register as (default that in the certificate)")
	logs.add(f)
	return cmd
}

func formatNames() []string {
	var names []string
	for _, f := range agent.Formats() {
		names = append(names, f.Name)
	}
	return append(names, agent.TemplateName)
}

// Run keeps the files in step until ctx ends.
func (o *Agent) Run(ctx context.Context) error {
	so, err := o.Connection.options(o.Logger)
	if err != nil {
		return err
	}
	ao, err := o.options()
	if err != nil {
		return err
	}
	a, err := agent.New(ao)
	if err != nil {
		return err
	}
	defer func() {
		if err := a.Close(); err != nil {
			o.Logger.WarnContext(ctx, "the files are not given up", slog.Any("error", err))
		}
	}()
	so.Watch, so.Register, so.Holds = true, &signer.Registration{Name: o.SignerName, Description: "dkimd agent for " + o.Format}, a.Holds
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
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newAgentCollector(a))
	addAge(registry, "agent", "Time since what signs was last known to be what dkimd says; infinite before it was.", client.Confirmed)
	stopMetrics, err := serveMetrics(o.Metrics, registry, telemetry.Check{Name: "files", Func: a.Check}, o.Logger)
	if err != nil {
		return err
	}
	defer stopMetrics()
	o.Logger.InfoContext(ctx, "agent started", slog.String("format", o.Format), slog.String("dir", o.Dir))
	a.Run(ctx, client)
	return ctx.Err()
}

func (o *Agent) options() (agent.Options, error) {
	ao := agent.Options{Dir: o.Dir, Owner: -1, Group: -1, Logger: o.Logger, CacheDir: o.CacheDir, CacheKeyFile: o.CacheKeyFile}
	var known bool
	ao.Format, known = agent.FormatNamed(o.Format)
	switch {
	case o.Format == "":
		return ao, fmt.Errorf("--format (or %s) is needed: %s", envName("format"), strings.Join(formatNames(), ", "))
	case !known && o.Format != agent.TemplateName:
		return ao, fmt.Errorf("--format is one of %s, not %q", strings.Join(formatNames(), ", "), o.Format)
	case (o.Format == agent.TemplateName) != (o.Template != ""):
		return ao, fmt.Errorf("--template and --format %s go together", agent.TemplateName)
	case o.Dir == "":
		return ao, fmt.Errorf("--dir (or %s) is needed", envName("dir"))
	case o.User != "" && o.Group != "":
		return ao, errors.New("either --user or --group, not both")
	case o.ReloadPIDFile != "" && o.ReloadCommand != "":
		return ao, errors.New("either --reload-pid-file or --reload-command, not both")
	case o.ReloadPIDFile != "":
		ao.Reload = agent.SignalReload(o.ReloadPIDFile)
	case o.ReloadCommand != "":
		ao.Reload = agent.CommandReload(o.ReloadCommand)
	case ao.Format.MustReload:
		return ao, fmt.Errorf("--reload-pid-file or --reload-command is needed: %s reads its tables when it is told to", o.Format)
	}
	if o.Template != "" {
		var err error
		if ao.Format, err = agent.Template(o.Template); err != nil {
			return ao, fmt.Errorf("--template: %w", err)
		}
	}
	if o.User != "" {
		var err error
		if ao.Owner, ao.Group, err = userID(o.User); err != nil {
			return ao, fmt.Errorf("--user: %w", err)
		}
	}
	if o.Group != "" {
		var err error
		if ao.Group, err = groupID(o.Group); err != nil {
			return ao, fmt.Errorf("--group: %w", err)
		}
	}
	dir := filepath.Clean(o.Dir)
	if ao.CacheDir == "" {
		ao.CacheDir = dir + ".cache"
	}
	if ao.CacheKeyFile == "" {
		ao.CacheKeyFile = filepath.Clean(ao.CacheDir) + ".key"
	}
	return ao, nil
}

// userID are the ids of a user and of its group.
func userID(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		var idErr error
		if u, idErr = user.LookupId(name); idErr != nil {
			return 0, 0, err
		}
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		if n, numErr := strconv.Atoi(name); numErr == nil && n >= 0 {
			return n, nil
		}
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// agentCollector shows an agent's Stats.
type agentCollector struct {
	agent *agent.Agent

	domains, keys, expired, synced, syncTime, reloads, reloadFailures, failures *prometheus.Desc
}

func newAgentCollector(a *agent.Agent) *agentCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("dkimd_agent_"+name, help, nil, nil)
	}
	return &agentCollector{
		agent:          a,
		domains:        desc("domains", "Domains in the tables."),
		keys:           desc("keys", "Keys in files: those that sign, that may come to, and that did until lately."),
		expired:        desc("expired_domains", "Domains that are left out as dkimd has been away for too long."),
		synced:         desc("synced", "1 if the files are as dkimd last said."),
		syncTime:       desc("sync_timestamp_seconds", "When the files were last brought in step or found to be."),
		reloads:        desc("reloads_total", "Times that the signer was reloaded."),
		reloadFailures: desc("reload_failures_total", "Attempts to reload the signer that failed."),
		failures:       desc("failures_total", "Attempts to bring the files in step that failed, by the disk or at the reload."),
	}
}

// Describe implements prometheus.Collector.
func (c *agentCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.domains, c.keys, c.expired, c.synced, c.syncTime, c.reloads, c.reloadFailures, c.failures} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (c *agentCollector) Collect(metrics chan<- prometheus.Metric) {
	s := c.agent.Stats()
	gauge := func(d *prometheus.Desc, v float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	counter := func(d *prometheus.Desc, v uint64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(c.domains, float64(s.Domains))
	gauge(c.keys, float64(s.Keys))
	gauge(c.expired, float64(s.Expired))
	synced := 0.0
	if s.Synced {
		synced = 1
	}
	gauge(c.synced, synced)
	if !s.SyncTime.IsZero() {
		gauge(c.syncTime, float64(s.SyncTime.UnixMilli())/1000)
	}
	counter(c.reloads, s.Reloads)
	counter(c.reloadFailures, s.ReloadFailures)
	counter(c.failures, s.Failures)
}
