package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"google.golang.org/protobuf/testing/protocmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t)
	s.ctl(t, "brand", "create", "acme")
	s.ctl(t, "brand", "create", "other")
	watch := watchDomains(t, s)

	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--wait", "--algorithm", "ed25519")
	first := s.domain(t, "acme", "spamtrap.dk")
	checkStates(t, first, dkimv1.KeyState_KEY_STATE_PREPARED, dkimv1.KeyState_KEY_STATE_PREPARED)
	records := served(t, s, first)

	// Nothing signs without proof, and nobody has added CNAMEs. A rotation that is
	// asked for waits for them, and changes nothing of what is served.
	checkFailed(t, s.run(t, "domain", "rotate", "acme", "spamtrap.dk"), 1, "[STANDBY_NOT_PROVEN]")
	s.ctl(t, "domain", "rotate", "acme", "spamtrap.dk", "--when-ready", "--wait")
	rotated := s.domain(t, "acme", "spamtrap.dk")
	if rotated.GetRotationRequestTime() == nil {
		t.Error("the rotation is not asked for")
	}
	checkStates(t, rotated, dkimv1.KeyState_KEY_STATE_PREPARED, dkimv1.KeyState_KEY_STATE_PREPARED)
	if diff := cmp.Diff(records, served(t, s, rotated)); diff != "" {
		t.Errorf("what DNS serves (-before the rotation +after):\n%s", diff)
	}
	checkFailed(t, s.run(t, "domain", "delete", "acme", "spamtrap.dk", "--etag", first.GetEtag()), 1, "[ETAG_MISMATCH]")

	// Deleted, its names are gone, and stay reserved.
	s.ctl(t, "domain", "delete", "acme", "spamtrap.dk", "--etag", rotated.GetEtag(), "--wait")
	for name := range records {
		if resp, err := ask("udp", s.dns, name, dns.TypeTXT); err != nil || resp.Rcode != dns.RcodeNameError {
			t.Errorf("%s after the deletion: %v, %v; want NXDOMAIN", name, resp, err)
		}
	}
	checkFailed(t, s.run(t, "domain", "get", "acme", "spamtrap.dk"), 1, "[DOMAIN_NOT_FOUND]")
	checkFailed(t, s.run(t, "domain", "provision", "other", "spamtrap.dk"), 1, "[DOMAIN_RESERVED]")
	checkFailed(t, s.run(t, "key", "publish", "other", "spamtrap.dk", "mailer", "--public-key-file", seededFile(t)), 1, "[DOMAIN_RESERVED]")

	// The same brand takes it back, with new keys under the same names.
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--wait", "--algorithm", "ed25519")
	again := s.domain(t, "acme", "spamtrap.dk")
	checkStates(t, again, dkimv1.KeyState_KEY_STATE_PREPARED, dkimv1.KeyState_KEY_STATE_PREPARED)
	for name, record := range served(t, s, again) {
		if old, ok := records[name]; !ok || old == record {
			t.Errorf("%s serves %s, before the deletion it was %q; want a new key under the old name", name, record, old)
		}
	}

	if ev, err := watch.Recv(); err != nil || ev.GetDomain().GetKind() != dkimv1.DomainKind_DOMAIN_KIND_BRAND_DEFAULT {
		t.Fatalf("first event: %v, %v; want the brand's own keys", ev, err)
	}
	for i, want := range []*dkimv1.WatchDomainsResponse{
		{Type: dkimv1.WatchDomainsResponse_EVENT_TYPE_SYNCED},
		{Type: dkimv1.WatchDomainsResponse_EVENT_TYPE_PUT, Domain: first},
		{Type: dkimv1.WatchDomainsResponse_EVENT_TYPE_PUT, Domain: rotated},
		{Type: dkimv1.WatchDomainsResponse_EVENT_TYPE_DELETE, Domain: &dkimv1.Domain{Name: first.GetName()}},
		{Type: dkimv1.WatchDomainsResponse_EVENT_TYPE_PUT, Domain: again},
	} {
		got, err := watch.Recv()
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		ignore := append(notWatched(), protocmp.IgnoreFields(got, "resume_token"))
		if want.GetType() == dkimv1.WatchDomainsResponse_EVENT_TYPE_DELETE {
			ignore = append(ignore, protocmp.IgnoreFields(got.GetDomain(), "revision", "delete_time"))
		}
		if diff := cmp.Diff(want, got, ignore...); diff != "" {
			t.Errorf("event %d (-want +got):\n%s", i, diff)
		}
	}

	t.Run("from file", func(t *testing.T) { checkFromFile(t, s) })
}

// notWatched compares domains without what is seen and decided about them, which
// changes by itself.
func notWatched() []cmp.Option {
	return []cmp.Option{
		protocmp.Transform(),
		protocmp.IgnoreFields(&dkimv1.Domain{}, "effective_rotation_policy", "conditions", "next_rotation_time", "next_check_time"),
		protocmp.IgnoreFields(&dkimv1.Selector{}, "cname_check", "record_check"),
	}
}

func watchDomains(t *testing.T, s *standalone) interface {
	Recv() (*dkimv1.WatchDomainsResponse, error)
} {
	t.Helper()
	stream, err := s.api(t).WatchDomains(deadline(t), &dkimv1.WatchDomainsRequest{Parent: "brands/acme"})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func checkStates(t *testing.T, d *dkimv1.Domain, want ...dkimv1.KeyState) {
	t.Helper()
	var got []dkimv1.KeyState
	for _, sel := range d.GetSelectors() {
		got = append(got, sel.GetKeyState())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states of %s (-want +got):\n%s", d.GetName(), diff)
	}
}

// served is the records of a domain's selectors as DNS serves them.
func served(t *testing.T, s *standalone, d *dkimv1.Domain) map[string]string {
	t.Helper()
	records := make(map[string]string)
	for _, sel := range d.GetSelectors() {
		records[sel.GetCnameTarget()] = strings.Join(mustTXT(t, "udp", s.dns, sel.GetCnameTarget()), "")
	}
	return records
}

func seededFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "public")
	if err := os.WriteFile(file, []byte(seededKey), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// checkFromFile provisions domains from a file, interrupted once by Ctrl-C and
// once by a kill.
func checkFromFile(t *testing.T, s *standalone) {
	t.Helper()
	const total = 800 // so many that it is not over before it is interrupted
	file := filepath.Join(t.TempDir(), "domains")
	var text strings.Builder
	for i := range total {
		fmt.Fprintf(&text, "d%d.example # customer %d\n", i, i)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ctl(t, "brand", "create", "bulk")
	command := []string{"domain", "provision", "bulk", "--from-file", file, "--algorithm", "ed25519", "--parallel", "1"}
	// started runs the command until so many domains are done.
	started := func(least int) *harness.Process {
		t.Helper()
		p := harness.Start(t, "dkimctl", harness.Dkimctl, []string{"DKIMCTL_CONFIG=" + s.config}, command...)
		harness.Eventually(t, callLimit, "some domains are done", func() error {
			done, err := os.ReadFile(file + ".done")
			if n := strings.Count(string(done), "\n") - 1; err == nil && n < least { // the first line is a title
				err = fmt.Errorf("%d domains", n)
			}
			return errors.Join(err, p.Running())
		})
		return p
	}

	p := started(20)
	p.Interrupt()
	if code := p.Exit(t, stopLimit); code != 1 || !strings.Contains(p.Output(), "run the same command again to go on") {
		t.Errorf("interrupted: exit code %d, %q", code, p.Output())
	}
	interrupted := domains(t, s)
	if len(interrupted) < 20 || len(interrupted) >= total {
		t.Fatalf("%d domains were there at the interruption", len(interrupted))
	}
	started(len(interrupted) + 20).Kill()

	out := s.ctl(t, append(command, "--wait")...)
	if !strings.HasPrefix(out, fmt.Sprintf("%d domains are provisioned, ", total)) {
		t.Errorf("the last run printed %q", out)
	}
	if _, err := os.Stat(file + ".done"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state is still there: %v", err)
	}
	all := domains(t, s)
	if len(all) != total {
		t.Errorf("%d domains are there, want %d", len(all), total)
	}
	for name, before := range interrupted {
		if diff := cmp.Diff(before, all[name], notWatched()...); diff != "" {
			t.Errorf("%s was made twice (-first +second):\n%s", name, diff)
		}
	}
	for _, d := range all {
		served(t, s, d)
	}
}

// domains is all domains of the brand bulk, by name.
func domains(t *testing.T, s *standalone) map[string]*dkimv1.Domain {
	t.Helper()
	found := make(map[string]*dkimv1.Domain)
	req := &dkimv1.ListDomainsRequest{Parent: "brands/bulk", Filter: "kind = CUSTOMER", PageSize: 150}
	for {
		resp, err := s.api(t).ListDomains(deadline(t), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range resp.GetDomains() {
			found[d.GetName()] = d
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return found
		}
	}
}
