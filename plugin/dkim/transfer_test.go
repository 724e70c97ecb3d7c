package dkim

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/transfer"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/replica"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	tsigName   = "secondary.example.org."
	tsigSecret = "c2VjcmV0IG9mIHRoZSBzZWNvbmRhcmllcw=="
)

// transferServer serves m with the transfer plugin and what is in more.
func transferServer(t testing.TB, m *memory, more string) *server {
	t.Helper()
	unregister := replica.RegisterInProcess(t.Name(), m)
	t.Cleanup(unregister)
	corefile := fmt.Sprintf(".:0 {\n bind 127.0.0.1\n %s\n transfer %s {\n  to *\n }\n dkim %s {\n  endpoint %s\n }\n}\n",
		more, testZone, testZone, replica.InProcessScheme+t.Name())
	s := startServer(t, corefile)
	waitFor(t, m.rev)
	return s
}

// axfr returns the records of a transfer, the last SOA included.
func (s *server) axfr(t testing.TB, q *dns.Msg, secrets map[string]string) ([]dns.RR, error) {
	t.Helper()
	tr := &dns.Transfer{TsigSecret: secrets, ReadTimeout: 30 * time.Second}
	ch, err := tr.In(q, s.tcp)
	if err != nil {
		return nil, err
	}
	var all []dns.RR
	for e := range ch {
		if e.Error != nil {
			err = e.Error
			continue
		}
		all = append(all, e.RR...)
	}
	return all, err
}

func axfrQuery() *dns.Msg { return new(dns.Msg).SetAxfr(testZone + ".") }

func ixfrQuery(serial uint32) *dns.Msg {
	return new(dns.Msg).SetIxfr(testZone+".", serial, "ns1."+testZone+".", "hostmaster.example.org.")
}

// contents is a zone as a set of records, the SOA record aside, and its serial.
func contents(t testing.TB, all []dns.RR) (uint32, []string) {
	t.Helper()
	if len(all) < 2 {
		t.Fatalf("transfer of %d records", len(all))
	}
	first, ok1 := all[0].(*dns.SOA)
	last, ok2 := all[len(all)-1].(*dns.SOA)
	if !ok1 || !ok2 || first.String() != last.String() {
		t.Fatalf("transfer begins with %v and ends with %v", all[0], all[len(all)-1])
	}
	var set []string
	for _, rr := range all[1 : len(all)-1] {
		set = append(set, rr.String())
	}
	slices.Sort(set)
	return first.Serial, set
}

// zoneText is what a transfer of a zone has to have.
func zoneText(t testing.TB, apex schema.Apex, records map[string]schema.PublicRecord) []string {
	t.Helper()
	a := newApex(&replica.Apex{Apex: apex}, testZone+".")
	var set []string
	for _, rr := range a.records(testZone + ".") {
		set = append(set, rr.String())
	}
	for owner, rec := range records {
		rr, err := keyRecord(owner+"."+testZone+".", rec)
		if err != nil {
			t.Fatal(err)
		}
		set = append(set, rr.String())
	}
	slices.Sort(set)
	return set
}

func TestAXFR(t *testing.T) {
	m := newMemory()
	records := testRecords(t)
	for i := range 5000 { // several messages
		records[fmt.Sprintf("s1-bulk%d._domainkey", i)] = schema.PublicRecord{PublicKey: decode(t, goldenKey), TTL: 600}
	}
	m.put(zoneValues(t, testZone, testApex(), records))
	s := transferServer(t, m, "")
	all, err := s.axfr(t, axfrQuery(), nil)
	if err != nil {
		t.Fatal(err)
	}
	serial, got := contents(t, all)
	if diff := cmp.Diff(zoneText(t, testApex(), records), got); diff != "" || serial != uint32(m.rev) {
		t.Errorf("serial %d, want %d; records (-want +got):\n%s", serial, m.rev, diff)
	}
	soa := s.exchange(t, "udp", query(testZone+".", dns.TypeSOA)).Answer[0].String()
	if soa != all[0].String() {
		t.Errorf("SOA record %s, in the transfer %s", soa, all[0])
	}

	if reply := s.exchange(t, "udp", axfrQuery()); reply.Rcode != dns.RcodeRefused {
		t.Errorf("AXFR over UDP: %s", dns.RcodeToString[reply.Rcode])
	}
	for _, name := range []string{"example.net.", "sub." + testZone + "."} {
		if reply := s.exchange(t, "tcp", new(dns.Msg).SetAxfr(name)); reply.Rcode != dns.RcodeRefused {
			t.Errorf("AXFR of %s: %s", name, dns.RcodeToString[reply.Rcode])
		}
	}
	if reply := s.exchange(t, "tcp", query("KEYS.Example.NET.", dns.TypeAXFR)); reply.Rcode != dns.RcodeSuccess || len(reply.Answer) == 0 {
		t.Errorf("AXFR in mixed case: %s", dns.RcodeToString[reply.Rcode])
	}
}

func TestTransferOfUnloadedZone(t *testing.T) {
	s := transferServer(t, newMemory(), "")
	if reply := s.exchange(t, "tcp", axfrQuery()); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("AXFR of a zone that is not loaded: %s", dns.RcodeToString[reply.Rcode])
	}
}

// A secondary that has our serial, or a later one, gets the SOA record alone.
func TestIXFRCurrent(t *testing.T) {
	m := newMemory()
	m.rev = 1<<32 - 10
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	s := transferServer(t, m, "")
	now := uint32(m.rev)
	tests := []struct {
		name   string
		serial uint32
		single bool
	}{
		{"ours", now, true},
		{"later", now + 1, true},
		{"later, past the wrap", now + 100, true},
		{"half the circle less one later", now + 1<<31 - 1, true},
		{"half the circle away", now + 1<<31, false},
		{"earlier", now - 1, false},
		{"unknown", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := s.exchange(t, "tcp", ixfrQuery(tt.serial)).Answer
			if len(all) == 0 {
				t.Fatal("no answer")
			}
			if single := len(all) == 1; single != tt.single || all[0].(*dns.SOA).Serial != now {
				t.Errorf("IXFR from %d at %d: %d records, the first %v", tt.serial, now, len(all), all[0])
			}
		})
	}
}

// A transfer is of one revision, whatever changes while it is on its way.
func TestAXFRWhileZoneChanges(t *testing.T) {
	m := newMemory()
	records := make(map[string]schema.PublicRecord)
	for i := range 2000 {
		records[fmt.Sprintf("s1-a%d._domainkey", i)] = schema.PublicRecord{PublicKey: decode(t, goldenKey), TTL: 1}
	}
	m.put(zoneValues(t, testZone, testApex(), records))
	d := newHandler(t, m, testZone)
	ch, err := d.Transfer(testZone+".", 0)
	if err != nil {
		t.Fatal(err)
	}
	first := m.rev
	all := <-ch
	for round := range uint32(20) { // each between two batches
		changed := make(map[string]schema.PublicRecord)
		for i := range 100 {
			changed[fmt.Sprintf("s1-a%d._domainkey", int(round)*100+i)] = schema.PublicRecord{TTL: round + 2}
			changed[fmt.Sprintf("s1-b%d._domainkey", int(round)*100+i)] = schema.PublicRecord{TTL: round + 2}
		}
		values := zoneValues(t, testZone, testApex(), changed)
		for i := range 50 {
			values[schema.RecordKey(testZone, fmt.Sprintf("s1-a%d._domainkey", int(round)*100+i))] = nil
		}
		rev := m.put(values)
		if err := d.zones[0].replica.Load().WaitRevision(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		if round < 10 {
			all = append(all, <-ch...)
		}
	}
	for batch := range ch {
		all = append(all, batch...)
	}
	serial, got := contents(t, all)
	if diff := cmp.Diff(zoneText(t, testApex(), records), got); diff != "" || int64(serial) != first {
		t.Errorf("serial %d, want %d; records (-want +got):\n%s", serial, first, diff)
	}
}

func TestTooManyTransfers(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	var running []<-chan []dns.RR
	for range maxTransfers {
		ch, err := d.Transfer(testZone+".", 0)
		if err != nil {
			t.Fatal(err)
		}
		running = append(running, ch)
	}
	if _, err := d.Transfer(testZone+".", 0); err == nil || !strings.Contains(err.Error(), "on their way") {
		t.Errorf("one more transfer: %v", err)
	}
	for _, ch := range running {
		for range ch {
		}
	}
	waitUntil(t, func() bool { return d.zones[0].sending.Load() == 0 })
	if _, err := d.Transfer("example.org.", 0); !errors.Is(err, transfer.ErrNotAuthoritative) {
		t.Errorf("transfer of another zone: %v", err)
	}
}

// What nobody takes does not wait for ever.
func TestStalledTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBatcher(make(chan []dns.RR))
		began := time.Now()
		added := 1
		for b.add(&dns.TXT{}) {
			added++
		}
		if added != transferBatch || time.Since(began) != transferStall {
			t.Errorf("%d records in %s", added, time.Since(began))
		}
		if err := b.flush(); err == nil || time.Since(began) != transferStall {
			t.Errorf("after that: %v in %s", err, time.Since(began))
		}
	})
}

// waitUntil waits for what another goroutine is about to do.
func waitUntil(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("it did not happen in 30 s")
		}
		runtime.Gosched()
	}
}

// A client that leaves in the middle leaves nothing behind.
func TestClientLeavesTransfer(t *testing.T) {
	m := newMemory()
	records := make(map[string]schema.PublicRecord)
	for i := range 50_000 { // more than the buffers of the connection hold
		records[fmt.Sprintf("s1-a%d._domainkey", i)] = schema.PublicRecord{PublicKey: decode(t, goldenKey), TTL: 1}
	}
	m.put(zoneValues(t, testZone, testApex(), records))
	s := transferServer(t, m, "")
	before := runtime.NumGoroutine()
	for range 5 {
		conn, err := net.Dial("tcp", s.tcp)
		if err != nil {
			t.Fatal(err)
		}
		c := dns.Conn{Conn: conn}
		if err := c.WriteMsg(axfrQuery()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadMsg(); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	z := started.all[0].zones[0]
	waitUntil(t, func() bool { return z.sending.Load() == 0 })
	waitUntil(t, func() bool { return runtime.NumGoroutine() <= before+3 }) // the server may have been starting when they were counted
}

func TestTSIG(t *testing.T) {
	m := newMemory()
	records := testRecords(t)
	for i := range 1000 { // several messages
		records[fmt.Sprintf("s1-bulk%d._domainkey", i)] = schema.PublicRecord{PublicKey: decode(t, goldenKey), TTL: 600}
	}
	m.put(zoneValues(t, testZone, testApex(), records))
	s := transferServer(t, m, "tsig {\n  secret "+tsigName+" "+tsigSecret+"\n  require AXFR IXFR\n }")
	signed := func(q *dns.Msg) *dns.Msg { return q.SetTsig(tsigName, dns.HmacSHA256, 300, time.Now().Unix()) }
	for name, q := range map[string]*dns.Msg{"AXFR": axfrQuery(), "IXFR": ixfrQuery(1)} {
		all, err := s.axfr(t, signed(q), map[string]string{tsigName: tsigSecret})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, got := contents(t, all); !slices.Equal(got, zoneText(t, testApex(), records)) {
			t.Errorf("%s: %d records", name, len(got))
		}
	}
	if reply := s.exchange(t, "tcp", axfrQuery()); reply.Rcode != dns.RcodeRefused {
		t.Errorf("AXFR without TSIG: %s", dns.RcodeToString[reply.Rcode])
	}
	wrong := base64.StdEncoding.EncodeToString([]byte("another"))
	if all, err := s.axfr(t, signed(axfrQuery()), map[string]string{tsigName: wrong}); err == nil {
		t.Errorf("AXFR with another secret: %d records", len(all))
	}
	if reply := s.exchange(t, "udp", query(testZone+".", dns.TypeSOA)); reply.Rcode != dns.RcodeSuccess {
		t.Errorf("SOA without TSIG: %s", dns.RcodeToString[reply.Rcode])
	}
}

// secondary takes NOTIFY messages and counts them.
func secondary(t testing.TB) (addr string, notified *atomic.Int64) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	notified = new(atomic.Int64)
	up := make(chan struct{})
	srv := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(up) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if r.Opcode == dns.OpcodeNotify && r.Question[0].Name == testZone+"." {
			notified.Add(1)
		}
		_ = w.WriteMsg(new(dns.Msg).SetReply(r))
	})}
	go srv.ActivateAndServe() //nolint:errcheck // it ends with the test
	<-up
	t.Cleanup(func() { _ = srv.Shutdown() })
	return conn.LocalAddr().String(), notified
}

// Secondaries are told at the start and of changes, over reloads, which leave
// nothing behind.
func TestNotify(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	defer replica.RegisterInProcess(t.Name(), m)()
	addr, notified := secondary(t)
	text := fmt.Sprintf(".:0 {\n bind 127.0.0.1\n transfer %s {\n  to %s\n }\n dkim %s {\n  endpoint %s\n }\n}\n",
		testZone, addr, testZone, replica.InProcessScheme+t.Name())
	s := startServer(t, text)
	waitUntil(t, func() bool { return notified.Load() == 1 })
	goroutines := runtime.NumGoroutine()
	for range 20 {
		next, err := s.Restart(input(text))
		if err != nil {
			t.Fatal(err)
		}
		s.Instance = next
	}
	waitUntil(t, func() bool { return notified.Load() == 2 }) // of the last instance only
	waitUntil(t, func() bool { return runtime.NumGoroutine() <= goroutines+3 })
	m.put(zoneValues(t, testZone, testApex(), nil))
	waitUntil(t, func() bool { return notified.Load() == 3 })
}

// Many changes in a row make few messages, and one that does not get through
// does not keep the replica.
func TestNotifyIsDebounced(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), nil))
	d := newHandler(t, m, testZone)
	rep := d.zones[0].replica.Load()
	calls := make(chan uint32, 1000)
	hang := make(chan struct{})
	n := &notifier{zone: testZone + ".", delay: time.Millisecond, notify: func(string) error {
		calls <- rep.Apex().Serial
		<-hang
		return errors.New("no answer")
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); n.run(ctx, rep.Replica) }()
	<-calls
	for range 500 {
		rev := m.put(zoneValues(t, testZone, testApex(), nil))
		if err := rep.WaitRevision(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
	}
	close(hang)
	if got := <-calls; int64(got) != m.rev {
		t.Errorf("told of serial %d, want %d", got, m.rev)
	}
	cancel()
	<-ended
	if len(calls) != 0 {
		t.Errorf("%d more calls", len(calls))
	}
}

func TestNewer(t *testing.T) {
	for _, tt := range []struct {
		a, b uint32
		want bool
	}{
		{1, 1, false}, {2, 1, true}, {1, 2, false}, {1, math.MaxUint32, true}, {math.MaxUint32, 1, false},
		{0x7fffffff, 0, true}, {0x80000000, 0, true}, {0x80000001, 0, false},
	} {
		if got := newer(tt.a, tt.b); got != tt.want {
			t.Errorf("newer(%d, %d) = %v", tt.a, tt.b, got)
		}
	}
}
