//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dkimzone/dkimzone/test/dataset"
)

const (
	probeCommand  = "probe"
	probeInterval = 500 * time.Microsecond
	probeNames    = 4096
	probeIDs      = 1 << 16
	tooLong       = 5 * time.Millisecond
	late          = 500 * time.Microsecond // of a thread that nothing may keep waiting
)

// prober is a process of its own that asks a DNS node every half millisecond,
// whether it answers or not. The time of a reply is the kernel's, of when it
// came to the socket, so that the prober's own delays count for nothing. Beside
// that a thread on CPU 0, which goes before all else there, notes when it is woken
// late: no more can be asked of a node.
type prober struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out chan samples
}

// samples are what a prober saw.
type samples struct {
	queries []sample
	machine []sample // wakings of the thread on the node's CPU that came late
}

type sample struct {
	at   time.Time
	took time.Duration // negative: no answer
}

// Kinds of samples, as the prober's process writes them.
const (
	kindQuery int64 = iota
	kindMachine
)

// startProber begins to ask for records of the zone.
func (b *bench) startProber(addr string) (*prober, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &prober{out: make(chan samples, 1)}
	p.cmd = exec.Command("taskset", "-c", strconv.Itoa(otherCPU), self, probeCommand, addr+"/"+strconv.Itoa(b.set.Len())) //nolint:gosec,noctx // this program; stop ends it
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=4", "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		var all samples
		r := bufio.NewReader(out)
		for {
			var v [3]int64
			if binary.Read(r, binary.LittleEndian, &v) != nil {
				break
			}
			x := sample{time.Unix(0, v[1]), time.Duration(v[2])}
			if v[0] == kindMachine {
				all.machine = append(all.machine, x)
			} else {
				all.queries = append(all.queries, x)
			}
		}
		p.out <- all
	}()
	return p, nil
}

// stop ends the prober and returns what it saw.
func (p *prober) stop() (samples, error) {
	err := p.in.Close()
	all := <-p.out
	return all, errors.Join(err, p.cmd.Wait())
}

// between is what was asked, and when the machine was late, from a to b.
func (s samples) between(a, b time.Time) samples {
	within := func(all []sample) []sample {
		return slices.DeleteFunc(slices.Clone(all), func(x sample) bool { return x.at.Before(a) || x.at.After(b) })
	}
	return samples{within(s.queries), within(s.machine)}
}

// columns of what an answer took, and their heads.
var latencyColumns = []any{"queries", "unanswered", "median ms", "p99.9 ms", "longest ms", "over 5 ms", "the machine's longest ms"}

func (s samples) columns() []any {
	var took []time.Duration
	unanswered, over := 0, 0
	for _, x := range s.queries {
		switch {
		case x.took < 0:
			unanswered++
			continue
		case x.took > tooLong:
			over++
		}
		took = append(took, x.took)
	}
	slices.Sort(took)
	var machine time.Duration
	for _, x := range s.machine {
		machine = max(machine, x.took)
	}
	return []any{len(s.queries), unanswered, ms(quantile(took, .5)), ms(quantile(took, .999)), ms(quantile(took, 1)), over, ms(machine)}
}

// quantile is of sorted durations.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()*1e3) }

// probeMain is the prober's process. The argument is ADDRESS/RECORDS.
func probeMain(arg string) error {
	addr, count, _ := strings.Cut(arg, "/")
	records, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	queries, err := probeQueries(dataset.New(records))
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	const receiveBuffer = 4 << 20
	if err := errors.Join(
		syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer),
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TIMESTAMPNS, 1),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 100_000}),
	); err != nil {
		return err
	}
	var sent, took [probeIDs]atomic.Int64
	var end atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // its end is what counts
		end.Store(true)
	}()
	realTime()
	go receive(fd, &sent, &took)
	machine := make(chan []sample)
	go func() { machine <- watchMachine(&end) }()

	out := bufio.NewWriter(os.Stdout)
	// The answer of a query is looked at when its number comes again, or at
	// the end: much later than any answer comes.
	collect := func(id int) {
		if at := sent[id].Load(); at != 0 {
			_ = binary.Write(out, binary.LittleEndian, [3]int64{kindQuery, at, took[id].Load()}) // Flush tells
		}
	}
	runtime.LockOSThread()
	n := 0
	for due := time.Now(); !end.Load(); n++ {
		id := n % probeIDs
		collect(id)
		q := queries[n%len(queries)]
		binary.BigEndian.PutUint16(q, uint16(id))
		took[id].Store(-1)
		time.Sleep(time.Until(due))
		sent[id].Store(time.Now().UnixNano())
		if _, err := syscall.Write(fd, q); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		due = due.Add(probeInterval)
	}
	time.Sleep(time.Second) // for the last answers
	for i := range probeIDs {
		collect((n + i) % probeIDs)
	}
	for _, x := range <-machine {
		_ = binary.Write(out, binary.LittleEndian, [3]int64{kindMachine, x.at.UnixNano(), x.took.Nanoseconds()}) // Flush tells
	}
	return out.Flush()
}

// watchMachine notes when its thread, on the CPU of what is measured, is woken late.
func watchMachine(end *atomic.Bool) []sample {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(measuredCPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		fmt.Fprintln(os.Stderr, "the machine is not watched:", err)
		return nil
	}
	var all []sample
	for due := time.Now(); !end.Load(); {
		due = due.Add(probeInterval)
		// Not by Go's own timers, for which other threads would have to run.
		left := unix.NsecToTimespec(int64(time.Until(due)))
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &left, nil) // a signal, or no time left, only ends it early
		if by := time.Since(due); by > late {
			all = append(all, sample{due, by})
			due = time.Now()
		}
	}
	return all
}

// receive notes what the answers took.
func receive(fd int, sent, took *[probeIDs]atomic.Int64) {
	runtime.LockOSThread()
	const room = 64
	buf, control := make([]byte, dns.MinMsgSize), make([]byte, room)
	for {
		n, nc, _, _, err := syscall.Recvmsg(fd, buf, control, 0)
		if err != nil || n < 4 || buf[3]&0xf != dns.RcodeSuccess {
			continue // nothing came, or no answer, which shows as such
		}
		messages, err := syscall.ParseSocketControlMessage(control[:nc])
		if err != nil || len(messages) == 0 || len(messages[0].Data) < int(unsafe.Sizeof(syscall.Timespec{})) {
			continue
		}
		stamp := (*syscall.Timespec)(unsafe.Pointer(&messages[0].Data[0])).Nano() //nolint:gosec // what the kernel puts there
		id := binary.BigEndian.Uint16(buf)
		took[id].Store(stamp - sent[id].Load())
	}
}

// probeQueries are questions for random records.
func probeQueries(set dataset.Set) ([][]byte, error) {
	random := rand.New(rand.NewPCG(3, 4))
	var queries [][]byte
	for range probeNames {
		m := new(dns.Msg).SetQuestion(set.Owner(random.IntN(set.Len()))+"."+dataset.Zone+".", dns.TypeTXT)
		const size = 1232
		q, err := m.SetEdns0(size, false).Pack()
		if err != nil {
			return nil, err
		}
		queries = append(queries, q)
	}
	return queries, nil
}

// realTime lets all threads of the process, and those that they start, go before
// those of others, if it may: one that waits for what another of them holds would
// keep it from the CPU.
func realTime() {
	const fifo = 1
	priority := int32(50)
	threads, _ := filepath.Glob("/proc/self/task/[0-9]*") // the pattern is good
	for _, t := range threads {
		id, err := strconv.Atoi(filepath.Base(t))
		if err != nil {
			continue
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, uintptr(id), fifo, uintptr(unsafe.Pointer(&priority))); errno != 0 { //nolint:gosec // struct sched_param
			fmt.Fprintln(os.Stderr, "the prober has no real-time priority:", errno)
			return
		}
	}
}
