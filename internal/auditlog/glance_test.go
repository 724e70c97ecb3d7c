package auditlog

import (
	"testing"
	"time"
)

// A glance takes the lines that Parse takes, and sees the same place.
func FuzzGlance(f *testing.F) {
	e := Entry{Chain: "0badcafe", Seq: 7, Prev: Hash{1}, Time: time.Unix(0, 0), Call: "x", Outcome: "OK"}
	line, _ := e.Append(nil)
	f.Add(line)
	f.Add([]byte(`{"chain":"0badcafe","seq":1,"prev":""}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		at, prev, ok := glance(text)
		e, err := Parse(text)
		if err == nil && (!ok || at != Position{e.Chain, e.Seq, e.Hash} || prev != e.Prev) {
			t.Errorf("%q: %+v, %s, %t; want %+v", text, at, prev, ok, e)
		}
	})
}

func BenchmarkGlance(b *testing.B) {
	e := Entry{Chain: "0badcafe", Seq: 7, Time: time.Unix(0, 0), Call: "dkim.v1.KeyManagement/ProvisionDomain", Resource: "brands/acme/domains/spamtrap.dk", Outcome: "OK"}
	line, _ := e.Append(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := glance(line); !ok {
			b.Fatal(string(line))
		}
	}
}
