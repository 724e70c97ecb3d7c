// Command dkimctl manages the zones, brands, domains and keys of a dkimzone
// installation.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/dkimzone/dkimzone/internal/cli"
)

// version is set when the release is built.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	program := cli.Program{Version: version, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	os.Exit(program.Run(ctx, os.Args[1:]))
}
