package mta

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
)

const mainCF = `compatibility_level = 3.6
myhostname = mx.spamtrap.dk
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [127.0.0.1]:%[2]s
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = /dev/stdout
disable_dns_lookups = yes
smtpd_peername_lookup = no
mynetworks = 0.0.0.0/0
smtpd_authorized_xclient_hosts = 127.0.0.1
message_size_limit = 20000000
`

const masterCF = `%[1]s inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

// StartPostfix starts a Postfix that sends everything to the relay, with more
// lines in its main.cf, and is where it listens. It ends with the test.
func StartPostfix(tb testing.TB, relay, more string) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "postfix") //nolint:usetesting // its daemons are other users, who do not reach TempDir
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	addr := harness.Addr(tb)
	_, relayPort, err := net.SplitHostPort(relay)
	if err != nil {
		tb.Fatal(err)
	}
	for name, text := range map[string]string{
		"main.cf":   fmt.Sprintf(mainCF, dir, relayPort) + more,
		"master.cf": fmt.Sprintf(masterCF, addr),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // its daemons read it
			tb.Fatal(err)
		}
	}
	for _, sub := range []string{"queue", "data"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil { //nolint:gosec // as Postfix wants it
			tb.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // as Postfix wants it
		tb.Fatal(err)
	}
	if out, err := exec.Command("chown", "postfix", filepath.Join(dir, "data")).CombinedOutput(); err != nil { //nolint:gosec // our directory
		tb.Fatalf("%v: %s", err, out)
	}
	var log bytes.Buffer
	cmd := exec.Command("postfix", "-c", dir, "start-fg") //nolint:gosec // our directory
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		out, err := exec.Command("postfix", "-c", dir, "stop").CombinedOutput() //nolint:gosec // our directory
		if err != nil {
			tb.Errorf("stop Postfix: %v: %s", err, out)
		}
		_ = cmd.Wait() // it tells of the signal that stop sent
		if tb.Failed() {
			b := log.Bytes()
			tb.Logf("Postfix:\n%s", b[max(0, len(b)-6000):])
		}
	})
	harness.Eventually(tb, time.Minute, "Postfix listens", func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return addr
}
