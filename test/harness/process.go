package harness

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/output"
)

// Process is a program that runs beside the test. Its methods are safe for
// concurrent use.
type Process struct {
	name string
	cmd  *exec.Cmd
	out  output.Buffer
	done chan struct{} // closed once the process has ended
}

// Start starts a program with additional environment variables KEY=VALUE. It is
// killed at the end of the test. What it wrote is then looked through for traces
// of a crash, of a data race and of private keys, and is shown if the test has
// failed. The name says which process it is.
func Start(tb testing.TB, name string, p Program, env []string, args ...string) *Process {
	tb.Helper()
	cmd := exec.Command(p.Path(tb), args...) //nolint:gosec // a program that this package built
	proc := &Process{name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &proc.out, &proc.out
	cmd.Env = Environ(tb, env)
	cmd.Dir = tb.TempDir()
	cmd.SysProcAttr = childAttr()
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = cmd.Wait() // ExitCode tells
		close(proc.done)
	}()
	tb.Cleanup(func() {
		proc.Kill()
		checkOutput(tb, name, proc.Output())
		if tb.Failed() {
			tb.Logf("output of %s, pid %d, exit code %d:\n%s", name, cmd.Process.Pid, proc.cmd.ProcessState.ExitCode(), tail(proc.Output()))
		}
	})
	return proc
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process with SIGKILL and returns when it has ended. A process
// that has ended already is left alone.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// Terminate asks the process to end, with SIGTERM.
func (p *Process) Terminate() { p.signal(syscall.SIGTERM) }

// Interrupt asks the process to end as Ctrl-C does, with SIGINT.
func (p *Process) Interrupt() { p.signal(syscall.SIGINT) }

// Pause stops the process with SIGSTOP until Resume: it keeps its memory and
// its sockets and answers nothing.
func (p *Process) Pause() { p.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// Reload sends SIGUSR1, at which coredns reads its Corefile again.
func (p *Process) Reload() { p.signal(syscall.SIGUSR1) }

// signal needs no error: it is only lost on a process that has ended.
func (p *Process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Exit waits for the process to end by itself and returns its exit code, -1 if a
// signal ended it. It ends the test when the process runs longer than limit.
func (p *Process) Exit(tb testing.TB, limit time.Duration) int {
	tb.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-timer.C:
		tb.Fatalf("%s still runs after %v", p.name, limit)
		return 0
	}
}

// Running reports an error once the process has ended.
func (p *Process) Running() error {
	select {
	case <-p.done:
		return errors.New(p.name + " has ended: " + p.cmd.ProcessState.String())
	default:
		return nil
	}
}

// Output is what the process has written so far to standard output and standard
// error.
func (p *Process) Output() string { return p.out.String() }

// Result is how a program ended that Run ran.
type Result struct {
	Stdout, Stderr string
	Code           int           // exit code, -1 if a signal ended it
	CPU            time.Duration // user and system
}

// runLimit ends a program that Run runs and that hangs. In a benchmark, whose size
// is anybody's choice, go test's -timeout does.
const runLimit = 2 * time.Minute

// Run runs a program to its end in the given working directory, with additional
// environment variables KEY=VALUE. What it writes is looked through as in Start.
func Run(tb testing.TB, dir string, p Program, env []string, args ...string) Result {
	tb.Helper()
	ctx := context.Background()
	if _, measured := tb.(*testing.B); !measured {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, runLimit)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, p.Path(tb), args...) //nolint:gosec // a program that this package built
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env, cmd.Dir, cmd.SysProcAttr = Environ(tb, env), dir, childAttr()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatalf("run %s: %v", p.name(), err)
	}
	if ctx.Err() != nil {
		tb.Fatalf("%v: still running after %v\n%s%s", cmd, runLimit, stdout.String(), stderr.String())
	}
	checkOutput(tb, p.name(), stdout.String()+stderr.String())
	ended := cmd.ProcessState
	return Result{stdout.String(), stderr.String(), ended.ExitCode(), ended.UserTime() + ended.SystemTime()}
}

// Environ is the environment of the test without what sets up the programs, and
// with a home directory of its own, followed by more variables KEY=VALUE.
func Environ(tb testing.TB, more []string) []string {
	tb.Helper()
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		for _, prefix := range []string{"DKIMD_", "DKIMCTL_", "ETCD_", "HOME=", "XDG_"} {
			if strings.HasPrefix(v, prefix) {
				return true
			}
		}
		return false
	})
	// The race detector waits a second at the end of each process by default.
	return append(append(env, "HOME="+tb.TempDir(), "GORACE=atexit_sleep_ms=0"), more...)
}

// checkOutput fails the test for what no process may ever write.
func checkOutput(tb testing.TB, name, output string) {
	tb.Helper()
	for _, bad := range []string{"WARNING: DATA RACE", "\npanic: ", "fatal error: ", "PRIVATE KEY-----"} {
		if i := strings.Index("\n"+output, bad); i >= 0 {
			tb.Errorf("%s wrote %q:\n%s", name, strings.TrimSpace(bad), head(output[max(i-1, 0):]))
		}
	}
}

const shown = 16 << 10

func head(s string) string {
	if len(s) > shown {
		return s[:shown] + "\n[cut]"
	}
	return s
}

func tail(s string) string {
	if len(s) > shown {
		return "[cut]\n" + s[len(s)-shown:]
	}
	return s
}
