//go:build linux

package bench_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

var (
	signingDomains = flag.Int("signing-domains", 20_000, "domains in the view of BenchmarkSigning")
	signingDir     = flag.String("signing-dir", "", "directory where BenchmarkSigning keeps its etcd, to use it again; default none")
)

// On which CPU what is measured runs, and on which its clients and etcd do.
const (
	measuredCPU = 0
	otherCPU    = 1
)

// rsaDomain is the domain of smallBrand, with an RSA-2048 key; those of brand acme have Ed25519.
const (
	rsaDomain  = "rsa.example"
	smallBrand = "small"
)

func edDomain(i int) string { return fmt.Sprintf("customer-%07d.example", i) }

// signing is dkimd serve with an etcd that has many domains, each with a key that signs.
type signing struct {
	dir                       string
	etcdURL                   string
	grpc, http, metrics       string
	etcd, dkimd               *harness.Process
	ca, cert, key, admin, kek string
	rsaPEM                    string // a file, for others who sign with the same key
	token                     string
}

// newSigning starts one, with dkimd on one CPU and the rest on the other.
func newSigning(b *testing.B) *signing {
	b.Helper()
	s := &signing{dir: *signingDir, etcdURL: "http://" + harness.Addr(b), grpc: harness.Addr(b), http: harness.Addr(b), metrics: harness.Addr(b)}
	if s.dir == "" {
		s.dir = b.TempDir()
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		b.Fatal(err)
	}
	certs := filepath.Join(s.dir, "pki")
	for _, args := range [][]string{{"server", "server", harness.Host()}, {"client", "mx1", "signer"}, {"client", "admin", "admin"}} {
		if r := harness.Run(b, s.dir, harness.Dkimd, nil, append([]string{"pki", "--dir", certs}, args...)...); r.Code != 0 {
			b.Fatal(r.Stderr)
		}
	}
	s.ca, s.cert, s.key = filepath.Join(certs, "ca.crt"), filepath.Join(certs, "mx1.crt"), filepath.Join(certs, "mx1.key")
	s.admin, s.kek, s.rsaPEM = filepath.Join(certs, "admin"), filepath.Join(s.dir, "kek.key"), filepath.Join(s.dir, "rsa.pem")
	if err := envelope.CreateKeyFile(s.kek); err != nil && !errors.Is(err, os.ErrExist) {
		b.Fatal(err)
	}
	peer := "http://" + harness.Addr(b)
	s.etcd = harness.Start(b, "etcd", harness.Etcd, nil, "--name", "one", "--data-dir", filepath.Join(s.dir, "etcd"), "--force-new-cluster",
		"--initial-cluster", "one="+peer, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--listen-client-urls", s.etcdURL, "--advertise-client-urls", s.etcdURL,
		"--unsafe-no-fsync", "--quota-backend-bytes", "8589934592", "--log-level", "error")
	s.fill(b)
	server := filepath.Join(certs, "server")
	s.dkimd = harness.Start(b, "dkimd", harness.Dkimd, []string{"GOMAXPROCS=1"}, "serve", "--etcd-endpoint", s.etcdURL,
		"--tls-ca", s.ca, "--tls-cert", server+".crt", "--tls-key", server+".key", "--kek-url", "file://"+s.kek, "--check-resolver", emptyDNS(b),
		"--grpc-listen", s.grpc, "--http-listen", s.http, "--metrics-listen", s.metrics, "--log-level", "warn",
		"--audit-log", filepath.Join(b.TempDir(), "audit.log"), "--allow-key-fetch", "*", "--sign-rate", "0", "--limit-signer", "0", "--limit-concurrent", "0")
	harness.Eventually(b, 5*time.Minute, "the view is loaded", func() error {
		if _, err := get("http://" + s.metrics + "/readyz"); err != nil {
			return err
		}
		// Before it was loaded it has no age.
		body, err := get("http://" + s.metrics + "/metrics")
		if err == nil && !bytes.Contains(body, []byte("\ndkimd_signing_view_age_seconds ")) {
			err = fmt.Errorf("it has %g domains", s.metric(b, "dkimd_signing_view_domains"))
		}
		return err
	})
	s.makeToken(b)
	pin(b, s.dkimd.PID(), measuredCPU)
	pin(b, s.etcd.PID(), otherCPU)
	pin(b, os.Getpid(), otherCPU)
	return s
}

// pin has all threads of a process, and those to come, run on one CPU.
func pin(b *testing.B, pid, cpu int) {
	b.Helper()
	if out, err := exec.Command("taskset", "-a", "-c", "-p", strconv.Itoa(cpu), strconv.Itoa(pid)).CombinedOutput(); err != nil {
		b.Fatalf("taskset: %v: %s", err, out)
	}
}

func (s *signing) makeToken(b *testing.B) {
	b.Helper()
	file := filepath.Join(b.TempDir(), "dkimctl.yaml")
	if err := (config.Client{Address: s.grpc, CAFile: s.ca, CertFile: s.admin + ".crt", KeyFile: s.admin + ".key"}).Write(file); err != nil {
		b.Fatal(err)
	}
	var made dkimv1.Token
	unmarshalJSON(b, dkimctl(b, file, "token", "create", "--role", "signer", "--subject", "rspamd", "-o", "json").Stdout, &made)
	s.token = made.GetSecret()
}

// tls is how a signer connects.
func (s *signing) tls(b *testing.B) *tls.Config {
	b.Helper()
	config, err := pki.ClientTLS(s.ca, s.cert, s.key, "", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	return config
}

// fill writes into etcd what dkimd reads of domains when it signs: each domain, its
// status and its sealed key, and when the controller is to look at it, in a month. They are
// copies of one that the store made, but for the sealing, which is bound to the name; a few
// keys are shared by all. There are no DNS records of them.
func (s *signing) fill(b *testing.B) {
	b.Helper()
	done := filepath.Join(s.dir, "filled-"+strconv.Itoa(*signingDomains))
	if _, err := os.Stat(done); err == nil {
		return
	}
	client, err := etcdclient.Dial(etcdclient.Config{Endpoints: []string{s.etcdURL}}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	ctx := b.Context()
	store := keystore.New(client, time.Minute)
	keeper, err := envelope.OpenKeeper(ctx, "file://"+s.kek)
	if err != nil {
		b.Fatal(err)
	}
	defer keeper.Close()
	m := mint.New(fixedKeys{s.rsaPEM}, envelope.NewSealer(keeper, store))
	if _, err := store.CreateZone(ctx, keystore.Zone{Name: zone, Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.example.net"}}, Mailbox: "hostmaster.example.net",
	}}); err != nil {
		b.Fatal(err)
	}
	for _, brand := range []string{"acme", smallBrand} {
		if _, err := store.CreateBrand(ctx, keystore.Brand{Name: brand, Zone: zone, CreateTime: time.Now()}); err != nil {
			b.Fatal(err)
		}
	}
	newActive(b, store, m, smallBrand, rsaDomain, keypair.RSA2048)
	first := newActive(b, store, m, "acme", dnsname.Domain(edDomain(0)), keypair.Ed25519)
	if err := s.copies(ctx, client, m, first); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		b.Fatal(err)
	}
}

// fixedKeys makes keys, and writes those of RSA into a file.
type fixedKeys struct{ rsaPEM string }

func (k fixedKeys) Get(_ context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	pair, err := keypair.Generate(a)
	if err != nil || a != keypair.RSA2048 {
		return pair, err
	}
	return pair, writePEM(k.rsaPEM, pair)
}

// newActive makes a domain with a key that signs, and all evidence.
func newActive(b *testing.B, store *keystore.Store, m *mint.Mint, brand string, name dnsname.Domain, a keypair.Algorithm) keystore.Domain {
	b.Helper()
	now := time.Now()
	d := keystore.Domain{Brand: brand, Name: name, Zone: zone, CreateTime: now, UpdateTime: now, Selectors: []keystore.Selector{{Selector: "selector1", Algorithm: a}}}
	c, err := m.Change(b.Context(), d, []rotation.Step{{Kind: rotation.Refill, Selector: "selector1", Algorithm: a}}, mint.Options{Now: now, Actor: "bench", TTL: 3600})
	if err != nil {
		b.Fatal(err)
	}
	k := &c.Domain.Keys[0]
	k.State, k.ActivateTime = rotation.Active, now
	c.Publish[0].Key = *k
	seen := rotation.Observation{Finding: rotation.Proven, Since: now, CheckTime: now}
	c.Status = &keystore.Status{
		Brand: brand, Domain: name, Served: map[string]rotation.Observation{k.ID: seen}, Aliases: map[dnsname.Selector]rotation.Observation{"selector1": seen},
	}
	c.Due = now.Add(30 * 24 * time.Hour)
	stored, err := store.Apply(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	return stored
}

// copies writes the copies of a domain.
func (s *signing) copies(ctx context.Context, client *clientv3.Client, m *mint.Mint, first keystore.Domain) error {
	id := first.Keys[0].ID
	values := make(map[string]string)
	for _, key := range []string{schema.DomainKey("acme", edDomain(0)), schema.StatusKey("acme", edDomain(0))} {
		resp, err := client.Get(ctx, key)
		if err != nil || len(resp.Kvs) != 1 {
			return fmt.Errorf("%s: %w", key, err)
		}
		values[key] = string(resp.Kvs[0].Value)
	}
	due, err := client.Get(ctx, schema.DuePrefix(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || len(due.Kvs) == 0 {
		return fmt.Errorf("no due entry: %w", err)
	}
	at, _, _, _ := schema.ParseDueKey(string(due.Kvs[0].Key))
	const perTxn = 32
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for from := 1; from < *signingDomains; from += perTxn {
		group.Go(func() error {
			var ops []clientv3.Op
			for i := from; i < min(from+perTxn, *signingDomains); i++ {
				d := first
				d.Name = dnsname.Domain(edDomain(i))
				pair, err := somePair(i)
				if err != nil {
					return err
				}
				sealed, err := m.Seal(ctx, d, id, pair)
				if err != nil {
					return err
				}
				ops = append(ops,
					clientv3.OpPut(schema.DomainKey("acme", edDomain(i)), values[schema.DomainKey("acme", edDomain(0))]),
					clientv3.OpPut(schema.StatusKey("acme", edDomain(i)), values[schema.StatusKey("acme", edDomain(0))]),
					clientv3.OpPut(schema.SealedKeyKey("acme", edDomain(i), id), string(sealed)),
					clientv3.OpPut(schema.DueKey(at, "acme", edDomain(i)), ""))
			}
			_, err := client.Txn(ctx).Then(ops...).Commit()
			return err
		})
	}
	return group.Wait()
}
