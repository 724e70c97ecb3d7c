package keystore

import (
	"context"
	"errors"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// Witness is told of each change of a domain and of each key that is disclosed,
// whoever makes it. It must be safe for concurrent use.
type Witness interface {
	// Ready returns an error while the Witness cannot take note of changes. None
	// is made then, and the error is what the caller gets.
	Ready() error
	// Changed is called after a change. ctx is that of the call that made it,
	// which may be over.
	Changed(ctx context.Context, w Witnessed)
}

// Witnessed is a change.
type Witnessed struct {
	Brand    string
	Domain   dnsname.Domain // empty: of the brand
	Revision int64          // of the store
	Actor    string         // empty: what happens by itself
	Events   []Event
	// Err is nil, or why it is not known whether the change was made.
	Err error
}

// SetWitness makes w the Store's witness. It must be called before the Store is
// used for anything else.
func (s *Store) SetWitness(w Witness) { s.witness = w }

// ready returns the Witness's error.
func (s *Store) ready() error {
	if s.witness == nil {
		return nil
	}
	return s.witness.Ready()
}

// tell tells the Witness of a change, unless err says that it was not made.
func (s *Store) tell(ctx context.Context, w Witnessed, err error) {
	if s.witness == nil || err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, context.Canceled) {
		return
	}
	w.Err = err
	if w.Actor == "" && len(w.Events) > 0 {
		w.Actor = w.Events[0].Actor
	}
	s.witness.Changed(ctx, w)
}

// tellChange is tell of what Apply did.
func (s *Store) tellChange(ctx context.Context, c Change, stored Domain, err error) {
	s.tell(ctx, Witnessed{Brand: c.Domain.Brand, Domain: c.Domain.Name, Revision: stored.Revision, Actor: c.Actor, Events: c.Events}, err)
}
