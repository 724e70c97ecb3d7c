package harness

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Clock is the clocks of one process, which differ from the system's.
type Clock struct {
	mem   string // the file that is the memory of the process
	table int64  // where in it the two differences stand
}

// clockGettime takes the place of clock_gettime in the vDSO, the kernel's code
// in each process, which is where Go reads clocks. It asks the kernel, then adds
// the seconds that stand behind it, for clock 0, the wall's, and for clock 1, the
// monotonic one.
var clockGettime = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228
	0x0f, 0x05, // syscall
	0x85, 0xc0, // test eax, eax
	0x75, 0x16, // jne end
	0x83, 0xff, 0x01, // cmp edi, 1
	0x77, 0x11, // ja end
	0x48, 0x63, 0xcf, // movsxd rcx, edi
	0x48, 0x8d, 0x15, 0x0e, 0x00, 0x00, 0x00, // lea rdx, [table]
	0x48, 0x8b, 0x0c, 0xca, // mov rcx, [rdx+rcx*8]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3,                               // end: ret
	0x90, 0x90, 0x90, 0x90, 0x90, 0x90, // for alignment
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // table
}

const clockTable = 0x28

// Clock gives the process clocks of its own, which are right at first. It skips
// the test where that cannot be done.
func (p *Process) Clock(tb testing.TB) *Clock {
	tb.Helper()
	proc := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	first, last, err := vdso(proc)
	if err != nil {
		tb.Skipf("no clock of its own: %v", err)
	}
	c := &Clock{mem: proc + "/mem"}
	code := make([]byte, last-first)
	mem, err := os.OpenFile(c.mem, os.O_RDWR, 0)
	if err != nil {
		tb.Skipf("no clock of its own: %v", err)
	}
	defer mem.Close() //nolint:errcheck // what was written is there
	if _, err := mem.ReadAt(code, first); err != nil {
		tb.Skipf("no clock of its own: %v", err)
	}
	at, err := symbol(code, "__vdso_clock_gettime", len(clockGettime))
	if err != nil {
		tb.Skipf("no clock of its own: %v", err)
	}
	at += first
	if at%8 != 0 {
		tb.Skipf("no clock of its own: the code is at %x", at)
	}
	Eventually(tb, time.Minute, p.name+" is not reading a clock", func() error {
		p.Pause()
		defer p.Resume()
		if err := outside(proc, first, last); err != nil {
			return err
		}
		_, err := mem.WriteAt(clockGettime, at)
		return err
	})
	c.table = at + clockTable
	return c
}

// Set lets the clocks be ahead of the system's, in whole seconds. A monotonic
// clock must not be set back.
func (c *Clock) Set(tb testing.TB, wall, monotonic time.Duration) {
	tb.Helper()
	b := binary.LittleEndian.AppendUint64(nil, uint64(wall/time.Second))   //nolint:gosec // two's complement
	b = binary.LittleEndian.AppendUint64(b, uint64(monotonic/time.Second)) //nolint:gosec // likewise
	mem, err := os.OpenFile(c.mem, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	_, err = mem.WriteAt(b, c.table)
	if err := errors.Join(err, mem.Close()); err != nil {
		tb.Fatal(err)
	}
}

// vdso is where the kernel's code lies in a process.
func vdso(proc string) (first, last int64, err error) {
	maps, err := os.ReadFile(filepath.Join(proc, "maps"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err = fmt.Sscanf(line, "%x-%x", &first, &last)
			return first, last, err
		}
	}
	return 0, 0, errors.New("no vDSO")
}

// symbol is where in the code of a shared object a function of at least so many
// octets begins.
func symbol(code []byte, name string, size int) (int64, error) {
	f, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		return 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for _, s := range symbols {
		if s.Name == name && s.Size >= uint64(size) { //nolint:gosec // a length
			return int64(s.Value), nil //nolint:gosec // within code
		}
	}
	return 0, fmt.Errorf("no %s of %d octets", name, size)
}

// outside reports an error unless all threads of a process stand outside of a
// piece of code.
func outside(proc string, first, last int64) error {
	threads, err := filepath.Glob(filepath.Join(proc, "task", "*", "syscall"))
	if err != nil {
		return err
	}
	for _, file := range threads {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		line := strings.TrimSpace(string(b)) // the last field is the program counter
		pc, err := strconv.ParseInt(line[strings.LastIndexByte(line, ' ')+1:], 0, 64)
		if err != nil {
			return fmt.Errorf("%s: %q", file, b) // it still runs
		}
		if pc >= first && pc < last {
			return fmt.Errorf("a thread reads a clock at %x", pc)
		}
	}
	return nil
}
