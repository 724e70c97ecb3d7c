package app

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/audit"
	"github.com/dkimzone/dkimzone/internal/auditlog"
	"github.com/dkimzone/dkimzone/internal/controller"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

// Audit says where the audit log goes.
type Audit struct {
	// Log is a file, or "-" for Out. Empty: audit.log in the data directory, or
	// without one Out.
	Log string
	// Out is standard output if it is nil.
	Out io.Writer
	// MaxSize is the size in MiB at which a file is rotated; 0: none.
	MaxSize int64
	// Keep is how many rotated files are kept; 0: all.
	Keep int
	// Sync is how long a line may take to the disk; 0: a call waits for it.
	Sync time.Duration
}

func (a *Audit) add(f *pflag.FlagSet, preset string) {
	f.StringVar(&a.Log, "audit-log", "", "`file` of the audit log, or - for standard output (default "+preset+")")
	f.Int64Var(&a.MaxSize, "audit-max-size", 100, "size in `MiB` at which the audit log is rotated; 0 for none")
	f.IntVar(&a.Keep, "audit-keep", 100, "`number` of rotated audit logs to keep; 0 for all")
	f.DurationVar(&a.Sync, "audit-sync", 0, "how long a line of the audit log may be in the memory of the operating system only; 0: a change is answered when its line is on the disk")
}

// toOut reports whether the log goes to standard output.
func (a *Audit) toOut(preset string) bool { return cmp.Or(a.Log, preset) == "-" }

// account is the audit log at work.
type account struct {
	log     *auditlog.Log
	auditor *audit.Auditor
	stop    func()
}

// open opens the log, and begins to tell of it until close. preset is what an
// empty a.Log stands for.
func (a *Audit) open(ctx context.Context, preset string, logger *slog.Logger) (*account, error) {
	switch {
	case a.MaxSize < 0, a.MaxSize > 1<<30:
		return nil, fmt.Errorf("--audit-max-size: %d is no size in MiB", a.MaxSize)
	case a.Keep < 0:
		return nil, fmt.Errorf("--audit-keep: %d is negative", a.Keep)
	case a.Sync < 0 || a.Sync > time.Minute:
		return nil, fmt.Errorf("--audit-sync: %s: use 0 to 1m", a.Sync)
	}
	o := auditlog.Options{MaxSize: a.MaxSize << 20, Keep: a.Keep, Sync: a.Sync, Now: time.Now, Logger: logger}
	if a.toOut(preset) {
		if o.Out = a.Out; o.Out == nil {
			o.Out = os.Stdout
		}
	} else {
		path, err := filepath.Abs(cmp.Or(a.Log, preset))
		if err != nil {
			return nil, fmt.Errorf("--audit-log: %w", err)
		}
		o.Path = path
	}
	log, err := auditlog.Open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("--audit-log: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	acc := &account{log: log, auditor: audit.New(log, time.Now, logger)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		acc.auditor.Run(ctx)
	}()
	acc.stop = func() {
		cancel()
		<-done
	}
	return acc, nil
}

// close writes what is left.
func (a *account) close() error {
	a.stop()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	err := a.log.Close(ctx)
	a.auditor.TellHead(ctx)
	return err
}

// readiness is that of the log: without it dkimd only reads.
func (a *account) readiness() telemetry.Check {
	return telemetry.Check{Name: "audit log", Func: func(context.Context) error { return a.log.Ready() }}
}

// Ready implements keystore.Witness.
func (a *account) Ready() error { return a.auditor.Ready() }

// Changed implements keystore.Witness.
func (a *account) Changed(ctx context.Context, w keystore.Witnessed) {
	resource := "brands/" + w.Brand
	if w.Domain != "" {
		resource += "/domains/" + string(w.Domain)
	}
	steps := make([]auditlog.Step, len(w.Events))
	for i, e := range w.Events {
		s := auditlog.Step{Action: e.Action, Resource: resource, Selector: string(e.Selector), Reason: e.Reason}
		if e.KeyID != "" {
			s.Resource += "/keys/" + e.KeyID
		}
		if e.Algorithm != 0 {
			s.Algorithm = e.Algorithm.String()
		}
		if e.From != 0 {
			s.From = e.From.String()
		}
		if e.To != 0 {
			s.To = e.To.String()
		}
		steps[i] = s
	}
	a.auditor.Changed(ctx, cmp.Or(w.Actor, controller.Actor), resource, w.Revision, w.Err, steps)
}
