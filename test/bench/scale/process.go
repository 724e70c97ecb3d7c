//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running program.
type process struct {
	cmd *exec.Cmd
	out output
	end chan struct{} // closed once it has ended
	err error         // how, good from then on
}

// output keeps what a process writes and when each line came.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines []line
}

type line struct {
	at   time.Time
	text string
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	for {
		text, err := o.text.ReadString('\n')
		if err != nil {
			o.text.WriteString(text)
			return len(p), nil
		}
		o.lines = append(o.lines, line{time.Now(), text})
	}
}

// last is when the latest line with part in it came; zero if none did.
func (o *output) last(part string) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range slices.Backward(o.lines) {
		if strings.Contains(l.text, part) {
			return l.at
		}
	}
	return time.Time{}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b strings.Builder
	for _, l := range o.lines {
		b.WriteString(l.text)
	}
	return b.String() + o.text.String()
}

// goFirst has this process, and those it starts, go before other programs on the
// machine, if it may. It is called before other threads are started.
func goFirst() {
	const first = -20
	threads, _ := filepath.Glob("/proc/self/task/[0-9]*") // the pattern is good
	for _, t := range threads {
		if id, err := strconv.Atoi(filepath.Base(t)); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, first) // not as another user than root
		}
	}
}

// stayOn keeps this process on a CPU, or lets it run on all.
func stayOn(cpu int) error {
	var set unix.CPUSet
	for _, c := range cpus(cpu) {
		set.Set(c)
	}
	threads, err := filepath.Glob("/proc/self/task/[0-9]*")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(filepath.Base(t))
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
			return err
		}
	}
	return nil
}

// cpus are the numbers that a CPU of a part stands for.
func cpus(cpu int) []int {
	if cpu != anyCPU {
		return []int{cpu}
	}
	var all []int
	for c := range runtime.NumCPU() {
		all = append(all, c)
	}
	return all
}

// spawn starts a program on a CPU, or on all.
func spawn(dir string, cpu int, args ...string) (*process, error) {
	var list []string
	for _, c := range cpus(cpu) {
		list = append(list, strconv.Itoa(c))
	}
	args = append([]string{"taskset", "-c", strings.Join(list, ",")}, args...)
	p := &process{cmd: exec.Command(args[0], args[1:]...), end: make(chan struct{})} //nolint:gosec,noctx // programs that build built; stop ends them
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.end)
	}()
	return p, nil
}

// ended returns an error once the process has ended.
func (p *process) ended() error {
	select {
	case <-p.end:
		return fmt.Errorf("%v has ended: %w\n%s", p.cmd, p.err, &p.out)
	default:
		return nil
	}
}

// stop asks the process to end and waits until it has.
func (p *process) stop() error {
	const limit = time.Minute
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.end:
		return nil
	case <-time.After(limit):
		_ = p.cmd.Process.Kill() // it may have ended just now
		<-p.end
		return fmt.Errorf("%v did not stop within %v", p.cmd, limit)
	}
}

// cpu is the user and system time used so far.
func (p *process) cpu() (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture Go runs on
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const user, system = 11, 12
	u, err1 := strconv.Atoi(fields[user])
	s, err2 := strconv.Atoi(fields[system])
	return time.Duration(u+s) * tick, errors.Join(err1, err2)
}

// memory is a field of the process' status, such as VmRSS or VmHWM, in MiB.
func (p *process) memory(field string) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field+":"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s of %v", field, p.cmd)
}

// forgetPeak makes VmHWM begin anew.
func (p *process) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}
