package telemetry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

func TestNewLoggerLevels(t *testing.T) {
	tests := []struct {
		level string
		want  []string
	}{
		{"debug", []string{"DEBUG", "INFO", "WARN", "ERROR"}},
		{"info", []string{"INFO", "WARN", "ERROR"}},
		{"warn", []string{"WARN", "ERROR"}},
		{"ERROR", []string{"ERROR"}},
	}
	for _, tt := range tests {
		t.Run(tt.level, func(t *testing.T) {
			var out bytes.Buffer
			logger, err := telemetry.NewLogger(&out, tt.level, "text")
			if err != nil {
				t.Fatal(err)
			}
			for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
				logger.LogAttrs(t.Context(), level, "said")
			}
			for _, level := range []string{"DEBUG", "INFO", "WARN", "ERROR"} {
				got, want := strings.Contains(out.String(), "level="+level), strings.Contains(strings.Join(tt.want, " "), level)
				if got != want {
					t.Errorf("level %s written: %v, want %v", level, got, want)
				}
			}
		})
	}
}

func TestNewLoggerFormats(t *testing.T) {
	var text, object bytes.Buffer
	for out, format := range map[*bytes.Buffer]string{&text: "text", &object: "json"} {
		logger, err := telemetry.NewLogger(out, "info", format)
		if err != nil {
			t.Fatal(err)
		}
		logger.LogAttrs(t.Context(), slog.LevelInfo, "key published", slog.String("brand", "acme"))
	}
	if !strings.Contains(text.String(), `msg="key published" brand=acme`) {
		t.Errorf("text: %s", text.String())
	}
	var line map[string]any
	if err := json.Unmarshal(object.Bytes(), &line); err != nil || line["msg"] != "key published" || line["brand"] != "acme" {
		t.Errorf("json: %s (%v)", object.String(), err)
	}
}

func TestNewLoggerErrors(t *testing.T) {
	tests := []struct{ name, level, format, want string }{
		{"level", "loud", "text", `log level "loud": must be debug, info, warn or error`},
		{"no level", "", "text", `log level "": must be debug, info, warn or error`},
		{"format", "info", "xml", `log format "xml": must be text or json`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := telemetry.NewLogger(&bytes.Buffer{}, tt.level, tt.format); err == nil || err.Error() != tt.want {
				t.Errorf("NewLogger: %v, want %s", err, tt.want)
			}
		})
	}
}

func TestPrivateKeysStayOutOfLogs(t *testing.T) {
	pair, err := keypair.Generate(keypair.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	seed := pair.Marshal()[1:]
	forms := []string{string(seed), hex.EncodeToString(seed), base64.StdEncoding.EncodeToString(seed)}
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		logger, err := telemetry.NewLogger(&out, "info", format)
		if err != nil {
			t.Fatal(err)
		}
		logger.LogAttrs(t.Context(), slog.LevelInfo, "made",
			slog.Any("pair", pair), slog.Any("pairs", []*keypair.KeyPair{pair}), slog.Any("signer", pair.Signer()),
			slog.Any("inside", struct{ Pair *keypair.KeyPair }{pair}))
		for _, form := range forms {
			if strings.Contains(out.String(), form) {
				t.Errorf("%s log shows the private key: %s", format, out.String())
			}
		}
		if !strings.Contains(out.String(), "ed25519 key pair") {
			t.Errorf("%s log does not name the key: %s", format, out.String())
		}
	}
}
