//go:build interop

package interop_test

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	gomilter "github.com/emersion/go-milter"
	"github.com/emersion/go-msgauth/dkim"

	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

//go:embed testdata/dkimpy.py testdata/maildkim.pl testdata/mailauth.js
var scripts embed.FS

// nodeModules is where make interop has npm put mailauth.
const nodeModules = "../../build/npm/node_modules"

// versions are how to ask the programs for theirs.
var versions = [][]string{
	{"rspamd", "--version"},
	{"opendkim", "-V"},
	{eximProgram, "-bV"},
	{"postconf", "mail_version"},
	{"knotd", "--version"},
	{"unbound", "-V"},
	{"dpkg-query", "-W", "python3-dkim", "libmail-dkim-perl"},
	{"node", "--version"},
	{"node", "-p", "'mailauth '+require('" + nodeModules + "/mailauth/package.json').version"},
	{"go", "list", "-m", "github.com/emersion/go-msgauth"},
}

func logVersions(t *testing.T) {
	t.Helper()
	for _, args := range versions {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		if args[0] == "dpkg-query" {
			first = strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", ", ")
		}
		t.Log(first)
	}
}

// startVerifiers starts all of them, with unbound as their resolver.
func startVerifiers(t *testing.T, m *matrix) []verifyingProgram {
	t.Helper()
	host, port, err := net.SplitHostPort(m.resolver)
	if err != nil {
		t.Fatal(err)
	}
	modules, err := filepath.Abs(nodeModules)
	if err != nil {
		t.Fatal(err)
	}
	return []verifyingProgram{
		{"go-msgauth", m.verifyGo},
		{"OpenDKIM", startOpenDKIMVerifier(t, host)},
		{"rspamd", startRspamdVerifier(t, m.resolver)},
		{"Exim", startEximVerifier(t, host)},
		{"dkimpy", startScript(t, nil, "/usr/bin/python3", "dkimpy.py", host, port)},
		{"Mail::DKIM", startScript(t, nil, "/usr/bin/perl", "maildkim.pl", host, port)},
		{"mailauth", startScript(t, []string{"NODE_PATH=" + modules}, "node", "mailauth.js", host, port)},
	}
}

func (m *matrix) verifyGo(ctx context.Context, message string) ([]verdict, error) {
	results, err := dkim.VerifyWithOptions(strings.NewReader(message), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) { return m.lookup(ctx, name) },
	})
	if err != nil {
		return nil, err
	}
	signatures := dkimSignatures(message)
	if len(signatures) != len(results) {
		return nil, fmt.Errorf("%d results for %d signatures", len(results), len(signatures))
	}
	var all []verdict
	for i, r := range results {
		all = append(all, verdict{r.Domain, signatures[i]["s"], r.Err == nil, fmt.Sprint(r.Err)})
	}
	return all, nil
}

// dkimSignatures are the tags of a message's signatures, from the top.
func dkimSignatures(message string) (all []map[string]string) {
	header, _, _ := strings.Cut(message, "\r\n\r\n")
	header = strings.NewReplacer("\r\n ", " ", "\r\n\t", " ").Replace(header)
	for line := range strings.SplitSeq(header, "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(strings.TrimSpace(name), "DKIM-Signature") {
			continue
		}
		tags := make(map[string]string)
		for tag := range strings.SplitSeq(value, ";") {
			k, v, _ := strings.Cut(tag, "=")
			tags[strings.TrimSpace(k)] = strings.Join(strings.Fields(v), "")
		}
		all = append(all, tags)
	}
	return all
}

// startScript starts a script of testdata that judges message after message.
func startScript(t *testing.T, env []string, program, script string, args ...string) func(context.Context, string) ([]verdict, error) {
	t.Helper()
	text, err := scripts.ReadFile("testdata/" + script)
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, filepath.Join(t.TempDir(), script), string(text))
	cmd := exec.Command(program, append([]string{file}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil || errs.Len() > 0 {
			t.Errorf("%s: %v: %s", script, err, errs.String())
		}
	})
	lines := bufio.NewReader(out)
	return func(_ context.Context, message string) ([]verdict, error) {
		if _, err := fmt.Fprintf(in, "%d\n%s", len(message), message); err != nil {
			return nil, err
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		var all []verdict
		return all, json.Unmarshal(line, &all)
	}
}

// startOpenDKIMVerifier starts an OpenDKIM that writes what it finds into an
// Authentication-Results field.
func startOpenDKIMVerifier(t *testing.T, resolver string) func(context.Context, string) ([]verdict, error) {
	t.Helper()
	dir, addr := t.TempDir(), harness.Addr(t)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	harness.StartSystem(t, "/usr/sbin/opendkim", "-f", "-x", write(t, filepath.Join(dir, "opendkim.conf"), fmt.Sprintf(`Mode v
Socket inet:%s@%s
AuthservID verifier.example
AlwaysAddARHeader yes
ResolverConfiguration %s
`, port, host, write(t, filepath.Join(dir, "unbound.conf"), "server:\n    do-not-query-localhost: no\n    module-config: \"iterator\"\nforward-zone:\n    name: \".\"\n    forward-addr: "+resolver+"\n"))))
	harness.Listens(t, "OpenDKIM", addr)
	return func(_ context.Context, message string) ([]verdict, error) {
		changes, err := milterChanges(addr, "203.0.113.9", message)
		if err != nil {
			return nil, err
		}
		var all []verdict
		for _, c := range changes {
			if c.HeaderName != "Authentication-Results" {
				continue
			}
			for _, found := range openDKIMResult.FindAllStringSubmatch(c.HeaderValue, -1) {
				all = append(all, verdict{found[2], found[3], found[1] == "pass", c.HeaderValue})
			}
		}
		return all, nil
	}
}

// openDKIMResult is what it writes of a signature, on a line.
var openDKIMResult = regexp.MustCompile(`\sdkim=(\w+).* header\.d=(\S+) header\.i=\S+ header\.a=\S+ header\.s=(\S+)`)

// milterChanges hands a message from an address to a milter, and returns what it
// wants to be changed.
func milterChanges(milter, from, message string) ([]gomilter.ModifyAction, error) {
	client := gomilter.NewClientWithOptions("tcp", milter, gomilter.ClientOptions{
		ActionMask:  1<<9 - 1, // OpenDKIM demands that all are offered
		ReadTimeout: limit, WriteTimeout: limit,
	})
	defer client.Close()
	s, err := client.Session()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if _, err := s.Conn("client.example", gomilter.FamilyInet, 25000, from); err != nil {
		return nil, err
	}
	if _, err := s.Helo("client.example"); err != nil {
		return nil, err
	}
	if _, err := s.Mail("jo@example.org", nil); err != nil {
		return nil, err
	}
	if _, err := s.Rcpt("someone@example.com", nil); err != nil {
		return nil, err
	}
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	for _, field := range headerFields(header) {
		name, value, _ := strings.Cut(field, ":")
		// As mail servers do: a space after the colon is theirs, and lines end with LF.
		if _, err := s.HeaderField(strings.TrimRight(name, " "), strings.ReplaceAll(strings.TrimPrefix(value, " "), "\r\n", "\n")); err != nil {
			return nil, err
		}
	}
	if a, err := s.HeaderEnd(); err != nil || a.Code == gomilter.ActAccept { // it wants no more of it
		return nil, err
	}
	changes, a, err := s.BodyReadFrom(strings.NewReader(body))
	if err == nil && a.Code != gomilter.ActAccept && a.Code != gomilter.ActContinue {
		err = fmt.Errorf("the milter says %c %s", a.Code, a.SMTPText)
	}
	return changes, err
}

var nextField = regexp.MustCompile(`\r\n[^ \t]`)

// headerFields are the fields of a header, folded as they are.
func headerFields(header string) (all []string) {
	for {
		i := nextField.FindStringIndex(header)
		if i == nil {
			return append(all, header)
		}
		all, header = append(all, header[:i[0]]), header[i[0]+2:]
	}
}

// startRspamdVerifier starts an rspamd with its dkim module.
func startRspamdVerifier(t *testing.T, resolver string) func(context.Context, string) ([]verdict, error) {
	t.Helper()
	addr := mta.StartRspamd(t, resolver, "", "dkim { }\n")
	return func(ctx context.Context, message string) ([]verdict, error) {
		r, err := mta.AskRspamd(ctx, addr, map[string]string{"IP": "203.0.113.9"}, message)
		var all []verdict
		for name, options := range r.Symbols {
			if !strings.HasPrefix(name, "R_DKIM_") {
				continue
			}
			for _, o := range options {
				domain, selector, _ := strings.Cut(o, ":s=")
				all = append(all, verdict{domain, selector, name == "R_DKIM_ALLOW", name + " " + o})
			}
		}
		return all, err
	}
}

// eximProgram is where make interop unpacks it.
const eximProgram = "../../build/exim/usr/sbin/exim4"

// startExim starts an Exim with a configuration, in which DIR is its directory
// and HOST and PORT are where it listens. Its resolver is at port 53 of an
// address: Exim has no setting for that, so it sees an /etc/resolv.conf of its own.
func startExim(t *testing.T, resolver, config string) string {
	t.Helper()
	program, err := filepath.Abs(eximProgram)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("Exim is missing; make interop unpacks it: %v", err)
	}
	dir := mta.Directory(t, "Debian-exim")
	addr := harness.Addr(t)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	conf, resolv := filepath.Join(dir, "exim.conf"), filepath.Join(dir, "resolv.conf")
	for file, text := range map[string]string{
		conf:   strings.NewReplacer("DIR", dir, "HOST", host, "PORT", port).Replace(config),
		resolv: "nameserver " + resolver + "\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	harness.StartSystem(t, "unshare", "-m", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && exec "$2" -C "$3" -bdf`, "sh", resolv, program, conf)
	harness.Listens(t, "Exim", addr)
	return addr
}

const eximVerifier = `primary_hostname = verifier.example
spool_directory = DIR
log_file_path = DIR/%slog
local_interfaces = HOST
daemon_smtp_ports = PORT
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
message_size_limit = 20M
acl_smtp_rcpt = accept
acl_smtp_dkim = dkim
acl_smtp_data = data
begin acl
dkim:
  accept set acl_m_dkim = $acl_m_dkim $dkim_cur_signer:$dkim_selector:$dkim_verify_status:$dkim_verify_reason
data:
  deny message = RESULTS$acl_m_dkim
`

// startEximVerifier starts an Exim that refuses each message with what it found.
func startEximVerifier(t *testing.T, resolver string) func(context.Context, string) ([]verdict, error) {
	t.Helper()
	addr := startExim(t, resolver, eximVerifier)
	return func(_ context.Context, message string) ([]verdict, error) {
		c, err := mta.Dial(addr)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		code, reply, err := c.Send(message)
		if err != nil {
			return nil, err
		}
		_, found, ok := strings.Cut(reply, "RESULTS")
		if !ok {
			return nil, fmt.Errorf("Exim says %d %s", code, reply)
		}
		var all []verdict
		for word := range strings.FieldsSeq(found) {
			if parts := strings.SplitN(word, ":", 4); len(parts) == 4 {
				all = append(all, verdict{parts[0], parts[1], parts[2] == "pass", found})
			}
		}
		return all, nil
	}
}
