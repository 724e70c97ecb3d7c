package cli_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/cli"
	"github.com/dkimzone/dkimzone/test/output"
)

// running is a dkimctl in this process, whose output is read line by line.
type running struct {
	lines  *bufio.Scanner
	cancel context.CancelFunc
	status chan int
	stderr output.Buffer
}

// line returns the next line of the standard output.
func (r *running) line(t *testing.T) string {
	t.Helper()
	if !r.lines.Scan() {
		t.Fatalf("dkimctl ended, its standard error is:\n%s", r.stderr.String())
	}
	return r.lines.Text()
}

func startDKIMCTL(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	r := &running{lines: bufio.NewScanner(in), cancel: cancel, status: make(chan int, 1)}
	program := cli.Program{Version: "v0-test", Stdin: strings.NewReader(""), Stdout: out, Stderr: &r.stderr}
	go func() {
		r.status <- program.Run(ctx, args)
		_ = out.Close()
	}()
	t.Cleanup(func() {
		cancel()
		_, _ = io.Copy(io.Discard, in)
	})
	return r
}

func newWatchFixture(t *testing.T) (*fixture, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := newFixture(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.stop)
	if _, err := f.service.CreateBrand(t.Context(), &dkimv1.CreateBrandRequest{BrandId: "acme"}); err != nil {
		t.Fatal(err)
	}
	return f, filepath.Join(dir, "data", "dkimctl.yaml")
}

func TestWatch(t *testing.T) {
	f, config := newWatchFixture(t)
	f.provision(t, "acme", "first.example")
	r := startDKIMCTL(t, "domain", "watch", "acme", "--config", config)
	expect := func(want string) {
		t.Helper()
		if got := r.line(t); got != want {
			t.Errorf("line is %q, want %q", got, want)
		}
	}
	expect("PUT    acme acme.keys.example.net revision=4 default1=PREPARED default2=PREPARED default3=PREPARED")
	expect("PUT    acme first.example revision=5 selector1=PREPARED selector2=PREPARED")
	expect("SYNCED")
	f.provision(t, "acme", "second.example")
	expect("PUT    acme second.example revision=6 selector1=PREPARED selector2=PREPARED")

	// dkimd goes away; what happens meanwhile is not missed, nothing comes twice.
	f.server.Stop()
	f.provision(t, "acme", "third.example")
	if _, err := f.service.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: "brands/acme/domains/first.example"}); err != nil {
		t.Fatal(err)
	}
	if err := f.start(f.address); err != nil {
		t.Fatal(err)
	}
	expect("PUT    acme third.example revision=7 selector1=PREPARED selector2=PREPARED")
	expect("DELETE acme first.example revision=8")
	if got := r.stderr.String(); !strings.Contains(got, "connection lost, trying to go on") {
		t.Errorf("standard error is %q, want it to tell that the connection was lost", got)
	}

	r.cancel()
	if status := <-r.status; status != 0 {
		t.Errorf("exit status after an interrupt is %d, want 0", status)
	}
}

func TestWatchJSON(t *testing.T) {
	f, config := newWatchFixture(t)
	f.provision(t, "acme", "first.example")
	first := startDKIMCTL(t, "domain", "watch", "-o", "json", "--config", config)
	var ev struct {
		Type        string
		ResumeToken string
		Domain      struct{ Name string }
	}
	for ev.Type != "EVENT_TYPE_SYNCED" {
		if err := json.Unmarshal([]byte(first.line(t)), &ev); err != nil {
			t.Fatal(err)
		}
	}
	if ev.ResumeToken == "" {
		t.Fatal("SYNCED has no resumeToken")
	}
	first.cancel()

	// A new watch goes on where the token says.
	f.provision(t, "acme", "second.example")
	second := startDKIMCTL(t, "domain", "watch", "--config", config, "-o", "json", "--resume-token", ev.ResumeToken)
	if err := json.Unmarshal([]byte(second.line(t)), &ev); err != nil {
		t.Fatal(err)
	}
	if ev.Type != "EVENT_TYPE_PUT" || ev.Domain.Name != "brands/acme/domains/second.example" {
		t.Errorf("first event after the token is %+v, want the PUT of second.example", ev)
	}
}

func TestWatchYAML(t *testing.T) {
	_, config := newWatchFixture(t)
	r := startDKIMCTL(t, "domain", "watch", "-o", "yaml", "--config", config)
	for _, want := range []string{"---", "type: EVENT_TYPE_PUT"} {
		if got := r.line(t); got != want {
			t.Errorf("line is %q, want %q", got, want)
		}
	}
}

func TestWatchErrors(t *testing.T) {
	_, config := newWatchFixture(t)
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"unknown brand", []string{"nobody"}, "[BRAND_NOT_FOUND]"},
		{"bad token", []string{"--resume-token", "x"}, "[INVALID_RESUME_TOKEN]"},
		{"nobody listens", []string{"--address", "127.0.0.1:1"}, "cannot reach dkimd at 127.0.0.1:1"},
		{"nobody listens, with a token", []string{"--address", "127.0.0.1:1", "--resume-token", "x"}, "cannot reach dkimd at 127.0.0.1:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := startDKIMCTL(t, append([]string{"domain", "watch", "--config", config}, tt.args...)...)
			if status := <-r.status; status != 1 {
				t.Errorf("exit status is %d, want 1", status)
			}
			if got := r.stderr.String(); !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("standard error is %q, want one line with %q", got, tt.want)
			}
		})
	}
}
