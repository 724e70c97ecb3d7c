//go:build race

package harness

// RaceEnabled says whether the tests, and the programs of this project that they
// start, run under the race detector, which takes several times the memory.
const RaceEnabled = true
