package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// Source is where a server finds the zone.
type Source struct {
	Zone   string // without a trailing dot
	Master string // master file
}

// Server is a name server with its configuration.
type Server struct {
	// Name with the version.
	Name string
	// Prepare writes what the server needs into dir, an empty directory, to
	// answer for the zone on 127.0.0.1:port.
	Prepare func(ctx context.Context, dir string, port int, src Source) error
	// Command starts the server in the foreground in dir.
	Command func(dir string) []string
	// Store, if it is not nil, starts the etcd that the server reads while it
	// answers. It runs on the server's CPU and is counted with it; the server
	// finds its URL in the environment as ETCD_URL.
	Store func(ctx context.Context, dir string, cpu int) (*Etcd, error)
}

// onCPU is a command line that runs args on a CPU, or on any if that is
// negative.
func onCPU(cpu int, args ...string) []string {
	if cpu < 0 {
		return args
	}
	return append([]string{"taskset", "-c", strconv.Itoa(cpu)}, args...)
}

// Peers are the servers that Debian has.
func Peers(ctx context.Context) []Server {
	return []Server{
		{
			Name:    "NSD " + version(ctx, "nsd", "-v"),
			Prepare: writeConfig("nsd.conf", nsdConfig),
			Command: func(dir string) []string { return []string{"nsd", "-d", "-c", filepath.Join(dir, "nsd.conf")} },
		},
		{
			Name:    "Knot " + version(ctx, "knotd", "-V"),
			Prepare: writeConfig("knot.conf", knotConfig),
			Command: func(dir string) []string { return []string{"knotd", "-c", filepath.Join(dir, "knot.conf")} },
		},
		{
			Name:    "BIND " + version(ctx, "named", "-v"),
			Prepare: writeConfig("named.conf", bindConfig),
			Command: func(dir string) []string {
				return []string{"named", "-f", "-n", "1", "-c", filepath.Join(dir, "named.conf")}
			},
		},
		{
			Name:    "PowerDNS " + version(ctx, "pdns_server", "--version") + " LMDB",
			Prepare: preparePowerDNS,
			Command: func(dir string) []string { return []string{"pdns_server", "--config-dir=" + dir} },
		},
	}
}

const nsdConfig = `server:
  ip-address: 127.0.0.1@%[1]d
  username: ""
  zonesdir: "%[2]s"
  database: ""
  pidfile: ""
  xfrdfile: "%[2]s/xfrd.state"
  zonelistfile: "%[2]s/zone.list"
  server-count: 1
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  minimal-responses: yes
remote-control:
  control-enable: no
zone:
  name: "%[3]s"
  zonefile: "%[4]s"
`

const knotConfig = `server:
    rundir: "%[2]s"
    listen: 127.0.0.1@%[1]d
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "%[2]s/db"
log:
  - target: stderr
    any: error
zone:
  - domain: %[3]s
    file: "%[4]s"
    zonefile-sync: -1
    journal-content: none
`

const bindConfig = `options {
    directory "%[2]s";
    listen-on port %[1]d { 127.0.0.1; };
    listen-on-v6 { none; };
    pid-file none;
    session-keyfile "%[2]s/session.key";
    recursion no;
    minimal-responses yes;
    empty-zones-enable no;
    notify no;
};
controls { };
logging { category default { default_stderr; }; };
zone "%[3]s" { type primary; file "%[4]s"; };
`

const pdnsConfig = `launch=lmdb
lmdb-filename=%[2]s/zones.lmdb
local-address=127.0.0.1
local-port=%[1]d
socket-dir=%[2]s
receiver-threads=1
distributor-threads=1
daemon=no
guardian=no
write-pid=no
disable-syslog=yes
loglevel=3
any-to-tcp=no
security-poll-suffix=
`

// writeConfig writes a file with port, directory, zone and master file filled
// in.
func writeConfig(name, format string) func(context.Context, string, int, Source) error {
	return func(_ context.Context, dir string, port int, src Source) error {
		text := fmt.Sprintf(format, port, dir, src.Zone, src.Master)
		return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)
	}
}

func preparePowerDNS(ctx context.Context, dir string, port int, src Source) error {
	text := fmt.Sprintf(pdnsConfig, port, dir)
	if err := os.WriteFile(filepath.Join(dir, "pdns.conf"), []byte(text), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"load-zone", src.Zone, src.Master},
		{"rectify-zone", src.Zone}, // adds the empty non-terminals
	} {
		cmd := exec.CommandContext(ctx, "pdnsutil", append([]string{"--config-dir=" + dir}, args...)...) //nolint:gosec // of the list above
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return nil
}

// CoreDNS is a server of a CoreDNS binary. The Corefile's lines stand in a
// block for the zone; MASTER in them is the master file.
func CoreDNS(name, binary, lines string) Server {
	return Server{
		Name: name,
		Prepare: func(_ context.Context, dir string, port int, src Source) error {
			text := fmt.Sprintf("%s:%d {\nbind 127.0.0.1\nerrors\n%s}\n", src.Zone, port, strings.ReplaceAll(lines, "MASTER", src.Master))
			return os.WriteFile(filepath.Join(dir, "Corefile"), []byte(text), 0o600)
		},
		Command: func(dir string) []string {
			return []string{binary, "-quiet", "-conf", filepath.Join(dir, "Corefile")}
		},
	}
}

// CoreDNSEtcd is CoreDNS's plugin etcd of a CoreDNS binary with an etcd of the
// other binary, whose data in store the caller has made.
func CoreDNSEtcd(name, binary, etcd, store string) Server {
	s := CoreDNS(name, binary, "etcd {\nendpoint {$ETCD_URL}\n}\n")
	s.Store = func(ctx context.Context, _ string, cpu int) (*Etcd, error) { return StartEtcd(ctx, etcd, store, cpu) }
	return s
}

var versionNumber = regexp.MustCompile(`[0-9]+\.[0-9]+[0-9.]*`)

// version is empty when the program does not say it.
func version(ctx context.Context, program, arg string) string {
	// Some end with an error though they say it.
	out, _ := exec.CommandContext(ctx, program, arg).CombinedOutput() //nolint:gosec // a server of this package
	return versionNumber.FindString(string(out))
}

// Process is a running server.
type Process struct {
	Addr  string
	Start time.Duration // from the start of the process to the first answer

	cmd   *exec.Cmd
	store *Etcd // nil if there is none
	out   bytes.Buffer
	end   chan struct{} // closed once the process has ended
	err   error         // how it ended, good from then on
}

const (
	answerLimit = 5 * time.Minute
	stopLimit   = time.Minute
	pause       = 2 * time.Millisecond
)

// Run starts the server on a CPU, or on any if that is negative, and returns
// when it has answered the question for the TXT record of name.
func (s Server) Run(ctx context.Context, dir string, port, cpu int, name string) (*Process, error) {
	args := onCPU(cpu, s.Command(dir)...)
	p := &Process{Addr: fmt.Sprintf("127.0.0.1:%d", port), end: make(chan struct{})}
	p.cmd = exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // a server of this package; Stop ends it
	if s.Store != nil {
		var err error
		if p.store, err = s.Store(ctx, dir, cpu); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		p.cmd.Env = append(os.Environ(), "ETCD_URL="+p.store.URL)
	}
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.Name, err), p.stopStore())
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.end)
	}()
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	client := dns.Client{Timeout: 100 * time.Millisecond}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	for {
		reply, _, err := client.ExchangeContext(ctx, question, p.Addr)
		if err == nil && reply.Rcode == dns.RcodeSuccess && len(reply.Answer) == 1 {
			p.Start = time.Since(began)
			return p, nil
		}
		select {
		case <-p.end:
			return nil, errors.Join(fmt.Errorf("%s has ended: %w\n%s", s.Name, p.err, p.out.String()), p.stopStore())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s: no answer: %w, %v", s.Name, ctx.Err(), reply), p.Stop())
		case <-time.After(pause):
		}
	}
}

// Stop asks the server, and then its store, to end and waits until they have.
func (p *Process) Stop() error { return errors.Join(p.stop(), p.stopStore()) }

func (p *Process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.end:
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill() // it may have ended just now
		<-p.end
		return fmt.Errorf("%v did not stop within %v", p.cmd, stopLimit)
	}
	return nil
}

func (p *Process) stopStore() error {
	if p.store == nil {
		return nil
	}
	return p.store.Stop()
}
