package app

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// execute runs a dkimd command line and returns what it printed.
func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := Command("test")
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestFlagsFromTheEnvironment(t *testing.T) {
	t.Setenv("DKIMD_ZONE", "env.example.net")
	t.Setenv("DKIMD_ETCD_ENDPOINT", "https://127.0.0.1:1,https://127.0.0.1:2")
	t.Setenv("DKIMD_DATA_DIR", "from-env")

	flags := pflag.NewFlagSet("dkimd", pflag.ContinueOnError)
	zone := flags.String("zone", "default", "")
	dir := flags.String("data-dir", "default", "")
	endpoints := flags.StringSlice("etcd-endpoint", nil, "")
	other := flags.String("other", "default", "")
	if err := flags.Parse([]string{"--data-dir", "from-flag"}); err != nil {
		t.Fatal(err)
	}
	if err := fromEnvironment(flags); err != nil {
		t.Fatal(err)
	}
	if *zone != "env.example.net" || *dir != "from-flag" || *other != "default" || len(*endpoints) != 2 {
		t.Errorf("zone %q, data-dir %q, other %q, endpoints %q", *zone, *dir, *other, *endpoints)
	}
	if !flags.Lookup("zone").Changed {
		t.Error("a flag set by the environment does not count as given")
	}
}

func TestBadEnvironmentNamesTheVariable(t *testing.T) {
	flags := pflag.NewFlagSet("dkimd", pflag.ContinueOnError)
	flags.Int("number", 0, "")
	t.Setenv("DKIMD_NUMBER", "many")
	if err := fromEnvironment(flags); err == nil || !strings.Contains(err.Error(), "DKIMD_NUMBER") {
		t.Errorf("error %v does not name DKIMD_NUMBER", err)
	}
}

// start are arguments that start a dkimd, with others that do not.
func start(t *testing.T) []string {
	t.Helper()
	return []string{
		"standalone", "--data-dir", t.TempDir(), "--dns-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0",
		"--http-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
	}
}

func TestWrongCommandLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown command", []string{"run"}, "unknown command"},
		{"unknown pki command", []string{"pki", "mint"}, "unknown command"},
		{"unknown flag", []string{"standalone", "--zones", "x"}, "unknown flag"},
		{"argument", []string{"standalone", "keys.example.net"}, "unknown command"},
		{"bad zone", []string{"standalone", "--zone", "keys_example"}, "--zone"},
		{"bad log level", []string{"standalone", "--log-level", "loud"}, "loud"},
		{"data dir is a file", []string{"standalone", "--data-dir", file}, "--data-dir"},
		{"dns address", []string{"standalone", "--data-dir", t.TempDir(), "--dns-listen", "nowhere"}, "--dns-listen nowhere"},
		{"grpc address", []string{"standalone", "--data-dir", t.TempDir(), "--dns-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:99999"}, "--grpc-listen"},
		{"admission by a foreign scheme", append(start(t), "--admission-url", "ftp://provider.example"), "--admission-url: scheme"},
		{"admission with a password", append(start(t), "--admission-url", "https://u:hush@provider.example"), "--admission-url: it must not hold a user"},
		{"admission in no time", append(start(t), "--admission-url", "https://provider.example", "--admission-timeout", "0"), "--admission-timeout"},
		{"token for nobody", append(start(t), "--admission-token-file", file), "only with --admission-url"},
		{"limit below 0", append(start(t), "--limit-read", "-1"), "--limit-"},
		{"serve without etcd", []string{"serve"}, "--etcd-endpoint (or DKIMD_ETCD_ENDPOINT) is needed"},
		{"pki role", []string{"pki", "--dir", t.TempDir(), "client", "alice", "king"}, "use admin, brand, signer or auditor"},
		{"pki server without host", []string{"pki", "server", "dkimd1"}, "arg"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := execute(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
		})
	}
}

// Every flag has a usage text, and none means the same variable as another.
func TestFlagsAreDescribed(t *testing.T) {
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		seen := make(map[string]string)
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s has no usage", cmd.CommandPath(), f.Name)
			}
			if other, ok := seen[envName(f.Name)]; ok {
				t.Errorf("%s: --%s and --%s share %s", cmd.CommandPath(), f.Name, other, envName(f.Name))
			}
			seen[envName(f.Name)] = f.Name
		})
		if cmd.Short == "" {
			t.Errorf("%s has no description", cmd.CommandPath())
		}
		for _, c := range cmd.Commands() {
			visit(c)
		}
	}
	visit(Command("test"))
}

func TestPKICommands(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"pki", "--dir", dir, "server", "dkimd1", "dkimd1.example.net", "127.0.0.1"},
		{"pki", "--dir", dir, "peer", "etcd1", "127.0.0.1"},
		{"pki", "--dir", dir, "client", "alice", "admin"},
		{"pki", "--dir", dir, "client", "dns", "etcd"},
	} {
		out, err := execute(t, args...)
		if err != nil {
			t.Fatalf("dkimd %v: %v", args, err)
		}
		for line := range strings.Lines(out) {
			if _, err := os.Stat(strings.Fields(line)[1]); err != nil {
				t.Errorf("dkimd %v: %v", args, err)
			}
		}
	}
	kek := filepath.Join(dir, "kek.key")
	out, err := execute(t, "pki", "kek", kek)
	if err != nil || !strings.Contains(out, "file://"+kek) {
		t.Fatalf("dkimd pki kek: %q, %v", out, err)
	}
	if _, err := execute(t, "pki", "kek", kek); err == nil {
		t.Error("a second key-encryption key replaced the first")
	}
}
