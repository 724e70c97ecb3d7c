package auditlog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Kind is what is wrong at a line.
type Kind string

// The kinds.
const (
	// Malformed: the line is none of an audit log.
	Malformed Kind = "MALFORMED"
	// Changed: the line does not have its own hash.
	Changed Kind = "CHANGED"
	// Missing: lines before this one are not there.
	Missing Kind = "MISSING"
	// Unexpected: a line of this place, or of a later one, came before. Lines were
	// put in, or stand in another order.
	Unexpected Kind = "UNEXPECTED"
	// Detached: the line does not follow from the one before it, which is another
	// one than it was.
	Detached Kind = "DETACHED"
	// Cut: the last line is not whole.
	Cut Kind = "CUT"
)

// Break is a line that does not follow from what stands before it.
type Break struct {
	File string `json:"file"`
	Line int    `json:"line"` // in the file, from 1
	Kind Kind   `json:"kind"`
	// Detail is a sentence.
	Detail string `json:"detail"`
}

// String is the break in words.
func (b Break) String() string {
	return fmt.Sprintf("%s line %d: %s: %s", b.File, b.Line, b.Kind, b.Detail)
}

// Chain is what was found of a chain.
type Chain struct {
	Name        string
	First, Last uint64 // the places of its first and last line
	Begin, End  time.Time
	Lines       uint64 // good ones
	Head        Hash   // of the last line
}

// Verifier checks lines as they come. The zero Verifier is ready. It is not safe
// for concurrent use.
type Verifier struct {
	// Each, if not nil, is called for each good line.
	Each func(Entry)

	chains map[string]*Chain
	order  []string
	breaks []Break
	wanted map[Hash]bool // whether found
}

// maxBreaks is how many breaks are kept. Who changes a log with more has it all.
const maxBreaks = 1000

// Expect makes the Verifier look for a line with the hash.
func (v *Verifier) Expect(h Hash) {
	if v.wanted == nil {
		v.wanted = make(map[Hash]bool)
	}
	v.wanted[h] = false
}

// Absent returns the hashes that were expected and not found in a chain.
func (v *Verifier) Absent() []Hash {
	var absent []Hash
	for h, found := range v.wanted {
		if !found {
			absent = append(absent, h)
		}
	}
	slices.SortFunc(absent, func(a, b Hash) int { return bytes.Compare(a[:], b[:]) })
	return absent
}

// Chains are those found, in the order of their first lines.
func (v *Verifier) Chains() []Chain {
	var all []Chain
	for _, name := range v.order {
		all = append(all, *v.chains[name])
	}
	return all
}

// Breaks are the first thousand that were found.
func (v *Verifier) Breaks() []Break { return v.breaks }

// File reads and checks one file of a log; the files of a chain come in their
// order. It returns errors of r only.
func (v *Verifier) File(name string, r io.Reader) error {
	in := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		text, whole, err := readLine(in)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(text) == 0 && !whole {
			return nil
		}
		v.line(name, n, text, whole)
	}
}

// readLine reads a line. whole says that it ended with a newline. Of one that is
// longer than MaxLine only the beginning is returned.
func readLine(in *bufio.Reader) (text []byte, whole bool, _ error) {
	for {
		part, err := in.ReadSlice('\n')
		if len(text) <= MaxLine {
			text = append(text, part...)
		}
		switch {
		case err == nil:
			return bytes.TrimSuffix(text, []byte{'\n'}), true, nil
		case errors.Is(err, io.EOF):
			return text, false, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, false, err
		}
	}
}

func (v *Verifier) line(file string, n int, text []byte, whole bool) {
	wrong := func(k Kind, format string, args ...any) {
		if len(v.breaks) < maxBreaks {
			v.breaks = append(v.breaks, Break{file, n, k, fmt.Sprintf(format, args...)})
		}
	}
	e, err := Parse(text)
	switch {
	case !whole:
		wrong(Cut, "the last line is not whole: dkimd was killed while it wrote, or somebody cut it")
		return
	case errors.Is(err, ErrHash): // what follows it may be as it was
		wrong(Changed, "line %d of chain %s: %v", e.Seq, e.Chain, err)
	case err != nil:
		wrong(Malformed, "%v", err)
		return
	}
	c := v.chains[e.Chain]
	if c == nil {
		if v.chains == nil {
			v.chains = make(map[string]*Chain)
		}
		c = &Chain{Name: e.Chain, First: e.Seq, Begin: e.Time}
		v.chains[e.Chain], v.order = c, append(v.order, e.Chain)
		if e.Seq == 1 && e.Prev != (Hash{}) {
			wrong(Detached, "it is the first line of chain %s and names one before it", e.Chain)
		}
	} else {
		switch {
		case e.Seq <= c.Last:
			wrong(Unexpected, "it is line %d of chain %s, after line %d", e.Seq, e.Chain, c.Last)
			return
		case e.Seq == c.Last+2:
			wrong(Missing, "line %d of chain %s is not there", c.Last+1, e.Chain)
		case e.Seq > c.Last+2:
			wrong(Missing, "lines %d to %d of chain %s are not there", c.Last+1, e.Seq-1, e.Chain)
		case e.Prev != c.Head:
			wrong(Detached, "it follows another line %d of chain %s than the one that is there", c.Last, e.Chain)
		}
	}
	c.Last, c.End, c.Head = e.Seq, e.Time, e.Hash
	if err != nil {
		return
	}
	c.Lines++
	if _, ok := v.wanted[e.Hash]; ok {
		v.wanted[e.Hash] = true
	}
	if v.Each != nil {
		v.Each(e)
	}
}
