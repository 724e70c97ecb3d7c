package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/test/peers"
)

// exportLimit is how long dkimd may take to start.
const exportLimit = time.Minute

// export has dkimctl write the zone to a file, through a dkimd of its own. The
// binaries are in dir.
func export(ctx context.Context, dir, etcd, zone, file string) (err error) {
	pki := filepath.Join(dir, "pki")
	for _, args := range [][]string{
		{"server", "dkimd", "127.0.0.1"}, {"client", "exporter", "admin"}, {"kek", filepath.Join(dir, "kek.key")},
	} {
		if out, err := command(ctx, dir, "dkimd", append([]string{"pki", "--dir", pki}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("dkimd pki %s: %w\n%s", args[0], err, out)
		}
	}
	var addrs [3]string
	for i := range addrs {
		port, err := peers.FreePort()
		if err != nil {
			return err
		}
		addrs[i] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	ca := filepath.Join(pki, "ca.crt")
	cert := func(name string) (cert, key string) {
		return filepath.Join(pki, name+".crt"), filepath.Join(pki, name+".key")
	}
	serverCert, serverKey := cert("dkimd")
	dkimd := command(context.WithoutCancel(ctx), dir, "dkimd", "serve", "--etcd-endpoint", etcd,
		"--tls-ca", ca, "--tls-cert", serverCert, "--tls-key", serverKey, "--kek-url", "file://"+filepath.Join(dir, "kek.key"),
		"--grpc-listen", addrs[0], "--http-listen", addrs[1], "--metrics-listen", addrs[2])
	var log bytes.Buffer
	dkimd.Stdout, dkimd.Stderr = &log, &log
	if err := dkimd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = dkimd.Process.Signal(syscall.SIGTERM) // it may have ended
		if werr := dkimd.Wait(); err != nil {
			err = fmt.Errorf("%w\ndkimd: %w\n%s", err, werr, log.String())
		}
	}()
	client := config.Client{Address: addrs[0], CAFile: ca}
	client.CertFile, client.KeyFile = cert("exporter")
	settings := filepath.Join(dir, "dkimctl.yaml")
	if err := client.Write(settings); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		c := command(ctx, dir, "dkimctl", "zone", "export", zone, "--to-file", file)
		c.Env = append(os.Environ(), "DKIMCTL_CONFIG="+settings)
		out, err := c.CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-again.C: // dkimd has just been started
		case <-ctx.Done():
			return fmt.Errorf("dkimctl zone export: %w\n%s", errors.Join(err, ctx.Err()), out)
		}
	}
}

func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(dir, name), args...) //nolint:gosec // this program built it
}
