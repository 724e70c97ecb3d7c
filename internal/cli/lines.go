package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// maxLine is many times what a domain and an algorithm need.
const maxLine = 4 << 10

// line is a good line of a file of domains.
type line struct {
	number    int // from 1
	domain    dnsname.Domain
	algorithm keypair.Algorithm // 0: none named
}

// String is the line as dkimctl writes it itself.
func (l line) String() string {
	if l.algorithm == 0 {
		return string(l.domain)
	}
	return string(l.domain) + " " + l.algorithm.String()
}

// lineError is what is wrong with a line.
type lineError struct {
	number int
	err    error
}

// Error begins with the number of the line.
func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.number, e.err) }

// Unwrap returns what is wrong.
func (e *lineError) Unwrap() error { return e.err }

// readLines reads a file of domains: the good lines, each domain once, and the
// bad ones, both in the order of the file. It fails only if it cannot read.
func readLines(in io.Reader) (good []line, bad []*lineError, _ error) {
	first := make(map[dnsname.Domain]line)
	s := bufio.NewScanner(in)
	s.Buffer(nil, maxLine)
	for number := 1; s.Scan(); number++ {
		text := s.Text()
		if number == 1 {
			text = strings.TrimPrefix(text, "\ufeff") // some editors begin a file with it
		}
		text, _, _ = strings.Cut(text, "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		l, err := parseLine(words)
		if err != nil {
			bad = append(bad, &lineError{number, err})
			continue
		}
		l.number = number
		before, again := first[l.domain]
		switch {
		case !again:
			first[l.domain] = l
			good = append(good, l)
		case before.algorithm != l.algorithm:
			bad = append(bad, &lineError{number, fmt.Errorf("%s is on line %d with another algorithm", l.domain, before.number)})
		}
	}
	if errors.Is(s.Err(), bufio.ErrTooLong) {
		return nil, nil, fmt.Errorf("a line is longer than %d octets: one domain is expected on each", maxLine)
	}
	return good, bad, s.Err()
}

func parseLine(words []string) (line, error) {
	if len(words) > 2 {
		return line{}, fmt.Errorf("%d words, expected a domain and perhaps an algorithm", len(words))
	}
	domain, err := dnsname.ParseDomain(words[0])
	if err != nil {
		return line{}, err
	}
	l := line{domain: domain}
	if len(words) == 2 {
		if l.algorithm, err = keypair.ParseAlgorithm(words[1]); err != nil {
			return line{}, fmt.Errorf("%.40q: %w", words[1], err)
		}
	}
	return l, nil
}
