// Command differential asks our name server and others the same questions about
// the same zone and compares the replies. Each difference must be one that
// docs/interop.md lists.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/dataset"
	"github.com/dkimzone/dkimzone/test/peers"
)

func main() {
	count := flag.Int("queries", 100_000, "how many questions")
	seed := flag.Uint64("seed", 1, "of the questions")
	dir := flag.String("dir", "build/differential", "working directory, emptied first")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *count, *seed, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "differential:", err)
		stop()
		os.Exit(1)
	}
}

// records is enough for every kind there is, many times.
const records = 2000

func run(ctx context.Context, count int, seed uint64, dir string) (err error) {
	if err := peers.Install(ctx, os.Stderr, "nsd", "knotd", "named", "pdns_server"); err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for name, pkg := range map[string]string{
		"coredns": "./cmd/coredns", "dkimd": "./cmd/dkimd", "dkimctl": "./cmd/dkimctl", "etcd": "go.etcd.io/etcd/server/v3",
	} {
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, name), pkg).CombinedOutput(); err != nil { //nolint:gosec // of the list above
			return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
	}
	etcd, err := peers.StartEtcd(ctx, filepath.Join(dir, "etcd"), filepath.Join(dir, "etcd.data"), -1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, etcd.Stop()) }()
	set := dataset.New(records)
	if _, err := set.Load(ctx, etcd.Client, true); err != nil {
		return err
	}
	src := peers.Source{Zone: dataset.Zone, Master: filepath.Join(dir, "zone")}
	if err := export(ctx, dir, etcd.URL, src.Zone, src.Master); err != nil {
		return err
	}
	ours := peers.CoreDNS("dkimzone", filepath.Join(dir, "coredns"), fmt.Sprintf("dkim {\nendpoint %s\n}\n", etcd.URL))
	servers := append([]peers.Server{ours}, peers.Peers(ctx)...)
	var addresses []string
	for i, s := range servers {
		p, err := start(ctx, filepath.Join(dir, fmt.Sprintf("server%d", i)), s, src, set.Owner(0)+"."+src.Zone)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Stop()) }()
		addresses = append(addresses, p.Addr)
	}
	return compare(ctx, servers, addresses, set, count, seed)
}

func start(ctx context.Context, dir string, s peers.Server, src peers.Source, name string) (*peers.Process, error) {
	if err := os.MkdirAll(filepath.Join(dir, "db"), 0o700); err != nil {
		return nil, err
	}
	port, err := peers.FreePort()
	if err != nil {
		return nil, err
	}
	if err := s.Prepare(ctx, dir, port, src); err != nil {
		return nil, err
	}
	return s.Run(ctx, dir, port, -1, name)
}

const (
	shown    = 3 // examples of a kind of difference
	deadline = 2 * time.Second
	attempts = 3
)

// compare asks and reports. It is an error if something differs that is not
// allowed.
func compare(ctx context.Context, servers []peers.Server, addresses []string, set dataset.Set, count int, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 0))
	client := dns.Client{Timeout: deadline, UDPSize: dns.MaxMsgSize}
	conns := make([]*dns.Conn, len(servers))
	for i, addr := range addresses {
		conn, err := client.DialContext(ctx, addr)
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // nothing is written any more
		conns[i] = conn
	}
	allowed, refused := make(map[string]int), make(map[string]int)
	for range count {
		q := generate(random, set)
		var first reply
		for i, s := range servers {
			m, err := ask(ctx, &client, conns[i], q)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", s.Name, q.text, err)
			}
			got := read(m)
			if i == 0 {
				first = got
				continue
			}
			for _, p := range parts {
				if got.text[p] == first.text[p] {
					continue
				}
				if reason := allow(s.Name, p, q, first, got); reason != "" {
					allowed[s.Name+": "+reason]++
					continue
				}
				kind := s.Name + ": " + string(p)
				if refused[kind]++; refused[kind] <= shown {
					fmt.Printf("%s differs\n  query %s\n  ours  %s\n  other %s\n", kind, q.text, first.text[p], got.text[p])
				}
			}
		}
	}
	fmt.Printf("%d questions, seed %d\n", count, seed)
	for _, counts := range []map[string]int{allowed, refused} {
		for _, kind := range slices.Sorted(maps.Keys(counts)) {
			fmt.Printf("%8d  %s\n", counts[kind], kind)
		}
	}
	if len(refused) > 0 {
		return errors.New("replies differ in what docs/interop.md does not list")
	}
	return nil
}

// ask sends a query, again if nothing comes back.
func ask(ctx context.Context, client *dns.Client, conn *dns.Conn, q query) (reply *dns.Msg, err error) {
	for range attempts {
		reply, _, err = client.ExchangeWithConnContext(ctx, q.Msg, conn)
		if err == nil {
			return reply, nil
		}
	}
	return nil, err
}
