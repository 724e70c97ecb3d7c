//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/dkimzone/dkimzone/test/dataset"
	"github.com/dkimzone/dkimzone/test/peers"
)

// export exports the zone through a `dkimd serve`.
func (b *bench) export(ctx context.Context) (err error) {
	e, err := b.startEtcd(ctx, anyCPU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	d, conf, err := b.startDkimd(ctx, e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	used, err1 := d.cpu()
	stored, err2 := e.cpu()
	if err := errors.Join(err1, err2, d.forgetPeak()); err != nil {
		return err
	}
	file := b.path("export.zone")
	ctl := exec.CommandContext(ctx, b.path("dkimctl"), "--config", conf, "zone", "export", dataset.Zone, "--to-file", file) //nolint:gosec // what build built
	began := time.Now()
	if out, err := ctl.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", ctl, err, out)
	}
	took := time.Since(began)
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	after, err1 := d.cpu()
	storedAfter, err2 := e.cpu()
	peak, err3 := d.memory("VmHWM")
	if err := errors.Join(err1, err2, err3, os.Remove(file)); err != nil {
		return err
	}
	head("export s", "records/s", "file MiB", "CPU s of etcd", "of dkimd", "of dkimctl", "peak MiB of dkimd")
	row(fmt.Sprintf("%.1f", took.Seconds()), fmt.Sprintf("%.0f", float64(b.set.Len())/took.Seconds()), info.Size()>>20,
		fmt.Sprintf("%.1f", (storedAfter-stored).Seconds()), fmt.Sprintf("%.1f", (after-used).Seconds()),
		fmt.Sprintf("%.1f", (ctl.ProcessState.UserTime()+ctl.ProcessState.SystemTime()).Seconds()), fmt.Sprintf("%.0f", peak))
	return nil
}

// startDkimd starts a dkimd on etcd, and returns dkimctl's configuration file
// for it.
func (b *bench) startDkimd(ctx context.Context, e *etcd) (*process, string, error) {
	dir, err := b.fresh("dkimd.data")
	if err != nil {
		return nil, "", err
	}
	certs := filepath.Join(dir, "pki")
	for _, args := range [][]string{
		{"pki", "--dir", certs, "server", "dkimd", "localhost", "127.0.0.1"},
		{"pki", "--dir", certs, "client", "root", "admin"},
		{"pki", "kek", filepath.Join(dir, "kek.key")},
	} {
		if out, err := exec.CommandContext(ctx, b.path("dkimd"), args...).CombinedOutput(); err != nil { //nolint:gosec // what build built
			return nil, "", fmt.Errorf("dkimd %v: %w\n%s", args, err, out)
		}
	}
	port, err := peers.FreePort()
	if err != nil {
		return nil, "", err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := spawn(dir, anyCPU, b.path("dkimd"), "serve", "--etcd-endpoint", "http://"+e.address,
		"--tls-ca", filepath.Join(certs, "ca.crt"), "--tls-cert", filepath.Join(certs, "dkimd.crt"), "--tls-key", filepath.Join(certs, "dkimd.key"),
		"--kek-url", "file://"+filepath.Join(dir, "kek.key"),
		"--grpc-listen", address, "--http-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	conf := filepath.Join(dir, "dkimctl.yaml")
	text := fmt.Sprintf("address: %s\nca_file: %s\ncert_file: %s\nkey_file: %s\n", address,
		filepath.Join(certs, "ca.crt"), filepath.Join(certs, "root.crt"), filepath.Join(certs, "root.key"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, "", errors.Join(err, p.stop())
	}
	for {
		out, err := exec.CommandContext(ctx, b.path("dkimctl"), "--config", conf, "zone", "get", dataset.Zone).CombinedOutput() //nolint:gosec // what build built
		if err == nil {
			return p, conf, nil
		}
		if err := errors.Join(ctx.Err(), p.ended()); err != nil {
			return nil, "", errors.Join(fmt.Errorf("%w\n%s", err, out), p.stop())
		}
		time.Sleep(100 * time.Millisecond)
	}
}
