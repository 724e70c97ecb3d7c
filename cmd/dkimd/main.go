// Command dkimd keeps, publishes and rotates DKIM keys.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/dkimzone/dkimzone/internal/app"
)

// version is set when the binary is linked.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := app.Command(version).ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "dkimd: %v\n", err)
		os.Exit(1)
	}
}
