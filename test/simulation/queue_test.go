package simulation_test

import "time"

// event is something that happens at a time. The kinds that are about a message carry one.
type event struct {
	at   time.Time
	what what
	site *site
	msg  *message
}

type what uint8

const (
	look    what = iota // the controller's turn
	tamper              // the customer changes the zone
	send                // a message is signed
	receive             // a message is verified
	leak                // the key that signs is compromised
)

// queue is a heap of events, the earliest first.
type queue []event

func (q *queue) push(e event) {
	h := append(*q, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !h[i].at.Before(h[up].at) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
	*q = h
}

func (q *queue) pop() event {
	h := *q
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	for i := 0; ; {
		least := i
		for down := 4*i + 1; down <= 4*i+4 && down < last; down++ {
			if h[down].at.Before(h[least].at) {
				least = down
			}
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	*q = h
	return first
}
