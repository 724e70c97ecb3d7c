package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

// The parts of a larger installation as processes of their own, which fail one
// after the other.
func TestCluster(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	root := in.etcd.Client(t, "root")

	// Either dkimd provisions, both DNS nodes serve it when --wait returns.
	in.dkimd[0].ctl(t, "brand", "create", "acme")
	in.dkimd[0].ctl(t, "domain", "provision", "acme", "one.example", "--wait")
	in.checkSame(t, "acme", "one.example")
	in.dkimd[1].ctl(t, "domain", "provision", "acme", "two.example", "--wait", "--algorithm", "ed25519")
	in.checkSame(t, "acme", "two.example")

	t.Run("refusals", func(t *testing.T) {
		api := in.api(t, 0)
		seedRefusals(t, api)
		checkRefusals(t, api, func() string { return dump(t, root) })
		checkStrangers(t, in.admin, in.dkimd[0].grpc, in.dkimd[0].http)
		user := tlsConfig(t, in.etcd.PKI.Client(t, "dns", "etcd"))
		_, err := dial(t, in.dkimd[0].grpc, user).ListZones(deadline(t), &dkimv1.ListZonesRequest{})
		checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
	})
	t.Run("access to etcd", func(t *testing.T) { checkAccess(t, in) })

	// A member that hangs, with its connections open, is given up after a while.
	in.etcd.Members[1].Process.Pause()
	in.dkimd[0].provisionEventually(t, "hang.example")
	in.checkSame(t, "acme", "hang.example")
	in.etcd.Members[1].Process.Resume()

	// One etcd member and one dkimd are killed: the other goes on.
	in.etcd.Members[0].Process.Kill()
	in.dkimd[0].Kill()
	in.dkimd[1].provisionEventually(t, "three.example")
	in.checkSame(t, "acme", "three.example")

	t.Run("without etcd", func(t *testing.T) { checkWithoutEtcd(t, in) })

	// A dkimd starts without etcd. One with another key-encryption key does too,
	// as nobody can tell yet.
	in.dkimd[0].launch(t)
	wrong := in.newDkimd(t, "dkimd3", in.etcd.PKI.KEK(t))
	wrong.launch(t)
	in.dkimd[0].waitUnready(t, "\nsigning: what signs is not loaded yet: ")
	wrong.waitUnready(t, "etcd: ")
	vault := &http.Client{Transport: &http.Transport{TLSClientConfig: trusting(t, in.admin.CA), DisableKeepAlives: true}}
	resp, err := vault.Get("https://" + in.dkimd[0].http + "/vault/v1/sys/health")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("health of the Vault of one that has not listed what signs: %s, want 503", resp.Status)
	}

	// All is there again: what was away catches up, and the serials agree.
	for i := range in.etcd.Members {
		in.etcd.Start(t, i)
	}
	in.startNode(t, 0) // the subtest's has ended with it
	for _, d := range in.dkimd {
		d.waitReady(t)
	}
	t.Run("wrong key-encryption key", func(t *testing.T) { checkWrongKey(t, wrong, root) })
	in.dkimd[0].provisionEventually(t, "four.example") // the members may still elect another leader
	in.dkimd[1].ctl(t, "domain", "delete", "acme", "two.example", "--yes", "--wait")
	for _, d := range []string{"one.example", "three.example", "four.example"} {
		in.checkSame(t, "acme", d)
	}
	for _, n := range in.nodes {
		waitRcode(t, n.dns, "selector1-two-example._domainkey."+zone, dns.RcodeNameError)
	}
	in.checkSerials(t)
	t.Run("secrets", func(t *testing.T) { checkSecrets(t, in) })

	for _, d := range in.dkimd {
		stop(t, d.Process)
	}
	for _, n := range in.nodes {
		stop(t, n.Process)
	}
}

// provisionEventually provisions a domain while etcd may have no leader, and waits
// until all DNS nodes serve it.
func (d *dkimd) provisionEventually(t *testing.T, domain string) {
	t.Helper()
	harness.Eventually(t, 2*startLimit, d.name+" provisions "+domain, func() error {
		if r := d.run(t, "domain", "provision", "acme", domain, "--wait", "--algorithm", "ed25519"); r.Code != 0 {
			return errors.New(r.Stderr)
		}
		return nil
	})
}

// checkSame looks whether all DNS nodes serve the domain's keys as the API
// shows them, and the same serial.
func (in *installation) checkSame(t *testing.T, brand, domain string) {
	t.Helper()
	up := slices.IndexFunc(in.dkimd, func(d *dkimd) bool { return d.Running() == nil })
	for _, sel := range in.dkimd[up].domain(t, brand, domain).GetSelectors() {
		k := in.dkimd[up].key(t, brand, domain, sel.GetSelector())
		for _, n := range in.nodes {
			checkServed(t, n.dns, k)
		}
	}
	in.checkSerials(t)
}

func (in *installation) checkSerials(t *testing.T) {
	t.Helper()
	harness.Eventually(t, startLimit, "equal serials", func() error {
		var serials []uint32
		for _, n := range in.nodes {
			serial, err := soaSerial(n.dns, zone)
			if err != nil {
				return err
			}
			serials = append(serials, serial)
		}
		if len(slices.Compact(serials)) > 1 {
			return fmt.Errorf("serials %v", serials)
		}
		return nil
	})
}

// checkWithoutEtcd kills what is left of etcd.
func checkWithoutEtcd(t *testing.T, in *installation) {
	t.Helper()
	names := []string{
		zone, "_domainkey." + zone, "no-such-name." + zone, in.nameServer(0),
		"selector1-one-example._domainkey." + zone, "selector2-one-example._domainkey." + zone,
		"selector1-two-example._domainkey." + zone, "selector1-three-example._domainkey." + zone,
		"selector1-four-example._domainkey." + zone,
	}
	n := in.nodes[0]
	before := answers(t, n.dns, names)
	in.etcd.Kill()

	// Answers go on, the node stays ready, and it knows that it may be behind.
	const staleness = `coredns_dkim_staleness_seconds{zone="keys.example.net."}`
	harness.Eventually(t, startLimit, "staleness rises", func() error {
		v, err := n.metric(t, staleness)
		if err == nil && v < 2 {
			err = fmt.Errorf("it is %v s", v)
		}
		return err
	})
	for _, n := range in.nodes {
		if after := answers(t, n.dns, names); after != before {
			t.Errorf("%s answered\n%s\nnow, without etcd,\n%s", n.name, before, after)
		}
		checkReady(t, n, http.StatusOK)
	}

	// Changes fail, in time and saying why.
	begin := time.Now()
	checkFailed(t, in.dkimd[1].run(t, "domain", "provision", "acme", "four.example"), 1, "[STORE_UNAVAILABLE]")
	if d := time.Since(begin); d > 15*time.Second {
		t.Errorf("a change without etcd took %v to fail", d)
	}
	in.dkimd[1].waitUnready(t, "etcd: ")
	if _, body, err := get(t, "http://"+in.dkimd[1].metrics+"/readyz"); err != nil || !strings.Contains(body, "\nsigning: ok\n") {
		t.Errorf("one that knows what signs no longer says so: %q, %v", body, err)
	}

	// A node that is restarted answers from its file.
	n.Kill()
	in.startNode(t, 0)
	if after := answers(t, n.dns, names); after != before {
		t.Errorf("%s answered\n%s\nnow, restarted without etcd,\n%s", n.name, before, after)
	}
	stop(t, n.Process)

	// One that never had any data says so, and does not deny anything.
	fresh := newNode(t, "fresh coredns")
	in.launch(t, fresh)
	harness.Eventually(t, startLimit, "the fresh node answers", func() error {
		_, err := ask("udp", fresh.dns, zone, dns.TypeSOA)
		return err
	})
	for _, name := range names {
		resp, err := ask("udp", fresh.dns, name, dns.TypeTXT)
		if err != nil || resp.Rcode != dns.RcodeServerFailure || !slices.Equal(extendedErrors(resp), []uint16{dns.ExtendedErrorCodeNotReady}) {
			t.Errorf("fresh node, %s: %v, %v; want SERVFAIL with extended error 14", name, resp, err)
		}
	}
	checkReady(t, fresh, http.StatusServiceUnavailable)
	if err := fresh.Running(); err != nil {
		t.Error(err)
	}
}

func checkReady(t *testing.T, n *node, want int) {
	t.Helper()
	if status, body, err := get(t, "http://"+n.ready+"/ready"); err != nil || status != want {
		t.Errorf("/ready of %s: %d %s, %v; want %d", n.name, status, body, err, want)
	}
}

func extendedErrors(m *dns.Msg) []uint16 {
	var found []uint16
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				found = append(found, e.InfoCode)
			}
		}
	}
	return found
}

// checkWrongKey looks at a dkimd that has another key-encryption key than the
// others: it must not encrypt anything with it.
func checkWrongKey(t *testing.T, d *dkimd, root *clientv3.Client) {
	t.Helper()
	const why = "the key-encryption key is not the one that the stored keys were wrapped with"
	d.waitUnready(t, why)
	before := dump(t, root)
	checkFailed(t, d.run(t, "brand", "create", "unlucky"), 1, "[INTERNAL]")
	checkFailed(t, d.run(t, "domain", "provision", "acme", "wrong.example", "--algorithm", "ed25519"), 1, "[INTERNAL]")
	if after := dump(t, root); after != before {
		t.Errorf("the store has changed (-before +after):\n%s", cmp.Diff(before, after))
	}
	stop(t, d.Process)

	d.launch(t)
	if code := d.Exit(t, startLimit); code != 1 || !strings.Contains(d.Output(), why) || strings.Count(d.Output(), "\n") != 1 {
		t.Errorf("started again: exit code %d, %q; want 1 and one line", code, d.Output())
	}
}

// dump is all of dkimzone in etcd, with the revisions of the last changes, but
// what the controller writes by itself.
func dump(t *testing.T, client *clientv3.Client) string {
	t.Helper()
	own := []string{schema.AllStatusPrefix(), schema.DuePrefix(), schema.LeaderPrefix()}
	var b strings.Builder
	for _, kv := range list(t, client, schema.Root) {
		if slices.ContainsFunc(own, func(prefix string) bool { return strings.HasPrefix(kv.key, prefix) }) {
			continue
		}
		fmt.Fprintf(&b, "%q %d %x\n", kv.key, kv.revision, kv.value)
	}
	return b.String()
}

type pair struct {
	key      string
	revision int64
	value    []byte
}

func list(t *testing.T, client *clientv3.Client, prefix string) []pair {
	t.Helper()
	resp, err := client.Get(deadline(t), prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	var all []pair
	for _, kv := range resp.Kvs {
		all = append(all, pair{string(kv.Key), kv.ModRevision, kv.Value})
	}
	return all
}

// checkAccess looks at what the certificate of a DNS node opens in etcd.
func checkAccess(t *testing.T, in *installation) {
	t.Helper()
	client := in.etcd.Client(t, "dns")
	if len(list(t, client, schema.PubPrefix)) == 0 {
		t.Error("it sees no public records")
	}
	apex := schema.ApexKey(zone)
	root := in.etcd.Client(t, "root")
	var private []string
	for _, kv := range list(t, root, schema.Root) {
		if !strings.HasPrefix(kv.key, schema.PubPrefix) {
			private = append(private, kv.key)
		}
	}
	for _, part := range []string{"priv/deks/", "priv/keys/", "meta/brands/", "meta/domains/", "meta/labels/", "meta/fingerprints/"} {
		if !slices.ContainsFunc(private, func(k string) bool { return strings.HasPrefix(k, schema.Root+part) }) {
			t.Errorf("nothing is stored under %s, so that the test says nothing about it", part)
		}
	}

	denied := func(what string, err error) {
		t.Helper()
		// A watch gives it within another error.
		if err == nil || !strings.Contains(err.Error(), rpctypes.ErrPermissionDenied.Error()) {
			t.Errorf("%s: %v, want %v", what, err, rpctypes.ErrPermissionDenied)
		}
	}
	ctx := deadline(t)
	for _, key := range private {
		_, err := client.Get(ctx, key)
		denied("read "+key, err)
	}
	for what, opts := range map[string][]clientv3.OpOption{
		"all":                    {clientv3.WithPrefix()},
		"from the public on":     {clientv3.WithFromKey()},
		"keys only":              {clientv3.WithPrefix(), clientv3.WithKeysOnly()},
		"count only":             {clientv3.WithPrefix(), clientv3.WithCountOnly()},
		"from a member's memory": {clientv3.WithPrefix(), clientv3.WithSerializable()},
	} {
		_, err := client.Get(ctx, schema.Root, opts...)
		denied("read "+what, err)
	}
	watch := func(key string, opts ...clientv3.OpOption) error {
		watched, cancel := context.WithCancel(ctx)
		defer cancel()
		resp := <-client.Watch(watched, key, opts...)
		return resp.Err()
	}
	for _, prefix := range []string{schema.Root, schema.Root + "priv/", schema.Root + "meta/"} {
		denied("watch "+prefix, watch(prefix, clientv3.WithPrefix()))
	}
	denied("watch a sealed key", watch(private[len(private)-1]))
	denied("watch from a public key on", watch(apex, clientv3.WithFromKey()))
	_, err := client.Put(ctx, apex, "x")
	denied("write the apex", err)
	_, err = client.Delete(ctx, schema.PubPrefix, clientv3.WithPrefix())
	denied("delete the public records", err)
	_, err = client.Txn(ctx).Then(clientv3.OpPut(schema.RecordKey(zone, "x._domainkey"), "x")).Commit()
	denied("write in a transaction", err)
	_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.Version(private[0]), ">", 0)).Then(clientv3.OpGet(apex)).Commit()
	denied("compare in a transaction", err)
	_, err = client.UserList(ctx)
	denied("list users", err)

	_, err = in.etcd.Client(t, "dkimd").Put(ctx, "/elsewhere", "x")
	denied("write outside of dkimzone as dkimd", err)
}
