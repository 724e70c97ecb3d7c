package mta

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
)

// Directory is one of a user until the end of the test, and others can enter it. It is
// in /run because OpenDKIM takes no keys from below a directory that others may write
// to, as /tmp is.
func Directory(tb testing.TB, user string) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/run", "dkimzone") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) }) // daemons may still write there
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // see above
		tb.Fatal(err)
	}
	if out, err := exec.Command("chown", user+":", dir).CombinedOutput(); err != nil { //nolint:gosec // our directory
		tb.Fatalf("%v: %s", err, out)
	}
	return dir
}

const rspamdConf = `options {
    filters = "dkim";
    pidfile = "%[1]s/rspamd.pid";
%[2]s}
logging { type = "console"; level = "info"; }
worker "normal" { bind_socket = "%[3]s"; count = 1; task_timeout = 1min; }
%[4]s`

// rspamdUser is that of Debian's package.
const rspamdUser = "_rspamd"

// RspamdSigner is the configuration of a module of rspamd that signs, dkim_signing or
// arc, with its settings.
func RspamdSigner(module, settings string) string {
	return fmt.Sprintf("modules { path = \"/usr/share/rspamd/plugins/%s.lua\"; }\n%[1]s {\n%s}\n", module, settings)
}

// StartRspamd starts an rspamd of the system with modules, and more lines in its
// options, and is where it answers. It asks the resolver, host:port, if there is one.
// It ends with the test.
func StartRspamd(tb testing.TB, resolver, options, modules string) string {
	tb.Helper()
	dir, addr := Directory(tb, rspamdUser), harness.Addr(tb)
	if resolver != "" {
		host, port, err := net.SplitHostPort(resolver)
		if err != nil {
			tb.Fatal(err)
		}
		options += fmt.Sprintf("    dns { nameserver = [\"%s:%s:1\"]; }\n", host, port)
	}
	conf := filepath.Join(dir, "rspamd.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, rspamdConf, dir, options, addr, modules), 0o644); err != nil { //nolint:gosec // it reads it as another user
		tb.Fatal(err)
	}
	harness.StartSystem(tb, "/usr/bin/rspamd", "-f", "--insecure", "-u", rspamdUser, "-g", rspamdUser,
		"--var=DBDIR="+dir, "--var=RUNDIR="+dir, "--var=LOGDIR="+dir, "-c", conf)
	// It reads large tables of languages first, which takes long on a busy machine.
	harness.Eventually(tb, 3*time.Minute, "rspamd answers", func() error {
		_, err := AskRspamd(tb.Context(), addr, nil, "From: a@rspamd.invalid\r\n\r\n")
		return err
	})
	return addr
}

// RspamdResult is what rspamd says of a message.
type RspamdResult struct {
	// Signatures are DKIM-Signature fields that it wants to be added, and Fields all
	// others, by name.
	Signatures []string
	Fields     map[string]string
	// Symbols are what it found, each with its details.
	Symbols map[string][]string
}

// Add is a message with the signatures that rspamd wants it to have.
func (r RspamdResult) Add(message string) string {
	for _, s := range r.Signatures {
		message = "DKIM-Signature: " + s + "\r\n" + message
	}
	return message
}

// Submitted are the fields of a request about a message of a user who has
// authenticated.
var Submitted = map[string]string{"User": "jo", "IP": "192.0.2.1"}

// AskRspamd hands a message to an rspamd, with fields that say where it is from.
func AskRspamd(ctx context.Context, addr string, fields map[string]string, message string) (r RspamdResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // a big message takes long
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/checkv2", strings.NewReader(message))
	if err != nil {
		return r, err
	}
	for name, value := range fields {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return r, err
	}
	var doc struct {
		Signature json.RawMessage `json:"dkim-signature"` // one, or several
		Milter    struct {
			AddHeaders map[string]struct {
				Value string `json:"value"`
			} `json:"add_headers"`
		} `json:"milter"`
		Symbols map[string]struct {
			Options []string `json:"options"`
		} `json:"symbols"`
	}
	if err := json.Unmarshal(body, &doc); err != nil || resp.StatusCode != http.StatusOK {
		return r, fmt.Errorf("rspamd: %s: %w: %s", resp.Status, err, body)
	}
	var one string
	if doc.Signature != nil && json.Unmarshal(doc.Signature, &one) == nil {
		r.Signatures = []string{one}
	} else if doc.Signature != nil {
		if err := json.Unmarshal(doc.Signature, &r.Signatures); err != nil {
			return r, err
		}
	}
	r.Fields, r.Symbols = make(map[string]string), make(map[string][]string)
	for name, field := range doc.Milter.AddHeaders {
		r.Fields[name] = field.Value
	}
	for name, symbol := range doc.Symbols {
		r.Symbols[name] = symbol.Options
	}
	return r, nil
}
