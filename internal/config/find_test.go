package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/config"
)

func TestFind(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the user's configuration directory is set by XDG_CONFIG_HOME on Linux only")
	}
	const user = "xdg/dkimzone/dkimctl.yaml"
	tests := []struct {
		name  string
		files []string
		flag  string
		env   string
		want  string   // relative to the working directory
		says  []string // in the error, if want is empty
	}{
		{name: "flag before all", files: []string{"f.yaml", "e.yaml", "data/dkimctl.yaml", user}, flag: "f.yaml", env: "e.yaml", want: "f.yaml"},
		{name: "environment next", files: []string{"e.yaml", "data/dkimctl.yaml", user}, env: "e.yaml", want: "e.yaml"},
		{name: "data directory next", files: []string{"data/dkimctl.yaml", user}, want: "data/dkimctl.yaml"},
		{name: "user last", files: []string{user}, want: user},
		{name: "named by flag and missing", files: []string{"e.yaml", "data/dkimctl.yaml"}, flag: "f.yaml", env: "e.yaml", says: []string{"--config names f.yaml"}},
		{name: "named by environment and missing", files: []string{"data/dkimctl.yaml"}, env: "e.yaml", says: []string{"DKIMCTL_CONFIG names e.yaml"}},
		{name: "a directory", files: []string{"data/dkimctl.yaml"}, flag: "data", says: []string{"--config names data", "directory"}},
		{name: "nothing", says: []string{"--config", "DKIMCTL_CONFIG", "data/dkimctl.yaml", user, "run dkimctl where dkimd standalone"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			t.Setenv(config.EnvVar, tt.env)
			t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "xdg"))
			for _, f := range tt.files {
				if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := config.Find(tt.flag)
			if tt.want != "" {
				if err != nil {
					t.Fatal(err)
				}
				if got = strings.TrimPrefix(got, dir+"/"); got != tt.want {
					t.Errorf("Find(%q) = %q, want %q", tt.flag, got, tt.want)
				}
				return
			}
			if !errors.Is(err, config.ErrNotFound) {
				t.Fatalf("Find(%q) = %q, %v, want ErrNotFound", tt.flag, got, err)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want it to have %q", err, want)
				}
			}
		})
	}
}
