package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

const confirmHelp = `On a terminal it asks before it deletes, unless --yes is given. Without a terminal, in a script, the command itself is the
consent.`

// confirm asks the person at the terminal, if there is one. Its error means no.
func (r *run) confirm(ctx context.Context, yes bool, question string) error {
	if yes || !isTerminal(r.Stdin) {
		return nil
	}
	return r.ask(ctx, question)
}

// ask returns nil for yes.
func (r *run) ask(ctx context.Context, question string) error {
	_, _ = fmt.Fprintf(r.Stderr, "%s [y/N] ", oneLine(question))
	answer := make(chan string, 1)
	go func() { // a read of a terminal cannot be ended
		line, _ := bufio.NewReader(r.Stdin).ReadString('\n')
		answer <- line
	}()
	select {
	case <-ctx.Done():
		_, _ = fmt.Fprintln(r.Stderr)
		return errInterrupted
	case line := <-answer:
		if line = strings.ToLower(strings.TrimSpace(line)); line == "y" || line == "yes" {
			return nil
		}
		return errors.New("not confirmed, nothing is deleted")
	}
}

func yesFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVarP(to, "yes", "y", false, "do not ask")
}

func etagFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "etag", "", "refuse if this is no longer its `etag`, as get shows it")
	noFiles(c, "etag")
}

// say writes a sentence.
func say(w io.Writer, text string, args ...any) error {
	_, err := fmt.Fprintln(w, oneLine(fmt.Sprintf(text, args...)))
	return err
}
