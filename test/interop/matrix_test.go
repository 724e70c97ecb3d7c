//go:build interop

package interop_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

// exception is something that a program cannot do by itself. What is empty is
// any.
type exception struct {
	signer, verifier, message string
	algorithm                 dkimv1.KeyAlgorithm
	unsigned                  bool // there is no signature to verify
	reason                    string
}

func (e exception) covers(c cell) bool {
	return (e.signer == "" || e.signer == c.signer) && (e.verifier == "" || e.verifier == c.verifier) &&
		(e.message == "" || e.message == c.message) && (e.algorithm == 0 || e.algorithm == c.algorithm)
}

// exceptions are all there are: each must be needed, and no other one.
var exceptions = []exception{
	{
		signer: "OpenDKIM, agent", algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519, unsigned: true,
		reason: "OpenDKIM signs with one algorithm: Ed25519 beside RSA keys is left out of its tables",
	},
	{
		signer: "rspamd, agent", algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519, unsigned: true,
		reason: "rspamd 3.4 reads no Ed25519 keys in PEM: they are left out of its tables",
	},
	{
		verifier: "Mail::DKIM", algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519,
		reason: "Mail::DKIM 1.20230212 of Debian 12 has no ed25519-sha256",
	},
}

// cell is a signature that a program made, and another is to verify.
type cell struct {
	signer, verifier, message string
	algorithm                 dkimv1.KeyAlgorithm
}

// signingProgram signs mail.
type signingProgram struct {
	name string
	sign func(ctx context.Context, domain, message string) (string, error)
}

// verifyingProgram verifies mail, one after the other.
type verifyingProgram struct {
	name   string
	verify func(ctx context.Context, message string) ([]verdict, error)
}

// verdict is what a verifier says of a signature.
type verdict struct {
	Domain   string `json:"domain"`
	Selector string `json:"selector"`
	Pass     bool   `json:"pass"`
	Detail   string `json:"detail"`
}

// noVerdict is the detail where a verifier says nothing of a signature.
const noVerdict = "it does not see the signature"

// signedMail is a message with the signatures that it is to have.
type signedMail struct {
	signer, domain, message string
	keys                    []*dkimv1.SigningKey
	text                    string
	err                     error // it could not be signed
}

// matrixSenders are domains with all kinds of keys.
func matrixSenders() []*sender {
	const rsa, rsa4096, ed = dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048, dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_4096, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519
	return []*sender{
		{brand: "acme", name: "rsa.dk"},
		{brand: "acme", name: "rsa4096.dk", specs: specs(rsa4096, "selector1", "selector2")},
		{brand: "acme", name: "ed.dk", specs: specs(ed, "ed1", "ed2")},
		{brand: "acme", name: "both.dk", specs: append(specs(rsa, "rsa1", "rsa2"), specs(ed, "ed1", "ed2")...)},
		{brand: "acme", name: "default.dk", bare: true},
		{brand: "shop", name: "shared.dk"},
	}
}

// bigDomain is the one whose 10 MB are signed, once by each signer.
const bigDomain = "both.dk"

// matrix is the state of TestMatrix.
type matrix struct {
	*life
	signers   []signingProgram
	verifiers []verifyingProgram
	mails     []*signedMail

	mu      sync.Mutex
	passed  map[[2]string]int // by signer and verifier
	all     map[[2]string]int
	refused map[string]int // tampered signatures, by verifier
	excused []int          // by exception
}

// TestMatrix has mail of every shape signed by every signer with keys of every
// kind, and verified by every verifier, through an unbound that follows the
// customers' CNAMEs.
func TestMatrix(t *testing.T) {
	all := matrixSenders()
	var zones []string
	for _, s := range all {
		zones = append(zones, s.name)
	}
	resolver := net.JoinHostPort(harness.Host(), "53") // resolv.conf has no ports
	site := newSite(t, resolver, 24*time.Hour, zones)
	m := &matrix{
		life:   &life{t: t, lifeSite: site, all: all, post: &post{t: t, site: site, lastUse: make(map[string]time.Time)}},
		passed: make(map[[2]string]int), all: make(map[[2]string]int), refused: make(map[string]int), excused: make([]int, len(exceptions)),
	}
	m.provision()
	m.verifiers = startVerifiers(t, m)
	keys := make(map[string][]*dkimv1.SigningKey)
	for _, s := range all {
		want := ownKey
		if s.bare {
			want = (*dkimv1.ResolveSigningKeysResponse).GetFallback
		}
		m.waitSigning(t.Context(), s, "signs", 5*time.Minute, want)
		resp, err := m.resolve(t.Context(), s)
		m.must(err)
		keys[s.name] = resp.GetKeys()
	}
	m.signers = startSigners(t, m)

	begin := time.Now()
	m.sign(t.Context(), keys)
	t.Logf("%d messages signed in %s", len(m.mails), time.Since(begin).Round(time.Second))
	begin = time.Now()
	var running sync.WaitGroup
	for _, v := range m.verifiers {
		running.Go(func() { m.verify(t.Context(), v) })
	}
	running.Wait()
	logVersions(t)
	t.Logf("verified in %s", time.Since(begin).Round(time.Second))
	m.print()
	m.arc(t, keys)
}

// sign has all messages signed.
func (m *matrix) sign(ctx context.Context, keys map[string][]*dkimv1.SigningKey) {
	for _, s := range m.signers {
		for _, domain := range slices.Sorted(maps.Keys(keys)) {
			texts := matrixMails(domain)
			for _, name := range slices.Sorted(maps.Keys(texts)) {
				if name == msgBig && domain != bigDomain {
					continue
				}
				text, err := s.sign(ctx, domain, texts[name])
				mail := &signedMail{s.name, domain, name, keys[domain], text, err}
				m.mails = append(m.mails, mail)
				if name == msgPlain {
					m.mails = append(m.mails, &signedMail{s.name, domain, msgTampered, keys[domain], tampered(text), err})
				}
			}
		}
	}
}

// verify has a program judge all messages.
func (m *matrix) verify(ctx context.Context, v verifyingProgram) {
	for _, mail := range m.mails {
		verdicts, err := []verdict(nil), mail.err
		if err == nil {
			verdicts, err = v.verify(ctx, mail.text)
		}
		if err == nil && len(verdicts) > len(mail.keys) {
			err = fmt.Errorf("%d signatures, want %d", len(verdicts), len(mail.keys))
		}
		for _, k := range mail.keys {
			c := cell{mail.signer, v.name, mail.message, k.GetAlgorithm()}
			got := verdict{Detail: noVerdict}
			for _, found := range verdicts {
				if found.Domain == k.GetDomain() && found.Selector == k.GetSelector() {
					got = found
				}
			}
			if err != nil {
				got.Pass, got.Detail = false, fmt.Sprintf("%s; %v", got.Detail, err)
			}
			m.count(c, mail, got)
		}
	}
}

// count notes a verdict, and fails the test if it is not as it should be.
func (m *matrix) count(c cell, mail *signedMail, got verdict) {
	m.mu.Lock()
	defer m.mu.Unlock()
	where := fmt.Sprintf("%s, %s, %s, %v, to %s", c.signer, mail.domain, c.message, c.algorithm, c.verifier)
	if c.message == msgTampered {
		if slices.ContainsFunc(exceptions, func(e exception) bool { return e.unsigned && e.covers(c) }) {
			return
		}
		if got.Pass || strings.HasPrefix(got.Detail, noVerdict) {
			m.t.Errorf("%s: of a changed message: pass %t: %s", where, got.Pass, got.Detail)
		}
		m.refused[c.verifier]++
		return
	}
	pair := [2]string{c.signer, c.verifier}
	m.all[pair]++
	excused := false
	for i, e := range exceptions {
		if e.covers(c) {
			excused = true
			m.excused[i]++
			if got.Pass {
				m.t.Errorf("%s: passes, although %s", where, e.reason)
			}
		}
	}
	if got.Pass {
		m.passed[pair]++
	} else if !excused {
		m.t.Errorf("%s: %s", where, got.Detail)
	}
}

// print shows the tables, and fails the test if an exception is not needed.
func (m *matrix) print() {
	m.t.Helper()
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(first string, cells func(v string) string) {
		fmt.Fprint(w, first, "\t")
		for _, v := range m.verifiers {
			fmt.Fprint(w, cells(v.name), "\t")
		}
		fmt.Fprintln(w)
	}
	line("", func(v string) string { return v })
	passed, all, refused := 0, 0, 0
	for _, s := range m.signers {
		line(s.name, func(v string) string {
			pair := [2]string{s.name, v}
			passed, all = passed+m.passed[pair], all+m.all[pair]
			return fmt.Sprintf("%d/%d", m.passed[pair], m.all[pair])
		})
	}
	line("tampered, refused", func(v string) string { refused += m.refused[v]; return fmt.Sprint(m.refused[v]) })
	_ = w.Flush() // into memory
	fmt.Fprintf(&out, "%d of %d signatures verified; %d of changed messages refused\n", passed, all, refused)
	for i, e := range exceptions {
		if m.excused[i] == 0 {
			m.t.Errorf("nothing is excused because %s", e.reason)
		}
		what := "any key"
		if e.algorithm != 0 {
			what = e.algorithm.String()
		}
		fmt.Fprintf(&out, "%d not: %s to %s, %s, %s: %s\n", m.excused[i],
			cmp.Or(e.signer, "any"), cmp.Or(e.verifier, "any"), cmp.Or(e.message, "any message"), what, e.reason)
	}
	m.t.Log("\n" + out.String())
}
