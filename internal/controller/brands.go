package controller

import (
	"context"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// brands keeps for a moment what many domains share. It is safe for concurrent
// use.
type brands struct {
	store *keystore.Store
	now   func() time.Time

	mu   sync.Mutex
	read map[string]brandRead
}

type brandRead struct {
	at      time.Time
	brand   keystore.Brand
	zone    keystore.Zone
	signers []keystore.Signer
}

func newBrands(store *keystore.Store, now func() time.Time) *brands {
	return &brands{store: store, now: now, read: make(map[string]brandRead)}
}

// get returns a brand, its zone and the signers that sign for it, as they were
// at most brandValid ago.
func (b *brands) get(ctx context.Context, name string, zone dnsname.Zone) (keystore.Brand, keystore.Zone, []keystore.Signer, error) {
	now := b.now()
	b.mu.Lock()
	r, ok := b.read[name]
	b.mu.Unlock()
	if age := now.Sub(r.at); ok && age >= 0 && age < brandValid && r.zone.Name == zone {
		return r.brand, r.zone, r.signers, nil
	}
	r = brandRead{at: now}
	var err error
	if r.brand, err = b.store.Brand(ctx, name); err != nil {
		return r.brand, r.zone, nil, err
	}
	if r.zone, err = b.store.Zone(ctx, zone); err != nil {
		return r.brand, r.zone, nil, err
	}
	if r.signers, err = b.store.Signers(ctx, name); err != nil {
		return r.brand, r.zone, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read[name] = r
	return r.brand, r.zone, r.signers, nil
}
