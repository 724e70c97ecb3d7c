package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dkimzone/dkimzone/internal/auditlog"
)

func (r *run) audit() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "audit",
		Short: "Read audit logs, and check that nobody has changed them",
		Example: `  dkimctl audit verify data/audit.log*
  dkimctl audit show data/audit.log --brand acme --since 24h`,
	}, r.auditVerify(), r.auditShow())
}

// files makes c take any number of files.
func files(c *cobra.Command) *cobra.Command {
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errors.New("FILE is missing; - is standard input")
		}
		return nil
	}
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return c
}

// readLogs lets v check the files of a log, the oldest first.
func (r *run) readLogs(ctx context.Context, v *auditlog.Verifier, names []string) error {
	begins := make(map[string]auditlog.Entry)
	for _, name := range names {
		if name == "-" {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		text, err := bufio.NewReader(io.LimitReader(f, auditlog.MaxLine)).ReadBytes('\n')
		if cerr := f.Close(); err == nil || errors.Is(err, io.EOF) {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		// What is wrong with the line shows when all are read.
		begins[name], _ = auditlog.Parse([]byte(strings.TrimSuffix(string(text), "\n")))
	}
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b string) int {
		return cmp.Or(begins[a].Time.Compare(begins[b].Time), cmp.Compare(begins[a].Seq, begins[b].Seq))
	})
	for _, name := range names {
		if err := r.readLog(ctx, v, name); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) readLog(ctx context.Context, v *auditlog.Verifier, name string) error {
	if name == "-" {
		return v.File("standard input", interruptible{ctx, r.Stdin})
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	return v.File(name, interruptible{ctx, f})
}

// interruptible is a Reader that fails when ctx ends.
type interruptible struct {
	ctx context.Context //nolint:containedctx // an io.Reader gets none
	in  io.Reader
}

// Read implements io.Reader.
func (i interruptible) Read(b []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, errInterrupted
	}
	return i.in.Read(b)
}

// verification is the result of "audit verify" as JSON.
type verification struct {
	Chains []chainFound     `json:"chains"`
	Breaks []auditlog.Break `json:"breaks"`
	Absent []string         `json:"absent"`
}

type chainFound struct {
	Chain string    `json:"chain"`
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
	Begin time.Time `json:"begin"`
	End   time.Time `json:"end"`
	Head  string    `json:"head"`
}

func (r *run) auditVerify() *cobra.Command {
	var heads []string
	var whole bool
	c := files(r.local(&cobra.Command{
		Use:   "verify FILE...",
		Short: "Check that no line of an audit log was changed, removed, added or moved",
		Long: `Checks the chain of hashes through the files of an audit log, the rotated ones too, in whatever order they are named, and prints
the lines at which it breaks. "-" is standard input. A log of several processes holds several chains, each of which is checked.

Who can write the file can also make a whole new chain, or cut lines off its end. To notice that, keep heads elsewhere: dkimd tells
the hash of its last line in its own log now and then, and this command prints it. With --head a line with that hash must be there.`,
		Example: `  dkimctl audit verify /var/lib/dkimd/audit.log*
  dkimctl audit verify --head 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 audit.log
  journalctl -u dkimd -o cat | grep '^{"chain"' | dkimctl audit verify -`,
	}, func(ctx context.Context, args []string) error {
		var v auditlog.Verifier
		for _, text := range heads {
			h, err := auditlog.ParseHash(text)
			if err != nil {
				return usageError{"--head: " + err.Error()}
			}
			v.Expect(h)
		}
		if err := r.readLogs(ctx, &v, args); err != nil {
			return err
		}
		return r.verified(&v, whole)
	}))
	c.Flags().StringArrayVar(&heads, "head", nil, "`hash` of a line that must be there; repeat for several")
	c.Flags().BoolVar(&whole, "whole", false, "fail too if the first lines of a chain are not there, as after old files were deleted")
	return c
}

// verified prints what was found. Its error says what is wrong.
func (r *run) verified(v *auditlog.Verifier, whole bool) error {
	result := verification{Chains: []chainFound{}, Breaks: append([]auditlog.Break{}, v.Breaks()...), Absent: []string{}}
	var wrong []string
	for _, c := range v.Chains() {
		result.Chains = append(result.Chains, chainFound{c.Name, c.First, c.Last, c.Begin, c.End, c.Head.String()})
		if whole && c.First != 1 {
			wrong = append(wrong, fmt.Sprintf("chain %s begins with line %d", c.Name, c.First))
		}
	}
	for _, h := range v.Absent() {
		result.Absent = append(result.Absent, h.String())
		wrong = append(wrong, "no line has the hash "+h.String())
	}
	switch n := len(result.Breaks); {
	case n == 1:
		wrong = append(wrong, "the log is broken at a line")
	case n > 1:
		wrong = append(wrong, fmt.Sprintf("the log is broken at %d lines", n))
	case len(result.Chains) == 0:
		wrong = append(wrong, "there is no line")
	}
	if err := r.printVerification(result); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

func (r *run) printVerification(v verification) error {
	if r.format != formatTable {
		return r.printValue(v)
	}
	for _, b := range v.Breaks {
		if err := say(r.Stdout, "%s", oneLine(b.String())); err != nil {
			return err
		}
	}
	for _, c := range v.Chains {
		if err := say(r.Stdout, "chain %s: lines %d to %d, %s to %s, head %s", c.Chain, c.First, c.Last,
			c.Begin.Format(time.RFC3339), c.End.Format(time.RFC3339), c.Head); err != nil {
			return err
		}
	}
	return nil
}

// printValue prints what is no message of the API.
func (r *run) printValue(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil && r.format == formatYAML {
		text, err = yamlOf(text)
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	_, err = fmt.Fprintf(r.Stdout, "%s\n", text)
	return err
}

// shown selects entries.
type shown struct {
	brand, resource, who, call, outcome, request string
	since                                        string
}

func (r *run) auditShow() *cobra.Command {
	var s shown
	c := files(r.local(&cobra.Command{
		Use:   "show FILE...",
		Short: "Show what an audit log says",
		Long: `Shows the entries of an audit log, oldest first, a line for each. With -o json the lines are those of the log. Lines that are
wrong are left out, and told of at the end; "audit verify" says more.`,
		Example: `  dkimctl audit show data/audit.log --brand acme
  dkimctl audit show data/audit.log* --who admin/alice --since 24h
  dkimctl audit show data/audit.log --outcome PERMISSION_DENIED -o json`,
	}, func(ctx context.Context, args []string) error {
		match, err := s.matcher(time.Now())
		if err != nil {
			return err
		}
		var failed error
		v := auditlog.Verifier{Each: func(e auditlog.Entry) {
			if failed == nil && match(e) {
				failed = r.showEntry(e)
			}
		}}
		if err := r.readLogs(ctx, &v, args); err != nil {
			return err
		}
		if n := len(v.Breaks()); failed == nil && n > 0 {
			return fmt.Errorf("the log is broken, at %s first; see dkimctl audit verify", oneLine(v.Breaks()[0].String()))
		}
		return failed
	}))
	f := c.Flags()
	f.StringVar(&s.brand, "brand", "", "only what is about the `brand`, or was done by one who is bound to it")
	f.StringVar(&s.resource, "resource", "", "only what is about the resource `name`, or about one below it: brands/acme/domains/spamtrap.dk")
	f.StringVar(&s.who, "who", "", "only what was done by `role/name`, or by controller")
	f.StringVar(&s.call, "call", "", "only calls whose name ends with `text`: RotateDomain")
	f.StringVar(&s.outcome, "outcome", "", "only calls that ended with the `code`: OK, PERMISSION_DENIED…")
	f.StringVar(&s.request, "request", "", "only the call with the request `id`")
	f.StringVar(&s.since, "since", "", "only what happened since a `time` as in 2026-03-01T12:00:00Z, or for a time as in 24h")
	return c
}

// matcher reports whether an entry is to be shown.
func (s shown) matcher(now time.Time) (func(auditlog.Entry) bool, error) {
	var since time.Time
	if s.since != "" {
		if d, err := time.ParseDuration(s.since); err == nil && d > 0 {
			since = now.Add(-d)
		} else if since, err = time.Parse(time.RFC3339, s.since); err != nil {
			return nil, usageError{fmt.Sprintf("--since: %q is neither a time as in 2026-03-01T12:00:00Z nor a duration as in 24h", s.since)}
		}
	}
	below := func(name, of string) bool { return name == of || strings.HasPrefix(name, of+"/") }
	about := func(e auditlog.Entry, of string) bool {
		return below(e.Resource, of) || slices.ContainsFunc(e.Steps, func(s auditlog.Step) bool { return below(s.Resource, of) })
	}
	return func(e auditlog.Entry) bool {
		return !e.Time.Before(since) &&
			(s.brand == "" || e.Who.Brand == s.brand || about(e, brandName(s.brand))) &&
			(s.resource == "" || about(e, s.resource)) &&
			(s.who == "" || whoText(e.Who) == s.who || e.Who.Name == s.who) &&
			strings.HasSuffix(e.Call, s.call) &&
			(s.outcome == "" || e.Outcome == s.outcome) &&
			(s.request == "" || e.Request == s.request)
	}, nil
}

func whoText(w auditlog.Who) string {
	switch {
	case w.Role == "":
		return cmp.Or(w.Name, w.Address, "-")
	case w.Brand == "":
		return w.Role + "/" + w.Name
	}
	return w.Role + "/" + w.Brand + "/" + w.Name
}

// showEntry prints an entry.
func (r *run) showEntry(e auditlog.Entry) error {
	if r.format == formatJSON {
		text, _ := e.Append(nil)
		_, err := fmt.Fprintf(r.Stdout, "%s\n", text)
		return err
	}
	words := []string{e.Time.Format(time.RFC3339), whoText(e.Who), e.Call[strings.LastIndexByte(e.Call, '/')+1:], cmp.Or(e.Resource, "-"), e.Outcome}
	if e.Reason != "" && e.Reason != e.Outcome {
		words = append(words, e.Reason)
	}
	for _, values := range []struct {
		what string
		of   map[string]string
	}{{"asked", e.Asked}, {"before", e.Before}, {"after", e.After}} {
		if len(values.of) > 0 {
			words = append(words, values.what+":"+valuesText(values.of))
		}
	}
	for _, s := range e.Steps {
		words = append(words, stepText(s))
	}
	if e.Repeated > 0 {
		words = append(words, fmt.Sprintf("and %d more", e.Repeated))
	}
	return say(r.Stdout, "%s", oneLine(strings.Join(words, " ")))
}

func valuesText(values map[string]string) string {
	var parts []string
	for k, v := range values {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func stepText(s auditlog.Step) string {
	text := "[" + s.Action
	if s.Selector != "" {
		text += " " + s.Selector
	}
	if s.To != "" {
		text += " " + cmp.Or(s.From, "-") + ">" + s.To
	}
	return text + "]"
}
