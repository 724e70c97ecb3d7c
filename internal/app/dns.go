package app

import (
	"context"
	"errors"
	"fmt"
	stdlog "log" //nolint:depguard // CoreDNS logs through it; start brings that into ours
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"   // directive of the Corefile below
	_ "github.com/coredns/coredns/plugin/errors" // directive of the Corefile below
	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/telemetry"
	_ "github.com/dkimzone/dkimzone/plugin/dkim" // directive of the Corefile below
)

// nameServer is the CoreDNS that dkimd standalone runs.
type nameServer struct {
	listen  string // as asked for
	dataDir string
	source  string // endpoint of the replica's etcd

	released func() // called when nothing uses source any more

	mu       sync.Mutex
	zones    []string
	instance *caddy.Instance
	address  string // as bound
}

var setDirectives = sync.OnceValue(func() error {
	dnsserver.Quiet, caddy.Quiet = true, true
	return dnsserver.SetDirectives([]string{"bind", "errors", "dkim"})
})

// corednsLog brings what CoreDNS logs, through the standard library's logger,
// into ours.
type corednsLog struct{ logger *slog.Logger }

func (w corednsLog) Write(line []byte) (int, error) {
	message := strings.TrimSpace(string(line))
	level := slog.LevelInfo
	for prefix, l := range map[string]slog.Level{
		"[DEBUG] ": slog.LevelDebug, "[INFO] ": slog.LevelInfo, "[WARNING] ": slog.LevelWarn,
		"[ERROR] ": slog.LevelError, "[FATAL] ": slog.LevelError,
	} {
		if rest, ok := strings.CutPrefix(message, prefix); ok {
			message, level = rest, l
		}
	}
	w.logger.LogAttrs(context.Background(), level, "coredns", slog.String("message", message))
	return len(line), nil
}

// probeDNS tells whether the DNS address is free. CoreDNS shares its ports
// (SO_REUSEPORT), so that it would not notice another server there.
func probeDNS(address string) (err error) {
	const tries = 10 // of ports that the kernel chooses for TCP and UDP has in use
	for range tries {
		if err = probePort(address); err == nil || !strings.HasSuffix(address, ":0") {
			return err
		}
	}
	return err
}

func probePort(address string) error {
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--dns-listen %s: tcp: %w", address, bindCause(err))
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if cerr := tcp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("--dns-listen %s: udp: %w", address, bindCause(err))
	}
	return udp.Close()
}

// start serves zones, of which there is at least one.
func (n *nameServer) start(zones []string, logger *slog.Logger) error {
	if err := setDirectives(); err != nil {
		return fmt.Errorf("start DNS: %w", err)
	}
	stdlog.SetFlags(0)
	stdlog.SetOutput(corednsLog{logger})
	n.mu.Lock()
	defer n.mu.Unlock()
	instance, err := caddy.Start(n.corefile(zones))
	if err != nil {
		return fmt.Errorf("start DNS: %w", err)
	}
	n.instance, n.zones = instance, zones
	for _, s := range instance.Servers() {
		if addr := s.LocalAddr(); addr != nil {
			n.address = addr.String()
		}
	}
	return nil
}

// reload serves other zones, without losing a query.
func (n *nameServer) reload(zones []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Equal(zones, n.zones) {
		return nil
	}
	instance, err := n.instance.Restart(n.corefile(zones))
	if err != nil {
		return fmt.Errorf("reload DNS: %w", err)
	}
	n.instance, n.zones = instance, zones
	return nil
}

func (n *nameServer) stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.instance == nil {
		return nil
	}
	errs := n.instance.ShutdownCallbacks()
	errs = append(errs, n.instance.Stop())
	n.released()
	return errors.Join(errs...)
}

func (n *nameServer) corefile(zones []string) caddy.Input {
	host, port, err := net.SplitHostPort(n.listen)
	if err != nil { // probeDNS has listened on it
		panic(err)
	}
	var b strings.Builder
	// The block is for all names, so that the plugin refuses what is not ours:
	// it does that better than CoreDNS.
	fmt.Fprintf(&b, ".:%s {\n", port)
	if host != "" {
		fmt.Fprintf(&b, "    bind %s\n", host)
	}
	fmt.Fprintf(&b, "    errors\n    dkim %s {\n        endpoint %s\n        data_dir %q\n    }\n}\n", strings.Join(zones, " "), n.source, n.dataDir)
	return caddy.CaddyfileInput{Contents: []byte(b.String()), Filepath: "standalone", ServerTypeName: "dns"}
}

// check asks the server itself for the SOA record of each zone.
func (n *nameServer) check() telemetry.Check {
	client := &dns.Client{Timeout: 2 * time.Second}
	return telemetry.Check{Name: "dns", Func: func(ctx context.Context) error {
		n.mu.Lock()
		zones, address := n.zones, askable(n.address)
		n.mu.Unlock()
		for _, z := range zones {
			resp, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(z), dns.TypeSOA), address)
			if err != nil {
				return fmt.Errorf("zone %s: %w", z, err)
			}
			if resp.Rcode != dns.RcodeSuccess || !resp.Authoritative {
				return fmt.Errorf("zone %s: answered %s", z, dns.RcodeToString[resp.Rcode])
			}
		}
		return nil
	}}
}

// askable is an address that reaches a server bound to address.
func askable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
