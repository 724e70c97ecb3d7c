package rotation_test

import (
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

var (
	seed   = flag.Uint64("seed", 1, "of the worlds of TestInvariants")
	worlds = flag.Int("worlds", 550, "how many there are")
)

// stepsPerWorld is a few years of a domain's life.
const stepsPerWorld = 2000

// Whatever fails, in any order: what is signed can be verified, nothing is taken away while mail may need it, no gate is
// passed before its time.
func TestInvariants(t *testing.T) {
	steps, switches := 0, 0
	for i := range *worlds {
		w := newWorld(rand.New(rand.NewPCG(*seed, uint64(i))), "")
		for n := range stepsPerWorld {
			w.step()
			steps++
			if w.broken != nil {
				t.Fatalf("seed %d, world %d, step %d:\n%s", *seed, i, n, strings.Join(w.broken, "\n"))
			}
		}
		switches += w.switches
	}
	t.Logf("%d worlds, %d steps, %d switches, seed %d", *worlds, steps, switches, *seed)
	if switches < steps/1000 {
		t.Errorf("%d steps had only %d switches: they prove little", steps, switches)
	}
}

// The same with small cases of failures.
func TestInvariantsShrunk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rand.New(drawn{t}), "")
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			w.step()
			if w.broken != nil {
				t.Fatal(strings.Join(w.broken, "\n"))
			}
		}
	})
}

// drawn takes chances from rapid, which then finds the fewest that fail.
type drawn struct{ t *rapid.T }

func (d drawn) Uint64() uint64 { return rapid.Uint64().Draw(d.t, "chance") }

// Each gate is needed: without it the world shows which promise breaks.
func TestFaults(t *testing.T) {
	caughtBy := map[string]string{
		"served":  "served", // a signer is told to use a key that a name server of ours does not serve
		"alias":   "alias",  // … whose alias is not there
		"lead":    "caches", // … that a resolver may remember not to be there
		"signers": "signers",
		"paused":  "freeze",
		"frozen":  "freeze",
		"fresh":   "fresh",
		"due":     "interval",
		"silent":  "drain",
		"drain":   "drain",
		"gap":     "gap",
	}
	if len(caughtBy) != rotation.NumGates || len(rotation.GateNames) != rotation.NumGates {
		t.Fatalf("%d gates, %d of them with a name, %d with a property", rotation.NumGates, len(rotation.GateNames), len(caughtBy))
	}
	for gate, property := range caughtBy {
		t.Run(gate, func(t *testing.T) {
			t.Parallel()
			for i := range 600 {
				w := newWorld(rand.New(rand.NewPCG(*seed, uint64(i))), gate)
				for n := range stepsPerWorld {
					if w.step(); w.broken == nil {
						continue
					}
					if slices.ContainsFunc(w.broken, func(b string) bool { return strings.HasPrefix(b, property+": ") }) {
						t.Logf("caught in world %d, step %d: %s", i, n, w.broken[0])
						return
					}
					w.broken = nil // another property saw it too: go on to the one that is meant
				}
			}
			t.Errorf("nothing noticed that the gate is open: the property %q is blind", property)
		})
	}
}
