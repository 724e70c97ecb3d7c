package service

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var signatures = promauto.NewCounterVec(prometheus.CounterOpts{
	Namespace: "dkimd", Subsystem: "signing", Name: "signatures_total",
	Help: "Signatures asked for through Sign, by outcome: made, refused or rate_limited.",
}, []string{"outcome"})

// rates limits the signatures of each signer.
type rates struct {
	perSecond float64

	mu sync.Mutex
	of map[string]bucket
}

// bucket is what a signer has left, and since when.
type bucket struct {
	left float64
	at   time.Time
}

// maxRates bounds the signers that are remembered. One that is forgotten begins
// with a full bucket.
const maxRates = 10_000

func newRates(perSecond float64) *rates {
	return &rates{perSecond: perSecond, of: make(map[string]bucket)}
}

func (r *rates) limit() float64 { return r.perSecond }

// burst is how many signatures may be made at once: a second's worth, and a whole
// batch in any case.
func (r *rates) burst() float64 { return max(r.perSecond, maxDigests) }

// take takes n signatures of a signer, or says how long to wait for that many.
func (r *rates) take(signer string, n int, now time.Time) time.Duration {
	if r.perSecond <= 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.of[signer]
	if !ok {
		if len(r.of) >= maxRates {
			clear(r.of)
		}
		b = bucket{r.burst(), now}
	}
	if passed := now.Sub(b.at); passed > 0 {
		b.left, b.at = min(r.burst(), b.left+passed.Seconds()*r.perSecond), now
	}
	missing := float64(n) - b.left
	if missing <= 0 {
		b.left -= float64(n)
	}
	r.of[signer] = b
	return max(0, time.Duration(missing/r.perSecond*float64(time.Second)))
}
