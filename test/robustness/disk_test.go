package robustness_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/harness"
)

const fileErrors = "coredns_dkim_file_errors_total"

// What can happen to the local file, with etcd away when it is read.
func TestDisk(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	n := s.nodes[0]
	file := filepath.Join(n.dataDir, zone+".db")

	t.Run("killed", func(t *testing.T) {
		before := time.Now()
		s.model.mustWrite(t, 0, false)
		harness.Eventually(t, limit, "the file is written", func() error {
			info, err := os.Stat(file)
			if err == nil && !info.ModTime().After(before) {
				err = fmt.Errorf("written last at %v", info.ModTime())
			}
			return err
		})
		n.restarting(t, func() {
			n.Kill()
			n.each((*harness.Proxy).Cut)
			n.start()
			n.waitReady(t)
		})
		n.waitState(t, "disconnected")
		last(t) // answers of the file, judged by the queries that go on
		n.each((*harness.Proxy).Restore)
		s.model.settle(t, n)
		s.fresh(t, n)
		n.tells(t, []string{loaded}, []string{loaded, interrupted, followed})
	})

	for name, damage := range map[string]func(*os.File, int64) error{
		"truncated": func(f *os.File, size int64) error { return f.Truncate(size / 3) },
		"emptied":   func(f *os.File, _ int64) error { return f.Truncate(0) },
		"overwritten": func(f *os.File, size int64) error {
			junk := make([]byte, size/2)
			for i := range junk {
				junk[i] = byte(i * 7)
			}
			_, err := f.WriteAt(junk, size/4)
			return err
		},
		"one bit turned": func(f *os.File, _ int64) error {
			b, err := os.ReadFile(f.Name())
			if err != nil {
				return err
			}
			// In a record that is the only copy of it.
			i := bytes.LastIndex(b, []byte(owner(changing+7)))
			if i < 0 {
				return errors.New("the name is not in the file")
			}
			_, err = f.WriteAt([]byte{b[i+len(owner(changing+7))+10] ^ 4}, int64(i+len(owner(changing+7))+10))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			n.restarting(t, func() {
				n.Terminate()
				n.Exit(t, limit)
				if err := edit(file, damage); err != nil {
					t.Fatal(err)
				}
				n.each((*harness.Proxy).Cut)
				n.start()
				n.notReady(t)
				n.waitState(t, "loading")
				n.each((*harness.Proxy).Restore)
				n.waitReady(t)
			})
			s.model.settle(t, n)
			s.fresh(t, n)
			if name == "emptied" { // that is a new file
				n.tells(t, []string{listing("start")}, []string{interrupted, listing("start"), followed})
				return
			}
			n.tells(t, []string{setAside, listing("start")}, []string{setAside, interrupted, listing("start"), followed})
			if v := n.mustMetric(t, fileErrors); v == 0 {
				t.Errorf("%s = %v", fileErrors, v)
			}
		})
	}

	t.Run("full", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("only root can mount a small disk")
		}
		dir := harness.SmallDisk(t)
		n := newNode(s, "coredns on a small disk")
		n.moveData(t, dir)
		n.start()
		n.waitReady(t)
		s.model.query(t, n)
		s.model.settle(t, n)
		filler := filepath.Join(dir, "filler")
		fill(t, filler)
		for i := range names { // more than fits in what is free inside the file
			s.model.mustWrite(t, i, false)
		}
		s.model.settle(t, n)
		n.waitMetric(t, fileErrors, func(v float64) bool { return v > 0 })
		last(t)
		s.model.settle(t, n)
		s.fresh(t, n)
		n.tells(t, []string{listing("start"), notWritten})
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		n.tells(t, []string{writtenNow})
		n.restarting(t, func() {
			n.Terminate()
			n.Exit(t, limit)
			n.each((*harness.Proxy).Cut)
			n.start()
			n.waitReady(t)
		})
		s.model.waitServed(t, n) // from the file
		n.waitState(t, "disconnected")
		n.tells(t, []string{loaded}, []string{loaded, interrupted})
		n.seen.set(&n.seen.down, true)
		n.Kill() // its disk goes first
	})
}

// notReady waits until the node says that it knows nothing. It must not deny
// anything before that.
func (n *node) notReady(t *testing.T) {
	t.Helper()
	for _, name := range []string{owner(0), owner(changing), "never._domainkey", "_domainkey"} {
		harness.Eventually(t, limit, n.name+" answers", func() error {
			r, err := exchange(n.dns, name+"."+zone+".", dns.TypeTXT, answerTimeout)
			if err == nil && (r.Rcode != dns.RcodeServerFailure || len(r.Answer)+len(r.Ns) > 0) {
				t.Fatalf("answered, knowing nothing:\n%v", r)
			}
			return err
		})
	}
	if err := n.isReady(); err == nil {
		t.Error("ready, knowing nothing")
	}
}

func edit(file string, change func(*os.File, int64) error) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = change(f, info.Size())
	}
	return errors.Join(err, f.Close())
}

// fill writes until the disk is full.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 64<<10); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
}
