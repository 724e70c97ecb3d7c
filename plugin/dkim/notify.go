package dkim

import (
	"context"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin/transfer"

	"github.com/dkimzone/dkimzone/internal/replica"
)

// notifyDelay is how long changes are collected before the secondaries are told.
const notifyDelay = time.Second

// notifier tells the secondaries of a zone when it has changed. Nothing waits
// for it.
type notifier struct {
	zone   string
	notify func(zone string) error
	delay  time.Duration
}

// startNotifiers tells of each zone that it is there, and from then on of each
// change, until the returned function is called. A NOTIFY that is on its way
// then still runs into its own time limit.
func (d *DKIM) startNotifiers(t *transfer.Transfer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	for _, z := range d.zones {
		n := &notifier{zone: z.name, notify: t.Notify, delay: notifyDelay}
		go n.run(ctx, z.replica.Load().Replica)
	}
	return sync.OnceFunc(cancel)
}

func (n *notifier) run(ctx context.Context, rep *replica.Replica) {
	var told *replica.Apex
	failing := false
	for {
		apex, err := rep.WaitChange(ctx, told)
		if err != nil {
			return
		}
		if told == nil || apex.Serial != told.Serial {
			t := time.NewTimer(n.delay)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			if now := rep.Apex(); now != nil {
				apex = now
			}
			err := n.notify(n.zone)
			if err != nil && !failing {
				log.Warningf("Not all secondaries of %s took a NOTIFY: %v", n.zone, err)
			}
			failing = err != nil
		}
		told = apex
	}
}
