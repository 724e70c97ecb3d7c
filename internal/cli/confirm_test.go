package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestAsk(t *testing.T) {
	tests := []struct {
		answer string
		want   string // "": yes
	}{
		{"y\n", ""},
		{" YES \n", ""},
		{"n\n", "not confirmed, nothing is deleted"},
		{"\n", "not confirmed, nothing is deleted"},
		{"", "not confirmed, nothing is deleted"},
		{"yesterday\n", "not confirmed, nothing is deleted"},
	}
	for _, tt := range tests {
		t.Run(tt.answer, func(t *testing.T) {
			var out bytes.Buffer
			r := &run{Program: Program{Stdin: strings.NewReader(tt.answer), Stderr: &out}}
			got := ""
			if err := r.ask(t.Context(), "Delete it?"); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("ask says %q, want %q", got, tt.want)
			}
			if out.String() != "Delete it? [y/N] " {
				t.Errorf("question is %q", out.String())
			}
		})
	}
}

func TestAskInterrupted(t *testing.T) {
	in, hold := io.Pipe() // nobody answers
	defer hold.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &run{Program: Program{Stdin: in, Stderr: io.Discard}}
	if err := r.ask(ctx, "Delete it?"); !errors.Is(err, errInterrupted) {
		t.Errorf("ask says %v, want errInterrupted", err)
	}
}

func TestOneLine(t *testing.T) {
	if got, want := oneLine("a\x1b[31m\tb\r\nc\u009bd bücher"), "a [31m b c d bücher"; got != want {
		t.Errorf("oneLine is %q, want %q", got, want)
	}
}
