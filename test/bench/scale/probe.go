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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/dataset"
)

const (
	probeCommand  = "probe"
	probeInterval = 500 * time.Microsecond
	probeNames    = 4096
	probeIDs      = 1 << 16
	tooLong       = 5 * time.Millisecond
)

// prober is a process of its own that asks a DNS node every half millisecond,
// whether it answers or not. The time of a reply is the kernel's, of when it
// came to the socket, so that the prober's own delays count for nothing.
type prober struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out chan []sample
}

// sample is one query.
type sample struct {
	at   time.Time
	took time.Duration // negative: no answer
}

// startProber begins to ask for records of the zone.
func (b *bench) startProber(addr string) (*prober, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &prober{out: make(chan []sample, 1)}
	p.cmd = exec.Command("taskset", "-c", strconv.Itoa(otherCPU), self, probeCommand, addr+"/"+strconv.Itoa(b.set.Len())) //nolint:gosec,noctx // this program; stop ends it
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=4", "GOGC=off")
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
		var all []sample
		r := bufio.NewReader(out)
		for {
			var v [2]int64
			if binary.Read(r, binary.LittleEndian, &v) != nil {
				break
			}
			all = append(all, sample{time.Unix(0, v[0]), time.Duration(v[1])})
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

type samples []sample

// between is what was asked from a to b.
func (s samples) between(a, b time.Time) samples {
	return slices.DeleteFunc(slices.Clone(s), func(x sample) bool { return x.at.Before(a) || x.at.After(b) })
}

// columns of what an answer took, and their heads.
var latencyColumns = []any{"queries", "unanswered", "median ms", "p99.9 ms", "longest ms", "over 5 ms"}

func (s samples) columns() []any {
	var took []time.Duration
	unanswered, over := 0, 0
	for _, x := range s {
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
	return []any{len(s), unanswered, ms(quantile(took, .5)), ms(quantile(took, .999)), ms(quantile(took, 1)), over}
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
	go receive(fd, &sent, &took)

	out := bufio.NewWriter(os.Stdout)
	// The answer of a query is looked at when its number comes again, or at
	// the end: much later than any answer comes.
	collect := func(id int) {
		if at := sent[id].Load(); at != 0 {
			_ = binary.Write(out, binary.LittleEndian, [2]int64{at, took[id].Load()}) // Flush tells
		}
	}
	realTime()
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
	return out.Flush()
}

// receive notes what the answers took.
func receive(fd int, sent, took *[probeIDs]atomic.Int64) {
	realTime()
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

// realTime lets the goroutine's thread go before all others, if it may.
func realTime() {
	runtime.LockOSThread()
	const fifo = 1
	priority := int32(50)
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, 0, fifo, uintptr(unsafe.Pointer(&priority))); errno != 0 { //nolint:gosec // struct sched_param
		fmt.Fprintln(os.Stderr, "the prober has no real-time priority:", errno)
	}
}
