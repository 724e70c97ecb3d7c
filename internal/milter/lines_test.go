package milter_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	gomilter "github.com/emersion/go-milter"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/dkimzone/dkimzone/internal/milter"
)

// asPostfixSends is a message with its lines broken.
func asPostfixSends(text string) string {
	const limit = 998
	var out []string
	for line := range strings.SplitSeq(text, "\r\n") {
		for len(line) > limit {
			out = append(out, line[:limit])
			line = " " + line[limit:]
		}
		out = append(out, line)
	}
	return strings.Join(out, "\r\n")
}

// What is signed is what the mail server sends.
func TestLongLines(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1")
	long := strings.Repeat("0123456789", 500) + "\r\n"
	texts := map[string]string{
		"body":                    header("From: joe@example.org") + long + "b\r\n" + long,
		"body that ends in it":    "From: joe@example.org\r\n\r\n" + strings.Repeat("x", 999),
		"one octet":               header("From: joe@example.org") + strings.Repeat("x", 999) + "\r\n",
		"space where it breaks":   header("From: joe@example.org") + strings.Repeat("x", 990) + strings.Repeat(" ", 20) + "y\r\n",
		"spaces at the end":       header("From: joe@example.org") + "x" + strings.Repeat(" ", 3000) + "\r\n\r\n",
		"only spaces":             header("From: joe@example.org") + strings.Repeat(" ", 3000) + "\r\n\r\n",
		"subject":                 header("From: joe@example.org", "Subject: "+strings.Repeat("0123456789", 250)),
		"subject, one octet":      header("From: joe@example.org", "Subject: "+strings.Repeat("x", 990)),
		"second line of a field":  header("From: joe@example.org", "Subject: a\r\n "+strings.Repeat("0123456789", 250)+"\r\n b"),
		"field that is not ours":  header("From: joe@example.org", "X-Long: "+strings.Repeat("0123456789", 250)),
		"From, after the address": header("From: joe@example.org (" + strings.Repeat("x", 1000) + ")"),
	}
	for mode, o := range map[string]milter.Options{"broken": {}, "whole": {LongLines: milter.Whole}, "unsigned": {LongLines: milter.Unsigned}} {
		registry := prometheus.NewRegistry()
		o.Metrics = registry
		s := d.filter(t, o).connect(t, inside)
		for name, text := range texts {
			got, a := send(t, s, inside, text)
			if a.Code != gomilter.ActAccept {
				t.Fatalf("%s, %s: %+v", mode, name, a)
			}
			same := name == "field that is not ours" || name == "spaces at the end" || name == "only spaces" // as far as it is signed
			for sent, good := range map[string]bool{got: mode == "whole" || same, asPostfixSends(got): mode == "broken" || same} {
				v := d.verify(t, sent)
				if mode == "unsigned" && name != "field that is not ours" {
					if len(v) != 0 {
						t.Errorf("%s is signed", name)
					}
				} else if len(v) != 1 || (v[0].Err == nil) != good {
					t.Errorf("%s, %s: %+v, want good: %t", mode, name, v, good)
				}
			}
		}
		if n := value(t, registry, "dkimd_milter_long_line_messages_total"); n != float64(len(texts)-1) {
			t.Errorf("%s: %g messages with long lines counted, want %d", mode, n, len(texts)-1)
		}
	}
}

// value is the sum of a metric's values that have some labels.
func value(t testing.TB, g prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			if strings.HasPrefix(strings.Join(have, " "), strings.Join(labels, " ")) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// Each message counts once, by what became of it and why.
func TestMetrics(t *testing.T) {
	t.Parallel()
	d := newDkimd(t)
	d.rotate(t, "example.org", "ed1", "rsa1")
	d.rotate(t, "nokeys.example")
	registry := prometheus.NewRegistry()
	var logged bytes.Buffer
	f := d.filter(t, milter.Options{Metrics: registry, LongLines: milter.Unsigned, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	s := f.connect(t, inside)
	send(t, s, inside, letter)
	send(t, s, inside, letter)
	send(t, s, inside, header("From: joe@nokeys.example"))
	send(t, s, inside, header("From: joe@unknown.example"))
	send(t, s, inside, header("From: joe"))
	send(t, s, inside, header("From: joe@example.org")+strings.Repeat("x", 999))
	send(t, s, inside, header(append([]string{"From: joe@example.org"}, strings.Split(strings.Repeat("References: "+strings.Repeat("x", 60_000)+"\n", 20), "\n")[:20]...)...))
	outside := client{address: "198.51.100.1"}
	send(t, f.connect(t, outside), outside, letter)
	d.setDown()
	send(t, s, inside, header("From: joe@new.example"))
	for labels, want := range map[string]float64{
		"signed ": 2, "unsigned no_key": 1, "unsigned unknown_domain": 1, "unsigned no_sender_domain": 1, "unsigned long_lines": 1,
		"unsigned long_header": 1, "unsigned not_internal": 1, "tempfailed trouble": 1, "unsigned trouble": 0,
	} {
		if got := value(t, registry, "dkimd_milter_messages_total", strings.Split(labels, " ")...); got != want {
			t.Errorf("%s: %g, want %g", labels, got, want)
		}
	}
	for name, want := range map[string]float64{
		"dkimd_milter_messages_total": 9, "dkimd_milter_signatures_total": 4, "dkimd_milter_sign_duration_seconds": 3,
		"dkimd_milter_connections": 2, "dkimd_milter_long_line_messages_total": 1,
	} {
		if got := value(t, registry, name); got != want {
			t.Errorf("%s: %g, want %g", name, got, want)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if got := value(t, registry, "dkimd_milter_connections"); got != 0 {
		t.Errorf("%g connections after the end", got)
	}
}
