package conformance_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dkimzone/dkimzone/test/harness"
)

// A server that listens on all addresses replies from the one that was asked
// (RFC 2181 §4). A connected socket takes nothing from elsewhere. The server has
// a network of its own, with loopback only: nobody else is to reach it.
func TestSourceAddress(t *testing.T) {
	harness.CoreDNS.Path(t)
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Skipf("no network namespace: %v", err)
	}
	loopbackUp(t)
	file := filepath.Join(t.TempDir(), "Corefile")
	corefile := fmt.Sprintf(".:5300 {\n dkim %s {\n  endpoint http://127.0.0.1:1\n }\n errors\n}\n", zone)
	if err := os.WriteFile(file, []byte(corefile), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harness.Start(t, "coredns", harness.CoreDNS, nil, "-conf", file)
	packet := pack(t, query(zone+".", dns.TypeSOA))
	harness.Eventually(t, startLimit, "CoreDNS listens", func() error {
		if err := p.Running(); err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"tcp", "udp"} {
			c := dns.Client{Net: network, Timeout: ioLimit}
			if _, _, err := c.Exchange(query(zone+".", dns.TypeSOA), "127.0.0.1:5300"); err != nil {
				return err
			}
		}
		return nil
	})
	hosts := []string{"127.0.0.1", "127.0.0.2", "127.53.0.53", "127.0.0.1"}
	if conn, err := net.ListenPacket("udp", "[::1]:0"); err == nil { // there may be no IPv6
		conn.Close()
		hosts = append(hosts, "::1")
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, host := range hosts {
			// No subtests: they would run in a thread elsewhere.
			conn, err := net.Dial(network, net.JoinHostPort(host, "5300"))
			if err != nil {
				t.Fatal(err)
			}
			l := &link{conn, network}
			l.send(t, packet)
			reply, err := l.receive(t)
			conn.Close()
			if err != nil {
				t.Errorf("%s to %s: %v", network, host, err)
				continue
			}
			if got := line(t, packet, reply); got != "QUERY SERVFAIL 1 0 0 0" { // it has no etcd
				t.Errorf("%s to %s: %q", network, host, got)
			}
		}
	}
}

// loopbackUp switches the loopback interface of a new network on.
func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
}
