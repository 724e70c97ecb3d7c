package auditlog_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/auditlog"
)

var at = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// full has every field.
func full() auditlog.Entry {
	return auditlog.Entry{
		Chain: "0badcafe", Seq: 7, Prev: auditlog.Hash{1, 2, 3}, Time: at,
		Who:     auditlog.Who{Role: "brand", Name: "shop", Brand: "acme", Method: "secret", Credential: "s1", Address: "192.0.2.1"},
		Request: "r-1", Call: "dkim.v1.KeyManagement/RotateDomain", Resource: "brands/acme/domains/spamtrap.dk",
		Outcome: "FAILED_PRECONDITION", Reason: "STANDBY_NOT_PROVEN", Revision: 99,
		Asked: map[string]string{"when_ready": "true", "a": "b"}, Before: map[string]string{"x": "1"}, After: map[string]string{"x": "2"},
		Steps: []auditlog.Step{
			{Action: "ACTIVATE", Resource: "brands/acme/domains/spamtrap.dk/keys/k", Selector: "selector2", Algorithm: "ed25519", From: "PREPARED", To: "ACTIVE", Reason: "REQUESTED"},
			{},
		},
		Repeated: 3,
	}
}

// The form of a line is a promise to those who read it.
func TestForm(t *testing.T) {
	e := full()
	line, hash := e.Append(nil)
	want := `{"chain":"0badcafe","seq":7,"prev":"0102030000000000000000000000000000000000000000000000000000000000",` +
		`"time":"2026-03-01T12:00:00.123456Z","who":{"role":"brand","name":"shop","brand":"acme","method":"secret","credential":"s1","address":"192.0.2.1"},` +
		`"request":"r-1","call":"dkim.v1.KeyManagement/RotateDomain","resource":"brands/acme/domains/spamtrap.dk",` +
		`"outcome":"FAILED_PRECONDITION","reason":"STANDBY_NOT_PROVEN","revision":99,"asked":{"a":"b","when_ready":"true"},"before":{"x":"1"},"after":{"x":"2"},` +
		`"steps":[{"action":"ACTIVATE","resource":"brands/acme/domains/spamtrap.dk/keys/k","selector":"selector2","algorithm":"ed25519","from":"PREPARED","to":"ACTIVE","reason":"REQUESTED"},{}],` +
		`"repeated":3,"hash":"` + hash.String() + `"}`
	if diff := cmp.Diff(want, string(line)); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
	if want := "a014"; hash.String()[:4] != want {
		t.Errorf("hash %s, want one that begins with %s", hash, want)
	}
}

func TestParse(t *testing.T) {
	empty := auditlog.Entry{Chain: "00000000", Seq: 1, Time: at}
	for name, e := range map[string]auditlog.Entry{"full": full(), "empty": empty} {
		line, hash := e.Append([]byte("before"))
		got, err := auditlog.Parse(line[len("before"):])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e.Hash = hash
		if diff := cmp.Diff(e, got); diff != "" {
			t.Errorf("%s (-written +read):\n%s", name, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	e := full()
	text, _ := e.Append(nil)
	line := string(text)
	for _, tt := range []struct{ name, line string }{
		{"nothing", ""},
		{"no JSON", "hello"},
		{"another object", "{}"},
		{"a part", line[:len(line)-10]},
		{"a space", strings.Replace(line, `,"seq"`, `, "seq"`, 1)},
		{"a space at the end", line + " "},
		{"a second object", line + "{}"},
		{"an unknown field", strings.Replace(line, `,"seq"`, `,"x":1,"seq"`, 1)},
		{"a field twice", strings.Replace(line, `"seq":7`, `"seq":7,"seq":7`, 1)},
		{"a field in capitals", strings.Replace(line, `"seq"`, `"SEQ"`, 1)},
		{"the hash in capitals", strings.Replace(line, `"hash"`, `"HASH"`, 1)},
		{"another order", strings.Replace(line, `"asked":{"a":"b","when_ready":"true"}`, `"asked":{"when_ready":"true","a":"b"}`, 1)},
		{"an escape too many", strings.Replace(line, `"r-1"`, `"\u0072-1"`, 1)},
		{"a nanosecond", strings.Replace(line, `123456Z`, `123456789Z`, 1)},
		{"another zone", strings.Replace(line, `123456Z`, `123456+00:00`, 1)},
		{"a short hash", strings.Replace(line, `"prev":"01`, `"prev":"0`, 1)},
		{"no place", strings.Replace(line, `"seq":7`, `"seq":0`, 1)},
		{"a bad chain", strings.Replace(line, `0badcafe`, `0BADCAFE`, 1)},
		{"an empty field", strings.Replace(line, `"role":"brand"`, `"role":""`, 1)},
	} {
		if got, err := auditlog.Parse([]byte(tt.line)); !errors.Is(err, auditlog.ErrMalformed) || !cmp.Equal(got, auditlog.Entry{}) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", tt.name, got, err)
		}
	}
	if _, err := auditlog.Parse([]byte(strings.Replace(line, "acme", "evil", 1))); !errors.Is(err, auditlog.ErrHash) {
		t.Errorf("changed content: %v, want ErrHash", err)
	}
}

// What is read is written again octet by octet.
func FuzzParse(f *testing.F) {
	e := full()
	line, _ := e.Append(nil)
	f.Add(line)
	f.Add([]byte(`{"chain":"00000000"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := auditlog.Parse(text)
		if err != nil && !errors.Is(err, auditlog.ErrHash) {
			return
		}
		again, hash := e.Append(nil)
		if err == nil && !bytes.Equal(again, text) || err != nil && hash == e.Hash {
			t.Errorf("%q is read as %+v, %v and written as %q", text, e, err, again)
		}
	})
}

// Whatever stands in an entry, its line is one line of ASCII control-free text
// that says the same.
func FuzzAppend(f *testing.F) {
	f.Add("alice", "brands/ü", "\x00\n\"\\\u2028\x7f", uint64(1))
	f.Add("\xff\xfe", "", "{}", uint64(1<<63))
	f.Fuzz(func(t *testing.T, name, resource, value string, seq uint64) {
		e := auditlog.Entry{
			Chain: "0badcafe", Seq: max(seq, 1), Time: at, Who: auditlog.Who{Name: name}, Call: value, Resource: resource,
			After: map[string]string{value: name}, Steps: []auditlog.Step{{Action: name, To: value}},
		}
		line, hash := e.Append(nil)
		if i := bytes.IndexFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' }); i >= 0 {
			t.Errorf("%q has a control character", line)
		}
		got, err := auditlog.Parse(line)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		clean := func(s string) string {
			return strings.Join(strings.Split(strings.ToValidUTF8(s, "\x00bad"), "\x00bad"), "\ufffd")
		}
		if got.Hash != hash || len(got.Resource) < len(clean(resource)) {
			t.Errorf("%q is read as %+v", line, got)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	e := full()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, e.Prev = e.Append(buf[:0])
	}
}

func BenchmarkParse(b *testing.B) {
	e := full()
	line, _ := e.Append(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := auditlog.Parse(line); err != nil {
			b.Fatal(err)
		}
	}
}
