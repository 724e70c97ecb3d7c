package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
)

// Etcd is a running etcd of one member that does not wait for the disk.
type Etcd struct {
	URL    string
	Client *clientv3.Client

	cmd *exec.Cmd
}

// StartEtcd starts the binary with its data in dir, on a CPU or on any if that
// is negative.
func StartEtcd(ctx context.Context, binary, dir string, cpu int) (*Etcd, error) {
	var urls [2]string
	for i := range urls {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		urls[i] = fmt.Sprintf("http://127.0.0.1:%d", port)
	}
	args := onCPU(cpu, binary,
		"--data-dir", dir, "--name", "one", "--initial-cluster", "one="+urls[1],
		"--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
		"--quota-backend-bytes", "8589934592", "--log-level", "error", "--unsafe-no-fsync")
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // the caller built it; Stop ends it
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	e := &Etcd{URL: urls[0], cmd: cmd}
	var err error
	e.Client, err = etcdclient.Dial(etcdclient.Config{Endpoints: urls[:1]}, slog.New(slog.DiscardHandler))
	if err == nil {
		ready, cancel := context.WithTimeout(ctx, stopLimit)
		defer cancel()
		_, err = e.Client.Get(ready, "ready", clientv3.WithCountOnly())
		for err != nil && ready.Err() == nil {
			_, err = e.Client.Get(ready, "ready", clientv3.WithCountOnly())
		}
	}
	if err != nil {
		stopped := e.Stop()
		return nil, errors.Join(fmt.Errorf("etcd: %w\n%s", err, out.String()), stopped)
	}
	return e, nil
}

// Stop ends etcd.
func (e *Etcd) Stop() error {
	var err error
	if e.Client != nil {
		err = e.Client.Close()
	}
	if serr := e.cmd.Process.Signal(syscall.SIGTERM); serr != nil && !errors.Is(serr, os.ErrProcessDone) {
		return errors.Join(err, serr)
	}
	_ = e.cmd.Wait() // it was told to end
	return err
}
