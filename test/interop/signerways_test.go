//go:build interop

package interop_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"
	"github.com/emersion/go-msgauth/dkim"

	"github.com/dkimzone/dkimzone/signer"
	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

// startSigners starts all signers.
func (r *signersRun) startSigners(ctx context.Context) []*way {
	r.t.Helper()
	ways := []*way{
		{name: "rspamd, Vault face", sign: r.startRspamd()},
		{name: "milter, remote", sign: r.startMilter("milter-remote")},
		{name: "milter, local keys", sign: r.startMilter("milter-local", "--mode", "local")},
		{name: "Go client, remote", sign: r.startClient(ctx, "client-remote", signer.Options{})},
		{name: "Go client, watching", sign: r.startClient(ctx, "client-watching", signer.Options{Watch: true})},
		{name: "Go client, local keys", sign: r.startClient(ctx, "client-local", signer.Options{
			Watch: true, Local: true, Register: &signer.Registration{Lease: time.Minute}, ReportInterval: 3 * time.Second,
		})},
		{name: "OpenDKIM, agent", brand: "files", sign: r.startOpenDKIM()},
	}
	for _, w := range ways {
		w.counts = make(map[string]*count)
	}
	return ways
}

// balancer is the configuration of HAProxy in docs/signers.md.
const balancer = `defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 3s
    retries 3
    option redispatch 1
    retry-on all-retryable-errors
frontend vault
    bind 127.0.0.1:8200
    http-request deny unless METH_GET { path_beg /vault/v1/ }
    default_backend dkimd
backend dkimd
    option httpchk GET /vault/v1/sys/health
    default-server check inter 1s ssl ca-file /etc/dkimzone/ca.crt verify required
    server dkimd1 dkimd1.example.net:9080 verifyhost dkimd1.example.net
    server dkimd2 dkimd2.example.net:9080 verifyhost dkimd2.example.net
`

// startRspamd starts an rspamd that reads its keys through a balancer.
func (r *signersRun) startRspamd() func(context.Context, string) (string, error) {
	r.t.Helper()
	doc, err := os.ReadFile("../../docs/signers.md")
	if err != nil || !strings.Contains(string(doc), balancer) {
		r.t.Errorf("docs/signers.md does not have this: %v\n%s", err, balancer)
	}
	vault := harness.Addr(r.t)
	config := strings.NewReplacer("127.0.0.1:8200", vault, "/etc/dkimzone/ca.crt", r.etcd.PKI.Client(r.t, "haproxy", "signer").CA,
		"dkimd1.example.net:9080", r.dkimd[0].http, "dkimd2.example.net:9080", r.dkimd[1].http).Replace(balancer)
	harness.StartSystem(r.t, "/usr/sbin/haproxy", "-db", "-f", write(r.t, filepath.Join(r.t.TempDir(), "haproxy.cfg"), config))
	settings := documented(r.t, "use_vault", "https://dkimd1.example.net:9080", "http://"+vault, "dkz_…", r.signerToken("rspamd"))
	addr := mta.StartRspamd(r.t, r.resolver, "", mta.RspamdSigner("dkim_signing", settings))
	return func(ctx context.Context, text string) (string, error) {
		found, err := mta.AskRspamd(ctx, addr, mta.Submitted, text)
		if err == nil && len(found.Signatures) == 0 {
			err = errUnsigned
		}
		return found.Add(text), err
	}
}

// helper is a dkimd milter or a dkimd agent.
type helper struct {
	*harness.Process // of the last start
	name, ready      string
	args             []string
}

func (h *helper) start(t *testing.T) {
	t.Helper()
	h.Process = harness.Start(t, h.name, harness.Dkimd, nil, h.args...)
	harness.Eventually(t, limit, h.name+" is ready", func() error {
		if !strings.Contains(h.Output(), h.ready) {
			return errors.New("it does not say so")
		}
		return h.Running()
	})
}

// connection are flags for a signer of that name.
func (r *signersRun) connection(name string) []string {
	r.t.Helper()
	cert := r.etcd.PKI.Client(r.t, name, "signer")
	return []string{
		"--dkimd", r.dkimd[0].grpc, "--dkimd", r.dkimd[1].grpc, "--metrics-listen", "",
		"--tls-ca", cert.CA, "--tls-cert", cert.Cert, "--tls-key", cert.Key,
	}
}

func (r *signersRun) startMilter(name string, flags ...string) func(context.Context, string) (string, error) {
	r.t.Helper()
	addr := harness.Addr(r.t)
	m := &helper{name: name, ready: "milter ready", args: slices.Concat([]string{"milter", "--listen", addr}, r.connection(name), flags)}
	m.start(r.t)
	r.milters = append(r.milters, m)
	return func(_ context.Context, text string) (string, error) {
		return filtered(addr, text, gomilter.OptAddHeader)
	}
}

// startOpenDKIM starts an OpenDKIM and the agent that keeps its files.
func (r *signersRun) startOpenDKIM() func(context.Context, string) (string, error) {
	r.t.Helper()
	dir, addr := r.t.TempDir(), harness.Addr(r.t)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		r.t.Fatal(err)
	}
	files, pid := filepath.Join(dir, "files"), filepath.Join(dir, "opendkim.pid")
	r.agent = &helper{name: "agent", ready: "agent started", args: slices.Concat([]string{
		"agent", "--format", "opendkim", "--dir", files, "--brand", "files", "--reload-pid-file", pid,
	}, r.connection("agent"))}
	r.agent.start(r.t)
	harness.Eventually(r.t, limit, "the agent has written its files", func() error {
		_, err := os.Stat(filepath.Join(files, "SigningTable"))
		return err
	})
	harness.StartSystem(r.t, "/usr/sbin/opendkim", "-f", "-x", write(r.t, filepath.Join(dir, "opendkim.conf"), fmt.Sprintf(`Mode s
Socket inet:%[2]s@%[3]s
PidFile %[4]s
KeyTable %[1]s/KeyTable
SigningTable refile:%[1]s/SigningTable
Canonicalization relaxed/relaxed
OversignHeaders From
MultipleSignatures yes
RequireSafeKeys no
Syslog no
`, files, port, host, pid)))
	sign := func(_ context.Context, text string) (string, error) {
		return filtered(addr, text, 1<<9-1) // it demands that all are offered
	}
	harness.Eventually(r.t, limit, "OpenDKIM signs", func() error {
		_, err := sign(r.t.Context(), "From: jo@files.dk\r\n\r\n")
		return err
	})
	return sign
}

// filtered is a message as a mail server that offers these actions gets it back from
// a milter. An error is
// what it answers with 451, as milter_default_action = tempfail says.
func filtered(addr, text string, offer gomilter.OptAction) (string, error) {
	mta := gomilter.NewClientWithOptions("tcp", addr, gomilter.ClientOptions{
		ActionMask:  offer,
		ReadTimeout: 30 * time.Second, WriteTimeout: callLimit,
	})
	defer mta.Close()
	s, err := mta.Session()
	if err != nil {
		return "", err
	}
	defer s.Close()
	if _, err := s.Conn("localhost", gomilter.FamilyInet, 25000, "127.0.0.1"); err != nil {
		return "", err
	}
	if _, err := s.Mail("jo@example.com", nil); err != nil {
		return "", err
	}
	if _, err := s.Rcpt("you@example.org", nil); err != nil {
		return "", err
	}
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	for line := range strings.SplitSeq(strings.ReplaceAll(header, "\r\n\t", "\n\t"), "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		if _, err := s.HeaderField(name, value); err != nil {
			return "", err
		}
	}
	a, err := s.HeaderEnd()
	if err != nil {
		return "", err
	}
	if a.Code != gomilter.ActContinue {
		return "", reply(a)
	}
	changes, a, err := s.BodyReadFrom(strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if len(changes) == 0 || a.Code != gomilter.ActAccept && a.Code != gomilter.ActContinue {
		return "", reply(a)
	}
	for _, c := range changes { // the last one is on top
		text = c.HeaderName + ": " + strings.ReplaceAll(c.HeaderValue, "\n", "\r\n") + "\r\n" + text
	}
	return text, nil
}

// reply is the error of a message that comes back unsigned.
func reply(a *gomilter.Action) error {
	if a.Code == gomilter.ActAccept || a.Code == gomilter.ActContinue {
		return errUnsigned
	}
	return fmt.Errorf("reply %c %d %s", a.Code, a.SMTPCode, a.SMTPText)
}

// startClient makes a Go client, which signs with go-msgauth.
func (r *signersRun) startClient(ctx context.Context, name string, o signer.Options) func(context.Context, string) (string, error) {
	r.t.Helper()
	for _, d := range r.dkimd {
		o.Addresses = append(o.Addresses, d.grpc)
	}
	o.TLS = clientTLS(r.t, r.etcd.PKI.Client(r.t, name, "signer"))
	client, err := signer.New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = client.Close() })
	r.must(client.Ready(ctx))
	return func(ctx context.Context, text string) (signed string, err error) {
		_, after, _ := strings.Cut(text, "@")
		domain, _, _ := strings.Cut(after, ">")
		err = client.Sign(ctx, domain, func(a signer.Answer) error {
			if len(a.Keys) == 0 {
				return fmt.Errorf("%w: %s", errUnsigned, a.Reason)
			}
			signed = text
			for _, k := range a.Keys {
				var out bytes.Buffer
				err := dkim.Sign(&out, strings.NewReader(signed), &dkim.SignOptions{
					Domain: k.Domain, Selector: k.Selector, Signer: k,
					HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
					HeaderKeys: []string{"From", "To", "Subject", "Date", "Message-ID"},
				})
				if err != nil {
					return err
				}
				signed = out.String()
			}
			return nil
		})
		return signed, err
	}
}
