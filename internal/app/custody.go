package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/envelope"
)

const (
	// custodyPoll is how often a process looks whether a rotation of the
	// key-encryption key is to be carried on.
	custodyPoll = 2 * time.Second
	// custodyTakeOver is how long one that made no progress is left alone. It is
	// longer than a step that waits for a keeper until that has failed.
	custodyTakeOver = 45 * time.Second
	// longestCall is how long a call may take from sealing a key to storing it.
	longestCall = 2 * time.Minute
)

// KEK says which key-encryption keys a dkimd has, by URL.
type KEK struct {
	URL      string   // of the one that is to wrap data keys
	Previous []string // of others that still open them
	// Export lets admins with that permission read private keys out.
	Export bool
}

func (k *KEK) add(f *pflag.FlagSet, usage string) {
	f.StringVar(&k.URL, "kek-url", "", usage)
	f.StringArrayVar(&k.Previous, "kek-url-previous", nil, "`URL` of another key-encryption key that still opens data keys, while `dkimctl kek rotate` puts --kek-url in its place; repeat for each")
	f.BoolVar(&k.Export, "allow-key-export", false, "let admins with the permission to export keys read private keys out")
}

func (b *backend) newCustody(kek KEK, logger *slog.Logger) *custody.Custody {
	return custody.New(custody.Options{
		Store: b.store, Direct: b.direct, Sealer: b.sealer.sealer, Name: candidate(), Now: time.Now, Logger: logger, KeyExport: kek.Export,
		Poll: custodyPoll, TakeOver: custodyTakeOver, Settle: envelope.SettleTime + longestCall,
		RestoreSettle: storeTimeout + 2*time.Second, AfterRestore: func(ctx context.Context) {
			if b.afterRestore != nil {
				b.afterRestore(ctx)
			}
		},
	})
}

// startCustody carries rotations of the key-encryption key through until the
// returned function is called or ctx ends. The function returns when nothing of it
// is at work any more.
func (b *backend) startCustody(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.custody.Run(ctx) // returns when ctx ends, only
	}()
	return func() {
		cancel()
		<-done
	}
}
