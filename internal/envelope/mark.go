package envelope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

const (
	// checkText is what the mark has wrapped.
	checkText = "dkimzone key-encryption key"
	// markRaces is how often something is tried again because the mark, or what
	// depends on it, changed meanwhile.
	markRaces = 8
)

// mark is the mark in the store, with the key of this process that opens it.
type mark struct {
	key      *keyEncryptionKey
	revision int64
}

// Check makes sure that this process has the key-encryption key that wraps. It
// always asks the store, and the keeper when the mark is not the one of the last
// check. While there is no data key any key is the right one: the first data key
// settles it, but the keeper is asked once whether it wraps and opens. Otherwise the error
// wraps ErrWrongKey, ErrKeeperUnavailable or ErrKeeperRefuses, or is the store's.
func (s *Sealer) Check(ctx context.Context) error {
	_, err := s.look(ctx, false)
	return err
}

// Wrapping is the label of the key-encryption key that wraps, or would.
func (s *Sealer) Wrapping(ctx context.Context) (string, error) {
	m, err := s.look(ctx, false)
	if err != nil {
		return "", err
	}
	return m.key.label, nil
}

// Keys are the labels of the key-encryption keys that this process has, that
// which is to wrap first.
func (s *Sealer) Keys() []string { return s.keeper.Labels() }

// Propose returns what a mark must hold for the first key of this process to be
// the one that wraps, and the revision of the present mark, which this process
// can open. Whoever stores it compares that.
func (s *Sealer) Propose(ctx context.Context) (label string, check []byte, revision int64, err error) {
	m, err := s.current(ctx)
	if err != nil {
		return "", nil, 0, err
	}
	first := s.keeper.keys[0]
	check, err = first.try(ctx)
	if err != nil {
		return "", nil, 0, fmt.Errorf("try the new key-encryption key: %w", err)
	}
	return first.label, check, m.revision, nil
}

// Opens makes sure that this process has the key that a mark from elsewhere, a
// backup, is of. Its error is as that of Check.
func (s *Sealer) Opens(ctx context.Context, label string, check []byte) error {
	_, err := s.openMark(ctx, label, check)
	return err
}

func (s *Sealer) lastMark() mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark
}

func (s *Sealer) markLabel() string {
	if m := s.lastMark(); m.key != nil {
		return m.key.label
	}
	return ""
}

// current is the mark as it stands. It is made if there is none.
func (s *Sealer) current(ctx context.Context) (mark, error) { return s.look(ctx, true) }

// look is the mark as it stands. Without settle it is none where neither a mark
// nor a data key is stored, but for the key that it would be for.
func (s *Sealer) look(ctx context.Context, settle bool) (mark, error) {
	for range markRaces {
		label, check, revision, err := s.store.KeyEncryptionMark(ctx)
		if err != nil {
			return mark{}, fmt.Errorf("read which key-encryption key wraps: %w", err)
		}
		if last := s.lastMark(); revision != 0 && revision == last.revision {
			return last, nil
		}
		if revision == 0 {
			key, used, err := s.first(ctx)
			if err == nil && !used && !settle {
				err = s.tryOnce(ctx, key)
			}
			if err != nil || !used && !settle {
				return mark{key: key}, err
			}
			if err := s.set(ctx, key, !used); err != nil {
				return mark{}, err
			}
			continue
		}
		key, err := s.openMark(ctx, label, check)
		if err != nil {
			return mark{}, err
		}
		m := mark{key: key, revision: revision}
		s.mu.Lock()
		s.mark = m
		s.mu.Unlock()
		return m, nil
	}
	return mark{}, errors.New("the key-encryption key changes all the time")
}

// tryOnce sees to it that a process that cannot use its key says so before the first
// data key is made.
func (s *Sealer) tryOnce(ctx context.Context, key *keyEncryptionKey) error {
	if s.tried.Load() {
		return nil
	}
	if _, err := key.try(ctx); err != nil {
		return err
	}
	s.tried.Store(true)
	return nil
}

// openMark returns the key that opens a mark.
func (s *Sealer) openMark(ctx context.Context, label string, check []byte) (*keyEncryptionKey, error) {
	text, key, err := s.keeper.decrypt(ctx, check, label)
	if err != nil {
		return nil, fmt.Errorf("the keys are wrapped by %s: %w", label, err)
	}
	if !bytes.Equal(text, []byte(checkText)) {
		clear(text)
		return nil, fmt.Errorf("the mark of key-encryption key %s: %w", label, ErrCorrupt)
	}
	return key, nil
}

// first is the key for which a mark is made where there is none: that which opens
// the stored data keys, or the first one while there are none, used being false.
func (s *Sealer) first(ctx context.Context) (key *keyEncryptionKey, used bool, err error) {
	brand, err := s.store.AnyDataKeyBrand(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("look for data keys: %w", err)
	}
	if brand == "" {
		return s.keeper.keys[0], false, nil
	}
	n, wrapped, err := s.store.NewestDataKey(ctx, brand)
	if err != nil {
		return nil, true, fmt.Errorf("read the newest data key of brand %s: %w", brand, err)
	}
	labelled, key, err := s.keeper.decrypt(ctx, wrapped, "")
	if err != nil {
		return nil, true, fmt.Errorf("unwrap data key %d of brand %s: %w", n, brand, err)
	}
	clear(labelled)
	return key, true, nil
}

// set makes the mark, for a key, unless somebody else is quicker or, with
// unused, there is a data key now.
func (s *Sealer) set(ctx context.Context, key *keyEncryptionKey, unused bool) error {
	check, err := key.try(ctx)
	if err != nil {
		return fmt.Errorf("try the key-encryption key: %w", err)
	}
	if _, err := s.store.SetKeyEncryptionMark(ctx, key.label, check, 0, unused); err != nil {
		return fmt.Errorf("note which key-encryption key wraps: %w", err)
	}
	return nil
}
