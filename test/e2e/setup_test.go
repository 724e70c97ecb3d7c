// Package e2e runs the programs as an operator does and looks at them from
// outside: through dkimctl, gRPC, DNS and HTTP.
package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == digName {
		os.Exit(digMain(os.Args[1:]))
	}
	os.Exit(harness.Main(m))
}

const (
	zone = "keys.example.net" // what dkimd standalone creates

	// startLimit bounds how long a program may take until it is ready, stopLimit
	// until it has ended after SIGTERM. Both leave room for a busy machine.
	startLimit = 2 * time.Minute
	stopLimit  = time.Minute

	callLimit = 3 * time.Minute
)

// standalone is a dkimd standalone with addresses and a data directory of its own.
type standalone struct {
	*harness.Process // of the last start
	client
	dataDir                  string
	dns, grpc, http, metrics string
}

// newStandalone prepares one, start starts it.
func newStandalone(t *testing.T) *standalone {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	return &standalone{
		client:  client{config: filepath.Join(dir, "dkimctl.yaml")},
		dataDir: dir,
		dns:     harness.Addr(t), grpc: harness.Addr(t), http: harness.Addr(t), metrics: harness.Addr(t),
	}
}

// environment sets the addresses in place of flags.
func (s *standalone) environment() []string {
	return []string{
		"DKIMD_DNS_LISTEN=" + s.dns, "DKIMD_GRPC_LISTEN=" + s.grpc,
		"DKIMD_HTTP_LISTEN=" + s.http, "DKIMD_METRICS_LISTEN=" + s.metrics,
	}
}

func (s *standalone) flags() []string {
	return []string{
		"standalone", "--data-dir", s.dataDir, "--dns-listen", s.dns, "--grpc-listen", s.grpc,
		"--http-listen", s.http, "--metrics-listen", s.metrics,
	}
}

// start starts it and waits until it is ready.
func (s *standalone) start(t *testing.T, flags ...string) {
	t.Helper()
	s.Process = harness.Start(t, "dkimd", harness.Dkimd, nil, append(s.flags(), flags...)...)
	s.waitReady(t)
}

func (s *standalone) waitReady(t *testing.T) {
	t.Helper()
	waitReady(t, s.Process, "http://"+s.metrics+"/readyz")
}

// fails starts it, expects it to give up with exit code 1 and one line, and
// returns that line. Warnings of etcd, as on a busy machine, may come before it.
func (s *standalone) fails(t *testing.T, flags ...string) string {
	t.Helper()
	p := harness.Start(t, "failing dkimd", harness.Dkimd, nil, append(s.flags(), flags...)...)
	if code := p.Exit(t, startLimit); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimSuffix(p.Output(), "\n"), "\n"), func(line string) bool {
		return strings.Contains(line, `msg="embedded etcd"`)
	})
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "dkimd: ") {
		t.Errorf("wrote %q, want one line that says what is wrong", lines)
	}
	return strings.Join(lines, "\n")
}

// stop ends it as an operator does.
func (s *standalone) stop(t *testing.T) {
	t.Helper()
	stop(t, s.Process)
}

func stop(t *testing.T, p *harness.Process) {
	t.Helper()
	p.Terminate()
	if code := p.Exit(t, stopLimit); code != 0 {
		t.Errorf("exit code after SIGTERM is %d, want 0", code)
	}
}

// admin is the certificate that standalone made for the operator.
func (s *standalone) admin() harness.Cert {
	pki := filepath.Join(s.dataDir, "pki")
	return harness.Cert{CA: filepath.Join(pki, "ca.crt"), Cert: filepath.Join(pki, "admin.crt"), Key: filepath.Join(pki, "admin.key")}
}

func (s *standalone) api(t *testing.T) dkimv1.KeyManagementClient {
	t.Helper()
	return dial(t, s.grpc, tlsConfig(t, s.admin()))
}

// client is an operator with a dkimctl.yaml.
type client struct{ config string }

// run runs dkimctl.
func (c client) run(t *testing.T, args ...string) harness.Result {
	t.Helper()
	return harness.Run(t, t.TempDir(), harness.Dkimctl, []string{"DKIMCTL_CONFIG=" + c.config}, args...)
}

// ctl runs dkimctl, which is to succeed, and returns what it printed.
func (c client) ctl(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.Code != 0 {
		t.Fatalf("dkimctl %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// read runs dkimctl with -o json and reads the message that it prints.
func (c client) read(t *testing.T, into proto.Message, args ...string) {
	t.Helper()
	out := c.ctl(t, append(args, "-o", "json")...)
	if err := protojson.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("dkimctl %s prints no %T: %v\n%s", strings.Join(args, " "), into, err, out)
	}
}

func (c client) domain(t *testing.T, brand, name string) *dkimv1.Domain {
	t.Helper()
	d := &dkimv1.Domain{}
	c.read(t, d, "domain", "get", brand, name)
	return d
}

func (c client) key(t *testing.T, brand, domain, selector string) *dkimv1.Key {
	t.Helper()
	k := &dkimv1.Key{}
	c.read(t, k, "key", "get", brand, domain, selector)
	return k
}

func waitReady(t *testing.T, p *harness.Process, url string) {
	t.Helper()
	harness.Eventually(t, startLimit, "ready at "+url, func() error {
		if err := p.Running(); err != nil {
			t.Fatal(err)
		}
		status, body, err := get(t, url)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
}

var plainHTTP = &http.Client{Timeout: callLimit, Transport: &http.Transport{DisableKeepAlives: true}}

func get(t *testing.T, url string) (status int, body string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := plainHTTP.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(all), err
}

func tlsConfig(t *testing.T, c harness.Cert) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := trusting(t, c.CA)
	cfg.Certificates = []tls.Certificate{pair}
	return cfg
}

// trusting is the configuration of a client that shows no certificate.
func trusting(t *testing.T, caFile string) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", caFile)
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}

func dial(t *testing.T, addr string, cfg *tls.Config) dkimv1.KeyManagementClient {
	t.Helper()
	return dkimv1.NewKeyManagementClient(connect(t, addr, cfg))
}

func connect(t *testing.T, addr string, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// deadline is a context for the calls of one test step.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callLimit)
	t.Cleanup(cancel)
	return ctx
}
