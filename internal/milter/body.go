package milter

import (
	"crypto/sha256"
	"hash"
)

// bodyHash is the hash of a body in relaxed canonicalization (RFC 6376 §3.4.4). The
// body is written to it in pieces and is not kept.
type bodyHash struct {
	hash    hash.Hash
	limit   int    // octets that a line may have
	breaks  bool   // the mail server breaks a longer one
	line    int    // octets of the line so far
	long    bool   // a line was longer
	out     []byte // canonical octets that are not hashed yet
	endings int    // line endings that count only if something follows
	space   bool   // white space that counts only if something follows in its line
	cr      bool   // a CR that may be half of a line ending
	written bool
}

// flushSize is when out is hashed.
const flushSize = 4 << 10

// newBodyHash makes a bodyHash. With breaks it is that of the body with a line ending and
// a space after each limit octets of a line.
func newBodyHash(limit int, breaks bool) *bodyHash {
	return &bodyHash{hash: sha256.New(), limit: limit, breaks: breaks, out: make([]byte, 0, flushSize+8)}
}

// Write takes a piece of the body. It never fails.
func (b *bodyHash) Write(piece []byte) (int, error) {
	for _, c := range piece {
		if b.cr && c != '\n' {
			b.advance()
			b.ordinary('\r')
		}
		b.cr = false
		switch c {
		case '\r':
			b.cr = true
		case '\n': // a bare one too: on the wire it gets its CR
			b.ending()
		case ' ', '\t':
			b.advance()
			b.space = true
		default:
			b.advance()
			b.ordinary(c)
		}
	}
	return len(piece), nil
}

// advance counts an octet that is not of a line ending, and breaks the line before it
// if it is full.
func (b *bodyHash) advance() {
	b.line++
	if b.line <= b.limit {
		return
	}
	b.long = true
	if b.breaks {
		b.ending()
		b.space, b.line = true, 2
	}
}

func (b *bodyHash) ending() {
	b.endings++
	b.space, b.line = false, 0
}

func (b *bodyHash) ordinary(c byte) {
	for ; b.endings > 0; b.endings-- {
		b.put('\r')
		b.put('\n')
	}
	if b.space {
		b.put(' ')
		b.space = false
	}
	b.put(c)
	b.written = true
}

func (b *bodyHash) put(c byte) {
	b.out = append(b.out, c)
	if len(b.out) >= flushSize {
		b.flush()
	}
}

func (b *bodyHash) flush() {
	b.hash.Write(b.out)
	b.out = b.out[:0]
}

// sum ends the body.
func (b *bodyHash) sum() []byte {
	if b.cr {
		b.advance()
		b.ordinary('\r')
	}
	if b.written {
		b.put('\r')
		b.put('\n')
	}
	b.flush()
	return b.hash.Sum(nil)
}
