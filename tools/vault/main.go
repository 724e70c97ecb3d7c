// Command vault is a Vault with a transit engine and a store in files, for tests: no
// plugins, no login methods but tokens. It is made of the series that was last under the Mozilla
// Public License, and is a module of its own, since it needs more than all the rest together.
//
// It starts as any Vault does: to be initialised, and then sealed. It listens with TLS, and
// ends with SIGTERM.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listen := flag.String("listen", "127.0.0.1:8200", "`address` to listen at")
	data := flag.String("data", "", "`directory` of the store")
	cert := flag.String("cert", "", "`file` with the certificate of the server")
	key := flag.String("key", "", "`file` with the private key of it")
	flag.Parse()
	if err := run(ctx, *listen, *data, *cert, *key); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen, data, cert, key string) error {
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn})
	store, err := file.NewFileBackend(map[string]string{"path": data}, logger)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:        store,
		StorageType:     "file",
		LogicalBackends: map[string]logical.Factory{"transit": transit.Factory},
		BuiltinRegistry: none{},
		DisableMlock:    true,
		Logger:          logger,
	})
	if err != nil {
		return fmt.Errorf("core: %w", err)
	}
	server := &http.Server{
		Addr:              listen,
		Handler:           vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core}),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12},
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServeTLS(cert, key) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = server.Close()
	}
	return errors.Join(err, core.ShutdownWait())
}

// none is a registry of plugins without any.
type none struct{}

func (none) Contains(string, consts.PluginType) bool                   { return false }
func (none) Get(string, consts.PluginType) (func() (any, error), bool) { return nil, false }
func (none) Keys(consts.PluginType) []string                           { return nil }
func (none) IsBuiltinEntPlugin(string, consts.PluginType) bool         { return false }
func (none) DeprecationStatus(string, consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Unknown, false
}
