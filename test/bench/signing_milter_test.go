//go:build linux

package bench_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"
	"github.com/emersion/go-msgauth/dkim"

	"github.com/dkimzone/dkimzone/test/harness"
)

// openDKIM signs as dkimd milter does.
const openDKIM = `Mode s
Domain %[3]s
Selector selector1
KeyFile %[2]s
Socket inet:%[1]s@127.0.0.1
InternalHosts 127.0.0.1
Canonicalization relaxed/relaxed
SignatureAlgorithm rsa-sha256
OversignHeaders From
SignHeaders from,date,subject,reply-to,sender,to,cc,message-id,in-reply-to,references,content-type,mime-version,content-transfer-encoding
RequireSafeKeys no
Syslog no
`

// benchMilter measures mail filters that sign with the same RSA-2048 key, on one CPU: ours
// with its dkimd, ours by itself, and OpenDKIM.
func (s *signing) benchMilter(b *testing.B) {
	certs := []string{"--dkimd", s.grpc, "--tls-ca", s.ca, "--tls-cert", s.cert, "--tls-key", s.key, "--metrics-listen", "", "--log-level", "warn"}
	ours := func(flags ...string) func(*testing.B) (string, int) {
		return func(b *testing.B) (string, int) {
			address := harness.Addr(b)
			p := harness.Start(b, "dkimd milter", harness.Dkimd, []string{"GOMAXPROCS=1"}, append(append([]string{"milter", "--listen", address}, certs...), flags...)...)
			return address, p.PID()
		}
	}
	for _, server := range []struct {
		name  string
		start func(*testing.B) (address string, pid int)
	}{
		{"remote", ours()},
		{"local", ours("--mode", "local", "--brand", smallBrand)},
		{"opendkim", s.startOpenDKIM},
	} {
		b.Run(server.name, func(b *testing.B) {
			address, pid := server.start(b)
			harness.Eventually(b, time.Minute, "it signs", func() error { return s.signs(address) })
			pin(b, pid, measuredCPU)
			processes := map[string]int{"filter": pid}
			if server.name == "remote" {
				processes["dkimd"] = s.dkimd.PID()
			}
			for _, size := range []int{2_000, 50_000} {
				b.Run(fmt.Sprintf("%dkB", size/1000), func(b *testing.B) {
					const workers = 8
					text := message(size)
					var sessions []*gomilter.ClientSession
					for range workers {
						sessions = append(sessions, connect(b, address))
					}
					report(b, "messages", 1, workers, processes, nil, func(w int) error {
						_, err := filter(sessions[w], text)
						return err
					})
					b.ReportMetric(statusMiB(b, pid, "VmRSS:"), "MiB-filter")
				})
			}
		})
	}
}

func (s *signing) startOpenDKIM(b *testing.B) (address string, pid int) {
	b.Helper()
	program, err := exec.LookPath("opendkim")
	if err != nil {
		b.Skip("OpenDKIM is missing")
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address = free.Addr().String()
	_ = free.Close() // OpenDKIM listens there next
	_, port, _ := net.SplitHostPort(address)
	file := filepath.Join(b.TempDir(), "opendkim.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, openDKIM, port, s.rsaPEM, rsaDomain), 0o600); err != nil {
		b.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(program, "-f", "-x", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it tells of the signal
		if b.Failed() {
			b.Logf("OpenDKIM: %s", out.String())
		}
	})
	return address, cmd.Process.Pid
}

// message is one of so many octets.
func message(size int) string {
	header := "From: Joe <joe@" + rsaDomain + ">\r\nTo: Jane <jane@example.com>\r\nSubject: Is dinner ready?\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700\r\n" +
		"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Content-Transfer-Encoding: 8bit\r\nUser-Agent: Mail 1.0\r\nX-Priority: 3\r\n\r\n"
	const line = "The quick brown fox jumps over the lazy dog, and then it does so again.\r\n"
	return header + strings.Repeat(line, (size-len(header))/len(line)+1)
}

// connect begins a session of a mail server.
func connect(b *testing.B, address string) *gomilter.ClientSession {
	b.Helper()
	c, session, err := dialMilter(address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = session.Close() // the filter may have gone
		_ = c.Close()
	})
	return session
}

func dialMilter(address string) (*gomilter.Client, *gomilter.ClientSession, error) {
	c := gomilter.NewClientWithOptions("tcp", address, gomilter.ClientOptions{
		ActionMask:   gomilter.OptAddHeader | gomilter.OptChangeHeader | gomilter.OptQuarantine,
		ProtocolMask: gomilter.OptNoConnect | gomilter.OptNoHelo | gomilter.OptNoMailFrom | gomilter.OptNoRcptTo | gomilter.OptNoHeaders | gomilter.OptNoBody | gomilter.OptNoEOH,
		ReadTimeout:  time.Minute, WriteTimeout: time.Minute,
	})
	session, err := c.Session()
	if err == nil {
		_, err = session.Conn("localhost", gomilter.FamilyInet, 25000, "127.0.0.1")
	}
	if err == nil {
		_, err = session.Helo("localhost")
	}
	return c, session, err
}

// filter has a message signed and returns the signature.
func filter(s *gomilter.ClientSession, text string) (string, error) {
	if err := s.Macros(gomilter.CodeMail, "i", "4XYZ"); err != nil {
		return "", err
	}
	if _, err := s.Mail("joe@"+rsaDomain, nil); err != nil {
		return "", err
	}
	if _, err := s.Rcpt("jane@example.com", nil); err != nil {
		return "", err
	}
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	for line := range strings.SplitSeq(header, "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		if _, err := s.HeaderField(name, value); err != nil {
			return "", err
		}
	}
	if _, err := s.HeaderEnd(); err != nil {
		return "", err
	}
	changes, a, err := s.BodyReadFrom(strings.NewReader(body))
	if err != nil {
		return "", err
	}
	for _, c := range changes {
		if c.HeaderName == "DKIM-Signature" {
			return c.HeaderValue, nil
		}
	}
	return "", fmt.Errorf("not signed: reply %c, %d changes", a.Code, len(changes))
}

// signs tells whether a filter signs so that the signature verifies.
func (s *signing) signs(address string) error {
	c, session, err := dialMilter(address)
	if err != nil {
		return err
	}
	defer c.Close()
	defer session.Close()
	text := message(2000)
	value, err := filter(session, text)
	if err != nil {
		return err
	}
	key, err := readPEM(s.rsaPEM)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	text = "DKIM-Signature: " + strings.ReplaceAll(strings.ReplaceAll(value, "\r\n", "\n"), "\n", "\r\n") + "\r\n" + text
	found, err := dkim.VerifyWithOptions(strings.NewReader(text), &dkim.VerifyOptions{LookupTXT: func(string) ([]string, error) {
		return []string{"v=DKIM1; p=" + base64.StdEncoding.EncodeToString(der)}, nil
	}})
	switch {
	case err != nil:
		return err
	case len(found) != 1:
		return errors.New(strconv.Itoa(len(found)) + " signatures")
	}
	return found[0].Err
}
