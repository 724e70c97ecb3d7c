package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

// One data directory through starts, stops and a kill.
func TestStandaloneLife(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)

	// First start, with environment variables in place of flags.
	env := append(s.environment(), "DKIMD_DATA_DIR="+s.dataDir, "DKIMD_ZONE=first.example.net", "DKIMD_LOG_FORMAT=json")
	s.Process = harness.Start(t, "dkimd", harness.Dkimd, env, "standalone", "--zone", zone)
	s.waitReady(t)
	if _, err := soaSerial(s.dns, zone); err != nil {
		t.Errorf("--zone does not win over DKIMD_ZONE: %v", err)
	}
	s.ctl(t, "brand", "create", "acme")
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--wait")
	keys := []*dkimv1.Key{s.key(t, "acme", "spamtrap.dk", "selector1"), s.key(t, "acme", "spamtrap.dk", "selector2")}
	checkSameKeys(t, s, keys)
	ca := readFile(t, s.admin().CA)
	s.stop(t)
	if strings.Contains(s.Output(), "level=") {
		t.Errorf("DKIMD_LOG_FORMAT=json is not heeded:\n%s", s.Output())
	}

	// The second start goes on.
	s.start(t)
	checkSameKeys(t, s, keys)
	if readFile(t, s.admin().CA) != ca {
		t.Error("the second start made another CA")
	}
	t.Run("second process", func(t *testing.T) { checkSecondProcess(t, s) })
	checkSameKeys(t, s, keys)

	// A client that watches does not hold up the end.
	stream, err := s.api(t).WatchDomains(t.Context(), &dkimv1.WatchDomainsRequest{Parent: "brands/-"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "dkimd is stopping") {
		t.Errorf("the watch ends with %v, want it told of the end and not cut off", err)
	}

	s.start(t)
	acknowledged := writeUntilKilled(t, s)
	s.start(t)
	checkSameKeys(t, s, keys)
	checkWhole(t, s, acknowledged)
	s.stop(t)

	t.Run("key-encryption key", func(t *testing.T) { checkKeyEncryptionKey(t, s) })
	s.start(t)
	checkSameKeys(t, s, keys)
}

// checkSecondProcess starts others that want what s has.
func checkSecondProcess(t *testing.T, s *standalone) {
	t.Helper()
	for _, tt := range []struct {
		flag, want string
		take       func(*standalone)
	}{
		{"--data-dir", "in use by another process", func(o *standalone) { o.dataDir = s.dataDir }},
		{"--dns-listen", "address already in use", func(o *standalone) { o.dns = s.dns }},
		{"--grpc-listen", "address already in use", func(o *standalone) { o.grpc = s.grpc }},
		{"--http-listen", "address already in use", func(o *standalone) { o.http = s.http }},
		{"--metrics-listen", "address already in use", func(o *standalone) { o.metrics = s.metrics }},
	} {
		t.Run(tt.flag, func(t *testing.T) {
			other := newStandalone(t)
			tt.take(other)
			checkLine(t, other.fails(t), tt.flag, tt.want)
		})
	}
}

// checkKeyEncryptionKey starts s, which has keys stored, without its
// key-encryption key and with another one.
func checkKeyEncryptionKey(t *testing.T, s *standalone) {
	t.Helper()
	kek := filepath.Join(s.dataDir, "kek.key")
	away := filepath.Join(t.TempDir(), "kek.key")
	if err := os.Rename(kek, away); err != nil {
		t.Fatal(err)
	}
	checkLine(t, s.fails(t), kek, "missing", "backup")
	if _, err := os.Stat(kek); err == nil {
		t.Fatal("it made a new key-encryption key")
	}
	if r := harness.Run(t, t.TempDir(), harness.Dkimd, nil, "pki", "kek", kek); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	checkLine(t, s.fails(t), kek)
	if err := os.Rename(away, kek); err != nil {
		t.Fatal(err)
	}
}

// writeUntilKilled provisions domains one after the other, kills the process in
// the middle and returns what had been acknowledged.
func writeUntilKilled(t *testing.T, s *standalone) []*dkimv1.Domain {
	t.Helper()
	api := s.api(t)
	const enough = 20
	ready, done := make(chan struct{}), make(chan []*dkimv1.Domain)
	go func() {
		var acknowledged []*dkimv1.Domain
		for i := 0; ; i++ {
			ctx, cancel := context.WithTimeout(t.Context(), callLimit)
			d, err := api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{
				Name: fmt.Sprintf("brands/acme/domains/d%d.example.org", i), Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519,
			})
			cancel()
			if err != nil {
				break
			}
			if acknowledged = append(acknowledged, d); len(acknowledged) == enough {
				close(ready)
			}
		}
		done <- acknowledged
	}()
	select {
	case <-ready:
	case acknowledged := <-done:
		t.Fatalf("provisioning failed after %d domains", len(acknowledged))
	}
	s.Kill()
	return <-done
}

// checkWhole looks whether all domains that were acknowledged are as they were,
// whether each domain has both its keys and DNS serves them, and that there are
// no more than the one that may have been in the making.
func checkWhole(t *testing.T, s *standalone, acknowledged []*dkimv1.Domain) {
	t.Helper()
	ctx, api := deadline(t), s.api(t)
	list, err := api.ListDomains(ctx, &dkimv1.ListDomainsRequest{Parent: "brands/acme", PageSize: 1000, Filter: `domain = "*.example.org"`})
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]*dkimv1.Domain)
	for _, d := range list.GetDomains() {
		there[d.GetName()] = d
	}
	for _, want := range acknowledged {
		if diff := cmp.Diff(want, there[want.GetName()], notWatched()...); diff != "" {
			t.Errorf("%s (-acknowledged +there):\n%s", want.GetName(), diff)
		}
	}
	if len(there) > len(acknowledged)+1 {
		t.Errorf("%d domains are there, %d were acknowledged", len(there), len(acknowledged))
	}
	for _, d := range list.GetDomains() {
		keys, err := api.ListKeys(ctx, &dkimv1.ListKeysRequest{Parent: d.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		if len(keys.GetKeys()) != 2 {
			t.Errorf("%s has keys %v, want 2", d.GetName(), keys.GetKeys())
		}
		for _, k := range keys.GetKeys() {
			waitTXT(t, s.dns, k.GetOwnerName(), k.GetRecord())
		}
	}
}

func checkSameKeys(t *testing.T, s *standalone, want []*dkimv1.Key) {
	t.Helper()
	for _, k := range want {
		got := s.key(t, "acme", "spamtrap.dk", k.GetSelector())
		if diff := cmp.Diff(k, got, protocmp.Transform()); diff != "" {
			t.Errorf("key in %s (-before +now):\n%s", k.GetSelector(), diff)
		}
		checkServed(t, s.dns, k)
	}
}

// checkLine looks at the one line of a start that failed.
func checkLine(t *testing.T, line string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(line, w) {
			t.Errorf("the line is %q, want it to say %q", line, w)
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestStartFailures(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		prepare func(t *testing.T, s *standalone)
		flags   []string
		want    []string
	}{
		{"bad zone", nil, []string{"--zone", "keys_example.net"}, []string{"--zone", "keys_example.net"}},
		{"zone with a trailing dot", nil, []string{"--zone", "keys.example.net."}, []string{"--zone", "dot"}},
		{"file as data directory", func(_ *testing.T, s *standalone) { s.dataDir = file }, nil, []string{"--data-dir", file, "not a directory"}},
		{"data directory below a file", func(_ *testing.T, s *standalone) { s.dataDir = filepath.Join(file, "data") }, nil, []string{"--data-dir", file, "not a directory"}},
		{"data directory nobody may write to", func(t *testing.T, s *standalone) { s.dataDir = "/proc/dkimd" }, nil, []string{"--data-dir", "/proc/dkimd"}},
		{"DNS port taken over TCP", func(t *testing.T, s *standalone) {
			take(t, s.dns, func() (io.Closer, error) { return net.Listen("tcp", s.dns) })
		}, nil, []string{"--dns-listen", "tcp", "address already in use"}},
		{"DNS port taken over UDP", func(t *testing.T, s *standalone) {
			take(t, s.dns, func() (io.Closer, error) { return net.ListenPacket("udp", s.dns) })
		}, nil, []string{"--dns-listen", "udp", "address already in use"}},
		{"address of another machine", func(_ *testing.T, s *standalone) { s.grpc = "192.0.2.1:9443" }, nil, []string{"--grpc-listen", "192.0.2.1:9443"}},
		{"address without a port", func(_ *testing.T, s *standalone) { s.metrics = "127.0.0.1" }, nil, []string{"--metrics-listen", "port"}},
		{"unknown flag", nil, []string{"--colour"}, []string{"--colour"}},
		{"unknown log level", nil, []string{"--log-level", "loud"}, []string{"loud"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStandalone(t)
			if tt.prepare != nil {
				tt.prepare(t, s)
			}
			checkLine(t, s.fails(t, tt.flags...), tt.want...)
		})
	}
}

// take listens at an address that harness.Addr returned. A program that another
// test is starting has, for a moment, what was opened to see whether it is free.
func take(t *testing.T, addr string, listen func() (io.Closer, error)) {
	t.Helper()
	harness.Eventually(t, startLimit, "listen at "+addr, func() error {
		l, err := listen()
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// A first start that is cut short at any point leaves nothing that the next one
// cannot go on with.
func TestFirstStartCutShort(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	for _, file := range []string{
		"etcd/dkimzone.lock", "etcd/member/snap/db", "kek.key", "replica", "pki/ca.key", "pki/server.crt", "dkimctl.yaml",
	} {
		p := harness.Start(t, "dkimd until "+file, harness.Dkimd, nil, s.flags()...)
		harness.Eventually(t, startLimit, file+" is there", func() error {
			_, err := os.Stat(filepath.Join(s.dataDir, file))
			return err
		})
		p.Kill()
	}
	s.start(t)
	s.ctl(t, "brand", "create", "acme")
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--wait", "--algorithm", "ed25519")
	s.stop(t)
}

// The way from one process to several: a stock etcd goes on with the data
// directory of the one inside dkimd.
func TestMoveToCluster(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t)
	s.ctl(t, "brand", "create", "acme")
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--wait", "--algorithm", "ed25519")
	before := s.domain(t, "acme", "spamtrap.dk")
	s.stop(t)

	endpoint := "http://" + harness.Addr(t)
	harness.Start(t, "etcd", harness.Etcd, nil, "--data-dir", filepath.Join(s.dataDir, "etcd"), "--log-level", "warn",
		"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint, "--listen-peer-urls", "http://"+harness.Addr(t))
	pki := filepath.Join(s.dataDir, "pki")
	d := harness.Start(t, "dkimd serve", harness.Dkimd, nil, "serve", "--etcd-endpoint", endpoint,
		"--tls-ca", filepath.Join(pki, "ca.crt"), "--tls-cert", filepath.Join(pki, "server.crt"), "--tls-key", filepath.Join(pki, "server.key"),
		"--kek-url", "file://"+filepath.Join(s.dataDir, "kek.key"),
		"--grpc-listen", s.grpc, "--http-listen", s.http, "--metrics-listen", s.metrics)
	waitReady(t, d, "http://"+s.metrics+"/readyz")
	if diff := cmp.Diff(before, s.domain(t, "acme", "spamtrap.dk"), notWatched()...); diff != "" {
		t.Errorf("domain (-before +after the move):\n%s", diff)
	}
	s.ctl(t, "domain", "rotate", "acme", "spamtrap.dk", "--when-ready")
	s.ctl(t, "domain", "provision", "acme", "new.example", "--algorithm", "ed25519")
	stop(t, d)
}

// A dkimd that still waits for etcd ends like any other.
func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	pki, addr := harness.NewPKI(t), harness.Addr(t)
	cert := pki.Server(t, "dkimd", harness.Host())
	p := harness.Start(t, "dkimd serve", harness.Dkimd, nil, "serve", "--etcd-endpoint", "http://"+harness.Addr(t),
		"--tls-ca", cert.CA, "--tls-cert", cert.Cert, "--tls-key", cert.Key, "--kek-url", pki.KEK(t),
		"--grpc-listen", addr, "--http-listen", harness.Addr(t), "--metrics-listen", harness.Addr(t))
	harness.Eventually(t, startLimit, "it listens", func() error {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			err = conn.Close()
		}
		return errors.Join(err, p.Running())
	})
	stop(t, p)
	if p.Output() != "" {
		t.Errorf("it wrote %q", p.Output())
	}
}
