package admission

import (
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/authn"
)

// maxRemembered is how many answers one generation of a memory holds.
const maxRemembered = 5000

// memory remembers for a while what was allowed, in two generations: when the
// young one is full it becomes the old one, and the old one is forgotten. So it is
// bounded and nothing has to be looked for.
type memory struct {
	keep time.Duration
	now  func() time.Time

	mu         sync.Mutex
	young, old map[question]time.Time // until when
}

// question is what an answer depends on. The request id and the address are told
// for the log of the one who answers.
type question struct {
	brand, domain string
	operation     Operation
	caller        authn.Identity
	method        authn.Method
}

func questionOf(r Request) question {
	return question{r.Brand, r.Domain, r.Operation, r.Caller.Identity, r.Caller.Method}
}

func (m *memory) has(r Request) bool {
	if m.keep == 0 {
		return false
	}
	q := questionOf(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.young[q]
	if !ok {
		until, ok = m.old[q]
	}
	return ok && m.now().Before(until)
}

func (m *memory) add(r Request) {
	if m.keep == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.young) >= maxRemembered {
		m.old, m.young = m.young, nil
	}
	if m.young == nil {
		m.young = make(map[question]time.Time)
	}
	m.young[questionOf(r)] = m.now().Add(m.keep)
}
