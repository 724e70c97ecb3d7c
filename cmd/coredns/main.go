// Command coredns is a CoreDNS with what an authoritative name server needs and
// the dkim plugin.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

// ballast is never touched, so it takes no memory itself, but lets that much more
// garbage gather before it is collected. The zones' records are outside of Go's
// heap, which is so small without them that it would be collected some 70 times
// a second under load.
const ballast = 32 << 20

// processors is how many goroutines may run at once even on a single CPU: one that
// answers, one at long work, one that collects garbage. With a single one, Go looks
// for packets only when nothing else wants to run, or every 10 ms, so that answers
// wait while the node lists its zone or writes its file.
const processors = 3

func main() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.NumCPU() == 1 {
		runtime.GOMAXPROCS(processors)
	}
	held := make([]byte, ballast)
	defer runtime.KeepAlive(held)
	if err := dnsserver.SetDirectives(directives); err != nil {
		fmt.Fprintln(os.Stderr, "coredns:", err)
		os.Exit(1)
	}
	coremain.Run()
}
