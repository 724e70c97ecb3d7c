// Package telemetry is what a process tells of itself: its log, its metrics,
// and whether it is alive and ready.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// NewLogger returns a logger that writes to w. level is the least severe one
// to write, "debug", "info", "warn" or "error"; format is "text" (key=value)
// or "json". Private keys keep themselves out of logs, see keypair.KeyPair.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	options := &slog.HandlerOptions{}
	switch strings.ToLower(level) {
	case "debug":
		options.Level = slog.LevelDebug
	case "info":
		options.Level = slog.LevelInfo
	case "warn":
		options.Level = slog.LevelWarn
	case "error":
		options.Level = slog.LevelError
	default:
		return nil, fmt.Errorf("log level %q: must be debug, info, warn or error", level)
	}
	switch strings.ToLower(format) {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("log format %q: must be text or json", format)
}
