//go:build interop

package interop_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	clientv3 "go.etcd.io/etcd/client/v3"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

var wantMessages = flag.Int("messages", 3000, "how many messages TestSigners signs")

const (
	// signPause is how long each signer rests between messages, on average.
	signPause = 200 * time.Millisecond
	// retryLimit is how long a mail server tries to get a message signed.
	retryLimit = 2 * time.Minute
	allThere   = "nothing"
)

// errUnsigned says that a signer let a message pass without a signature. Another
// error is for the mail server to try again.
var errUnsigned = errors.New("it came back unsigned")

// way is a signer, with the mail server before it.
type way struct {
	name  string
	brand string // whose mail it signs; "": that of all but files
	sign  func(ctx context.Context, text string) (string, error)

	mu     sync.Mutex
	counts map[string]*count // by what was away when the message was first to be signed
}

// count counts messages, and what became of them.
type count struct {
	messages, again, unsigned int
	rsa, ed25519, fallback    int // signatures; messages by a brand's default key
	atOnce, later, failed     int // verifications
}

func (c *count) add(o *count) {
	c.messages, c.again, c.unsigned = c.messages+o.messages, c.again+o.again, c.unsigned+o.unsigned
	c.rsa, c.ed25519, c.fallback = c.rsa+o.rsa, c.ed25519+o.ed25519, c.fallback+o.fallback
	c.atOnce, c.later, c.failed = c.atOnce+o.atOnce, c.later+o.later, c.failed+o.failed
}

// signersRun is the state of TestSigners.
type signersRun struct {
	*life
	ways    []*way
	milters []*helper
	agent   *helper
	under   sync.WaitGroup // messages under way

	mu    sync.Mutex
	away  string         // what is, or allThere
	kills map[string]int // by what was killed
	seen  map[string]int // verifications, by what was away
}

// TestSigners has mail of all kinds of domains signed by all kinds of signers, while
// keys rotate and one dkimd, DNS node, etcd member, milter and agent after the
// other is killed. Each message is verified through a caching resolver twice, at once and up
// to 50 s later. None may fail, and none may go out unsigned.
func TestSigners(t *testing.T) {
	const rsa, ed = dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519
	mail := []*sender{
		{brand: "acme", name: "rsa.dk", specs: specs(rsa, "selector1", "selector2")},
		{brand: "acme", name: "three.dk", specs: specs(rsa, "a", "b", "c")},
		{brand: "acme", name: "ed.dk", specs: specs(ed, "ed1", "ed2")},
		{brand: "acme", name: "ed-three.dk", specs: specs(ed, "ed1", "ed2", "ed3")},
		{brand: "acme", name: "both.dk", specs: append(specs(rsa, "rsa1", "rsa2"), specs(ed, "ed1", "ed2")...)},
		{brand: "acme", name: "bare.dk", bare: true},
		{brand: "shop", name: "shared-one.dk"},
		{brand: "shop", name: "shared-two.dk"},
		{brand: "plain", name: "default.dk"},
		// What signs from files may use a key for ten minutes after its rotation, so
		// these rotate seldom.
		{brand: "files", name: "files.dk", specs: specs(rsa, "selector1", "selector2")},
		{brand: "files", name: "files-three.dk", specs: specs(rsa, "a", "b", "c")},
	}
	var zones []string
	for _, s := range mail {
		zones = append(zones, s.name)
	}
	site := newLifeSite(t, zones)
	r := &signersRun{
		life: &life{t: t, lifeSite: site, all: mail, post: &post{t: t, site: site, lastUse: make(map[string]time.Time)}},
		away: allThere, kills: make(map[string]int), seen: make(map[string]int),
	}
	r.provision()
	for _, s := range mail {
		r.waitSigning(t.Context(), s, "is signed with the key it is to have", 6*time.Minute, func(resp *dkimv1.ResolveSigningKeysResponse) bool {
			return len(resp.GetKeys()) == s.signatures() && resp.GetFallback() == s.bare
		})
	}
	ctx, stop := context.WithTimeout(t.Context(), lifeLimit)
	defer stop()
	r.ways = r.startSigners(ctx)

	begin := time.Now()
	var running, sending sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { r.breakThings(ctx) })
	running.Go(func() { r.ask(ctx, rand.New(rand.NewPCG(1, 1))) })
	for i, w := range r.ways {
		share := *wantMessages / len(r.ways)
		if i < *wantMessages%len(r.ways) {
			share++
		}
		from := slices.DeleteFunc(slices.Clone(mail), func(s *sender) bool {
			return s.brand == "files" != (w.brand == "files")
		})
		sending.Go(func() { r.send(ctx, w, share, from, rand.New(rand.NewPCG(2, uint64(i)))) })
	}
	sending.Wait()
	took := time.Since(begin)
	r.under.Wait()
	stop()
	running.Wait()
	r.tell(took)
}

// signatures is how many the mail of a domain has.
func (s *sender) signatures() int {
	kinds := make(map[dkimv1.KeyAlgorithm]bool)
	for _, spec := range s.specs {
		kinds[spec.GetAlgorithm()] = true
	}
	return max(1, len(kinds))
}

// present is what is away now.
func (r *signersRun) present() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.away
}

// send is a mail server that sends so many messages.
func (r *signersRun) send(ctx context.Context, w *way, messages int, from []*sender, rng *rand.Rand) {
	for n := range messages {
		if !pause(ctx, signPause/2+time.Duration(rng.Int64N(int64(signPause)))) {
			r.t.Errorf("%s: only %d of %d messages in time", w.name, n, messages)
			return
		}
		s := from[rng.IntN(len(from))]
		text := letter(s.name, n, rng)
		began, phase := time.Now(), r.present()
		c := &count{messages: 1}
		signed, err := w.sign(ctx, text)
		for ; err != nil && !errors.Is(err, errUnsigned) && time.Since(began) < retryLimit && ctx.Err() == nil; signed, err = w.sign(ctx, text) {
			c.again++
			pause(ctx, 100*time.Millisecond+time.Duration(rng.Int64N(int64(400*time.Millisecond))))
		}
		switch {
		case errors.Is(err, errUnsigned):
			c.unsigned = 1
			r.t.Logf("%s: mail of %s went out unsigned at %s while %s was away: %v", w.name, s.name, time.Now().Format(time.TimeOnly), phase, err)
		case err != nil:
			r.t.Errorf("%s: mail of %s was not signed for %s: %v", w.name, s.name, time.Since(began), err)
			c.unsigned = 1
		default:
			c.rsa, c.ed25519 = strings.Count(signed, "a=rsa-sha256"), strings.Count(signed, "a=ed25519-sha256")
		}
		w.note(phase, c)
		if c.unsigned > 0 {
			continue
		}
		at, delay := time.Now(), lifeUnderWay // every fourth at the last moment
		if rng.IntN(4) > 0 {
			delay = time.Duration(rng.Int64N(int64(lifeUnderWay)))
		}
		r.under.Go(func() {
			c := &count{}
			if r.receive(w, s, signed, at, &c.fallback) {
				c.atOnce++
			} else {
				c.failed++
			}
			w.note(phase, c)
			pause(context.Background(), delay)
			c = &count{}
			if r.receive(w, s, signed, at, new(int)) {
				c.later++
			} else {
				c.failed++
			}
			w.note(phase, c)
		})
	}
}

func (w *way) note(phase string, c *count) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.counts[phase] == nil {
		w.counts[phase] = &count{}
	}
	w.counts[phase].add(c)
}

// letter is a message of a domain, no two alike.
func letter(domain string, n int, rng *rand.Rand) string {
	var b strings.Builder
	fmt.Fprintf(&b, "From: Jo <jo@%s>\r\nTo: you@example.org\r\nSubject: letter %d,\r\n\tfolded\r\nDate: %s\r\nMessage-ID: <%x@%s>\r\n\r\n",
		domain, n, time.Now().Format(time.RFC1123Z), rng.Uint64(), domain)
	for range rng.IntN(40) {
		fmt.Fprintf(&b, "%x  and\tmore \r\n", rng.Uint64())
	}
	for range rng.IntN(3) {
		b.WriteString("\r\n")
	}
	return b.String()
}

// receive verifies a message as a receiver does, and reports whether all of its
// signatures are there and good. fallback becomes 1 if they are by a default key.
func (r *signersRun) receive(w *way, s *sender, signed string, at time.Time, fallback *int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	phase := r.present()
	r.mu.Lock()
	r.seen[phase]++
	r.mu.Unlock()
	results, err := dkim.VerifyWithOptions(strings.NewReader(signed), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) { return r.lookup(ctx, name) },
	})
	for _, v := range results {
		if err == nil {
			err = v.Err
		}
		if err == nil && v.Domain != s.name && v.Domain != s.brand+"."+zone {
			err = fmt.Errorf("d=%s", v.Domain)
		}
		if v.Domain != s.name {
			*fallback = 1
		}
	}
	if want := s.signatures(); err == nil && *fallback == 0 && len(results) != want {
		err = fmt.Errorf("%d signatures, want %d", len(results), want)
	}
	if err == nil && len(results) > 0 {
		return true
	}
	head, _, _ := strings.Cut(signed, "\r\nFrom:")
	r.t.Errorf("%s: mail of %s, signed at %s, verified %s later while %s was away: %v\n%s",
		w.name, s.name, at.Format(time.TimeOnly), time.Since(at).Round(time.Millisecond), phase, err, head)
	return false
}

// breakThings kills one thing after the other and starts it again, until ctx ends.
// All is there then.
func (r *signersRun) breakThings(ctx context.Context) {
	etcd := r.etcd.Client(r.t, "root")
	rng := rand.New(rand.NewPCG(3, 3))
	for i := 0; pause(ctx, 2*time.Second+time.Duration(rng.Int64N(int64(4*time.Second)))); i++ {
		var what, which string
		var kill, again func()
		second := i / 5 % 2 // the other one, in every second round
		switch i % 5 {
		case 0:
			d := r.dkimd[second]
			what, which, kill = "a dkimd", d.name, d.Kill
			again = func() {
				d.start(r.t)
				harness.Eventually(r.t, limit, d.name+" is ready", func() error { _, err := d.get(context.Background(), "/readyz"); return err })
			}
		case 1:
			n := r.nodes[second]
			what, which, kill = "a DNS node", n.server.name, n.Kill
			again = func() {
				n.start(r.t)
				harness.Eventually(r.t, limit, which+" serves", func() error { _, err := n.server.soa(context.Background()); return err })
			}
		case 2:
			leader := r.leader(etcd)
			m := (leader + second) % len(r.etcd.Members)
			what, which, kill = "an etcd member", r.etcd.Members[m].URL, r.etcd.Members[m].Process.Kill
			if second == 0 {
				which += ", the leader"
			}
			again = func() {
				r.etcd.Start(r.t, m)
				harness.Eventually(r.t, limit, which+" answers", func() error { _, err := member(etcd, r.etcd.Members[m].URL); return err })
			}
		case 3:
			w := r.milters[second]
			what, which, kill, again = "a milter", w.name, func() { w.Kill() }, func() { w.start(r.t) }
		case 4:
			what, which, kill, again = "an agent", "that of OpenDKIM", func() { r.agent.Kill() }, func() { r.agent.start(r.t) }
		}
		away := 500*time.Millisecond + time.Duration(rng.Int64N(int64(3500*time.Millisecond)))
		r.mu.Lock()
		r.away = what
		r.kills[what]++
		r.mu.Unlock()
		r.t.Logf("killed %s, %s, for %s", what, which, away.Round(time.Millisecond))
		kill()
		pause(ctx, away)
		again()
		r.mu.Lock()
		r.away = allThere
		r.mu.Unlock()
	}
}

// leader is the index of the etcd member that leads.
func (r *signersRun) leader(client *clientv3.Client) (leader int) {
	r.t.Helper()
	harness.Eventually(r.t, limit, "an etcd member leads", func() error {
		leader = slices.IndexFunc(r.etcd.Members, func(m *harness.Member) bool {
			leads, err := member(client, m.URL)
			return err == nil && leads
		})
		if leader < 0 {
			return errors.New("none says so")
		}
		return nil
	})
	return leader
}

// member asks an etcd member whether it leads. One that follows nobody is an error.
func member(client *clientv3.Client, url string) (leads bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	st, err := client.Status(ctx, url)
	if err == nil && st.Leader == 0 {
		err = errors.New("it has no leader")
	}
	return err == nil && st.Leader == st.Header.MemberId, err
}

// tell shows what happened, and fails the test if something is missing in it.
func (r *signersRun) tell(took time.Duration) {
	r.t.Helper()
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	columns := "messages\ttried again\tunsigned\tRSA\tEd25519\tby default key\tgood at once\tgood later\tfailed\t"
	row := func(name string, c count) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, c.messages, c.again, c.unsigned, c.rsa, c.ed25519, c.fallback, c.atOnce, c.later, c.failed)
	}
	var sum count
	phases := make(map[string]*count)
	fmt.Fprintln(w, "signer\t"+columns)
	for _, way := range r.ways {
		var all count
		for phase, c := range way.counts {
			all.add(c)
			if phases[phase] == nil {
				phases[phase] = &count{}
			}
			phases[phase].add(c)
		}
		row(way.name, all)
		sum.add(&all)
	}
	row("all", sum)
	_ = w.Flush() // into memory
	fmt.Fprintln(w, "\nwhile away\t"+columns+"verified then\tkills\t")
	for _, phase := range []string{allThere, "a dkimd", "a DNS node", "an etcd member", "a milter", "an agent"} {
		c := phases[phase]
		if c == nil || phase != allThere && r.kills[phase] == 0 {
			r.t.Errorf("no message was signed while %s was away", phase)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", phase, c.messages, c.again, c.unsigned, c.rsa, c.ed25519, c.fallback,
			c.atOnce, c.later, c.failed, r.seen[phase], r.kills[phase])
	}
	_ = w.Flush() // into memory
	rotations, failovers := 0, 0
	for _, s := range r.all {
		for _, g := range r.changes(r.t.Context(), s) {
			rotations, failovers = rotations+g.rotations, failovers+g.failovers
		}
	}
	r.t.Logf("%d rotations and %d failovers; messages for %s\n%s", rotations, failovers, took.Round(time.Second), out.String())
	switch {
	case sum.messages != *wantMessages:
		r.t.Errorf("%d messages, want %d", sum.messages, *wantMessages)
	case sum.unsigned > 0:
		r.t.Errorf("%d messages went out unsigned", sum.unsigned)
	case sum.atOnce+sum.later+sum.failed != 2*sum.messages:
		r.t.Errorf("%d verifications of %d messages", sum.atOnce+sum.later+sum.failed, sum.messages)
	case rotations == 0:
		r.t.Error("no key was rotated")
	}
}
