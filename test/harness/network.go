package harness

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Addresses are given out below the range from which the kernel takes ports.
const (
	firstPort = 20000
	lastPort  = 32000
)

var addresses struct {
	mu   sync.Mutex
	port int
}

// Addr returns a loopback address, HOST:PORT, that no other call in this test
// binary has returned, and that was free for TCP and UDP just now. On Linux the
// host is one of the test binary's own, so that nothing else takes the port
// before a program of the test does, or between two starts of it.
func Addr(tb testing.TB) string {
	tb.Helper()
	for addr := range unused() {
		if free(addr) {
			return addr
		}
	}
	tb.Fatalf("no port free on %s", Host())
	return ""
}

// Listen listens at such an address. To ask for one and then to listen there
// fails now and then: a program that is starting meanwhile has, for a moment, what
// was opened to see whether the address is free.
func Listen(tb testing.TB) net.Listener {
	tb.Helper()
	for addr := range unused() {
		if l, err := net.Listen("tcp", addr); err == nil {
			return l
		}
	}
	tb.Fatalf("no port free on %s", Host())
	return nil
}

// unused are addresses that were not given out, each of them once.
func unused() iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			port, ok := nextPort()
			if !ok || !yield(fmt.Sprintf("%s:%d", Host(), port)) {
				return
			}
		}
	}
}

func nextPort() (port int, ok bool) {
	addresses.mu.Lock()
	defer addresses.mu.Unlock()
	if addresses.port == 0 {
		addresses.port = firstPort
		if runtime.GOOS != "linux" { // others may use the host: begin elsewhere than they
			addresses.port += os.Getpid() * 100 % (lastPort - firstPort)
		}
	}
	addresses.port++
	return addresses.port - 1, addresses.port <= lastPort
}

// Host is the host of all that Addr returns.
func Host() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1" // the only loopback address that is set up
	}
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>16&63, pid>>8&255, pid&255)
}

func free(addr string) bool {
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		_ = tcp.Close() // not used
		return false
	}
	return errors.Join(tcp.Close(), udp.Close()) == nil
}

const pollInterval = 20 * time.Millisecond

// Eventually calls check again and again until it returns nil. It ends the test
// with the last error when that does not happen within the time limit.
func Eventually(tb testing.TB, limit time.Duration, what string, check func() error) {
	tb.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			tb.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}
