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

func main() {
	held := make([]byte, ballast)
	defer runtime.KeepAlive(held)
	if err := dnsserver.SetDirectives(directives); err != nil {
		fmt.Fprintln(os.Stderr, "coredns:", err)
		os.Exit(1)
	}
	coremain.Run()
}
