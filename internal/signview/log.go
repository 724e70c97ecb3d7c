package signview

import (
	"math/rand/v2"
	"sync"
)

func newChangeLog() changeLog {
	return changeLog{epoch: rand.Uint64(), mu: new(sync.Mutex), woken: make(chan struct{})}
}

func (l *changeLog) add(c change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < maxChanges {
		l.ring = append(l.ring, c)
	} else {
		l.ring[l.next%maxChanges] = c
	}
	l.next++
	close(l.woken)
	l.woken = make(chan struct{})
}

func (l *changeLog) end() Cursor {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Cursor{l.epoch, l.next}
}

// since returns up to limit changes, and where the next ones are; and what is closed
// when there are more.
func (l *changeLog) since(c Cursor, limit int) (changes []change, next Cursor, woken <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Epoch != l.epoch || c.Next > l.next || l.next-c.Next > uint64(len(l.ring)) {
		return nil, c, nil, ErrBehind
	}
	for ; c.Next < l.next && len(changes) < limit; c.Next++ {
		changes = append(changes, l.ring[c.Next%maxChanges])
	}
	return changes, c, l.woken, nil
}
