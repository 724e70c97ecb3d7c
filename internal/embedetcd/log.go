package embedetcd

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// firstMoments is longer than etcd's interval of 4 s for asking its version
// again, so a warning that is more than premature comes again after it.
const firstMoments = 5 * time.Second

// newZapLogger returns a logger for an etcd started at the given time that
// hands warnings and errors to logger. Where etcd would end the process it panics with a *failure instead:
// during the start that becomes an error, later it ends the process all the
// same, since nothing recovers it.
func newZapLogger(logger *slog.Logger, started time.Time) *zap.Logger {
	return zap.New(&slogCore{logger: logger, started: started}, zap.WithFatalHook(fail{}), zap.WithPanicHook(fail{}))
}

// failure is why etcd could not go on.
type failure struct {
	message string
	cause   string // may be empty
}

func (f *failure) Error() string {
	if f.cause == "" {
		return f.message
	}
	return f.message + ": " + f.cause
}

type fail struct{}

func (fail) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	f := &failure{message: entry.Message}
	for _, field := range fields {
		if err, ok := field.Interface.(error); ok && field.Type == zapcore.ErrorType {
			f.cause = err.Error()
		}
	}
	panic(f)
}

// slogCore is a zap core that writes to slog at warning level and above.
type slogCore struct {
	logger  *slog.Logger
	started time.Time
	fields  []zapcore.Field
}

func (c *slogCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{logger: c.logger, started: c.started, fields: slices.Concat(c.fields, fields)}
}

func (c *slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(entry.Level) || c.isHarmless(entry) {
		return checked
	}
	return checked.AddCore(entry, c)
}

// isHarmless reports warnings that mean nothing here: advice about listeners,
// of which there are none, and a new member that does not know its version yet
// or is closed before it does.
func (c *slogCore) isHarmless(entry zapcore.Entry) bool {
	switch entry.Message {
	case "Running http and grpc server on single port. This is not recommended for production.":
		return true
	case "Failed to detect schema version", "failed to update storage version", "failed to update cluster version":
		return entry.Time.Before(c.started.Add(firstMoments))
	}
	return false
}

func (c *slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, field := range slices.Concat(c.fields, fields) {
		field.AddTo(values)
	}
	attrs := make([]slog.Attr, 0, len(values.Fields)+1)
	attrs = append(attrs, slog.String("message", entry.Message))
	for _, name := range slices.Sorted(maps.Keys(values.Fields)) {
		attrs = append(attrs, slog.Any(name, values.Fields[name]))
	}
	level := slog.LevelWarn
	if entry.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	// zap carries no context.
	c.logger.LogAttrs(context.Background(), level, "embedded etcd", slog.Attr{Key: "etcd", Value: slog.GroupValue(attrs...)})
	return nil
}

func (c *slogCore) Sync() error { return nil }
