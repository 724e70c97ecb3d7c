package app

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
)

// A data directory may have any name; the Corefile that is made of it parses to
// just that.
func TestCorefileQuotes(t *testing.T) {
	for _, dir := range []string{"/var/lib/dkimd/replica", "/tmp/with space/replica", "/tmp/{odd}/#1"} {
		n := &nameServer{listen: "127.0.0.1:1053", dataDir: dir, source: "inprocess:x"}
		blocks, err := caddyfile.Parse("standalone", strings.NewReader(string(n.corefile([]string{"a.example", "b.example"}).Body())), []string{"bind", "errors", "dkim"})
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		if len(blocks) != 1 || len(blocks[0].Keys) != 1 {
			t.Fatalf("%s: %d blocks", dir, len(blocks))
		}
		var texts []string
		for _, token := range blocks[0].Tokens["dkim"] {
			texts = append(texts, token.Text)
		}
		if got := strings.Join(texts, "|"); !strings.HasPrefix(got, "dkim|a.example|b.example|") || !strings.Contains(got, "|data_dir|"+dir+"|") {
			t.Errorf("tokens %s, want both zones and data_dir %s", got, dir)
		}
	}
}

func TestProbeDNS(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		address := hold(t, network)
		if err := probeDNS(address); err == nil || !strings.Contains(err.Error(), "--dns-listen "+address+": "+network) {
			t.Errorf("%s %s is held: error %v", network, address, err)
		}
	}
	if err := probeDNS("127.0.0.1:0"); err != nil {
		t.Error(err)
	}
}

// hold listens on an address until the test ends, and on that of no other
// network with the same number.
func hold(t *testing.T, network string) string {
	t.Helper()
	for range 50 { // somebody may ask from that port over UDP just now
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		if network == "tcp" {
			return ln.Addr().String()
		}
		conn, err := net.ListenPacket("udp", ln.Addr().String())
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		return conn.LocalAddr().String()
	}
	t.Fatal("no port is free for both networks")
	return ""
}

func TestAskable(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:53": "127.0.0.1:53",
		"0.0.0.0:53":   "127.0.0.1:53",
		"[::]:53":      "127.0.0.1:53",
		":53":          "127.0.0.1:53",
		"[::1]:53":     "[::1]:53",
	} {
		if got := askable(address); got != want {
			t.Errorf("askable(%s) = %s, want %s", address, got, want)
		}
	}
}

func TestCorednsLog(t *testing.T) {
	var out strings.Builder
	w := corednsLog{slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, line := range []string{"[INFO] plugin/dkim: fine\n", "[WARNING] plugin/dkim: odd\n", "[ERROR] plugin/errors: bad\n"} {
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	got := out.String()
	if strings.Contains(got, "fine") || !strings.Contains(got, `level=WARN msg=coredns message="plugin/dkim: odd"`) || !strings.Contains(got, "level=ERROR") {
		t.Errorf("logged %s", got)
	}
}
