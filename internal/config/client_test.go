package config_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dkimzone/dkimzone/internal/config"
)

const complete = `address: 127.0.0.1:9443
ca_file: pki/ca.crt
cert_file: pki/admin.crt
key_file: /etc/dkimzone/admin.key
server_name: dkimd.example.net
name_servers:
  NS1.keys.example.net.: 127.0.0.1:1053
  ns2.keys.example.net: "[2001:db8::1]:53"
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dkimctl.yaml")
	if err := os.WriteFile(path, []byte(complete), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Client{
		Address:    "127.0.0.1:9443",
		CAFile:     filepath.Join(dir, "pki/ca.crt"),
		CertFile:   filepath.Join(dir, "pki/admin.crt"),
		KeyFile:    "/etc/dkimzone/admin.key",
		ServerName: "dkimd.example.net",
		NameServers: map[string]netip.AddrPort{
			"ns1.keys.example.net": netip.MustParseAddrPort("127.0.0.1:1053"),
			"ns2.keys.example.net": netip.MustParseAddrPort("[2001:db8::1]:53"),
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
}

func TestLoadErrors(t *testing.T) {
	const good = "address: localhost:9443\nca_file: a\ncert_file: b\nkey_file: c\n"
	tests := []struct {
		name, text, want string
	}{
		{"empty", "", "address is missing"},
		{"no address", "ca_file: a\ncert_file: b\nkey_file: c\n", "address is missing"},
		{"no CA", "address: localhost:9443\n", "ca_file is missing"},
		{"no certificate", "address: localhost:9443\nca_file: a\n", "cert_file is missing"},
		{"no key", "address: localhost:9443\nca_file: a\ncert_file: b\n", "key_file is missing"},
		{"unknown property", good + "\nserver: x\n", `line 6: unknown property "server"`},
		{"two unknown properties", good + "x: 1\ny: 2\n", `line 5: unknown property "x"; line 6: unknown property "y"`},
		{"property twice", good + "address: x:1\n", `line 5: property "address" is there twice`},
		{"no mapping", "just a text\n", "line 1: cannot unmarshal !!str `just a ...` as a set of properties"},
		{"bad YAML", good + "\t- x\n", "line 5: found a tab character"},
		{"address without a port", strings.Replace(good, ":9443", "", 1), `address: "localhost" is not HOST:PORT`},
		{"address without a host", strings.Replace(good, "localhost", "", 1), `address: ":9443" is not HOST:PORT`},
		{"named port", strings.Replace(good, "9443", "https", 1), "port number from 1 to 65535"},
		{"port 0", strings.Replace(good, "9443", "0", 1), "port number from 1 to 65535"},
		{"port too large", strings.Replace(good, "9443", "65536", 1), "port number from 1 to 65535"},
		{"name server without a port", good + "name_servers:\n  ns1: 192.0.2.1\n", `name_servers: ns1: "192.0.2.1" is not ADDRESS:PORT`},
		{"name server by name", good + "name_servers:\n  ns1: localhost:53\n", `name_servers: ns1: "localhost:53" is not ADDRESS:PORT`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dkimctl.yaml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := config.Load(path)
			if err == nil {
				t.Fatalf("Load returned %+v, want an error", got)
			}
			for _, want := range []string{tt.want, path} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want it to have %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "config.file") {
				t.Errorf("error %q names a Go type", err)
			}
		})
	}
}

func TestLoadMissing(t *testing.T) {
	if _, err := config.Load(filepath.Join(t.TempDir(), "x.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want os.ErrNotExist", err)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "data", "dkimctl.yaml")
	want := config.Client{
		Address:     "[::1]:9443",
		CAFile:      filepath.Join(dir, "data/pki/ca.crt"),
		CertFile:    filepath.Join(dir, "data/pki/admin.crt"),
		KeyFile:     filepath.Join(dir, "elsewhere/admin.key"),
		NameServers: map[string]netip.AddrPort{"ns1.keys.example.net": netip.MustParseAddrPort("[::1]:1053")},
	}
	for range 2 { // a new file, then over the one that is there
		if err := want.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("Load after Write (-want +got):\n%s", diff)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "ca_file: pki/ca.crt\n") || !strings.Contains(string(data), "key_file: "+want.KeyFile+"\n") {
		t.Errorf("want the CA relative to the folder and the key absolute in\n%s", data)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode())
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("folder holds %v, want the configuration only", entries)
	}
}

func TestWriteRelative(t *testing.T) {
	t.Chdir(t.TempDir())
	c := config.Client{Address: "localhost:9443", CAFile: "data/pki/ca.crt", CertFile: "data/pki/admin.crt", KeyFile: "data/pki/admin.key"}
	if err := c.Write("data/dkimctl.yaml"); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load("data/dkimctl.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got); diff != "" {
		t.Errorf("Load after Write (-want +got):\n%s", diff)
	}
}

func TestWriteErrors(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dkimctl.yaml")
	if err := (config.Client{Address: "localhost:9443"}).Write(path); err == nil || !strings.Contains(err.Error(), "ca_file is missing") {
		t.Errorf("error is %v, want one about ca_file", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the incomplete configuration was written")
	}
	blocked := filepath.Join(dir, "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := config.Client{Address: "localhost:9443", CAFile: "a", CertFile: "b", KeyFile: "c"}
	if err := c.Write(filepath.Join(blocked, "dkimctl.yaml")); err == nil || !strings.Contains(err.Error(), blocked) {
		t.Errorf("error is %v, want one that names %s", err, blocked)
	}
}
