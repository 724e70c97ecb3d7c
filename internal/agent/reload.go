package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// reloadLimit is how long a command may take.
const reloadLimit = 30 * time.Second

// SignalReload reloads the process of a pid file with SIGUSR1. That nothing runs is
// an error: what cannot be seen to be reloaded may be signing with old keys.
func SignalReload(pidFile string) func(context.Context) error {
	return func(context.Context) error {
		data, err := os.ReadFile(pidFile)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || pid <= 1 {
			return fmt.Errorf("%s holds no process id", pidFile)
		}
		if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
			return fmt.Errorf("signal process %d of %s: %w", pid, pidFile, err)
		}
		return nil
	}
}

// CommandReload reloads by a command of the shell, which has to end with code 0
// within 30 seconds.
func CommandReload(command string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, reloadLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command) //nolint:gosec // the operator's own
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("reload command: %w: %.200s", errors.Join(err, ctx.Err()), bytes.TrimSpace(out))
		}
		return nil
	}
}
