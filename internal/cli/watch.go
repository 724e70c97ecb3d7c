package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func (r *run) domainWatch() *cobra.Command {
	req := &dkimv1.WatchDomainsRequest{}
	c := r.command(&cobra.Command{
		Use:   "watch [BRAND]",
		Short: "Print the domains of a brand, or of all, and every change",
		Long: `Prints the domains that are there, a line SYNCED, and then every change until it is interrupted. With -o json each event is
one line, with -o yaml one document. When dkimd goes away it connects again and goes on where it was; --resume-token, with
the resumeToken of an event, does the same for a new watch.`,
		Example: `  dkimctl domain watch acme
  dkimctl domain watch -o json | jq .domain.name`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		req.Parent = brandName("-")
		if len(args) > 0 {
			req.Parent = brandName(args[0])
		}
		err := r.watch(ctx, api, req)
		if ctx.Err() != nil { // that is how it is ended
			return nil
		}
		return err
	})
	c.Flags().StringVar(&req.ResumeToken, "resume-token", "", "go on after the event with this `token`")
	noFiles(c, "resume-token")
	return c
}

// watch prints events until something stays wrong, each once: after a lost
// connection it goes on from the last token.
func (r *run) watch(ctx context.Context, api dkimv1.KeyManagementClient, req *dkimv1.WatchDomainsRequest) error {
	pause := backoff{}
	for {
		received, err := r.watchOnce(ctx, api, req)
		lost, ok := errors.AsType[*failure](err)
		if !ok || lost.code != codes.Unavailable || req.GetResumeToken() == "" || (!received && !pause.begun()) {
			return err
		}
		if received {
			pause = backoff{}
			_, _ = fmt.Fprintln(r.Stderr, "dkimctl: connection lost, trying to go on: "+lost.Error())
		}
		if err := pause.wait(ctx, lost.retryAfter); err != nil {
			return err
		}
	}
}

func (r *run) watchOnce(ctx context.Context, api dkimv1.KeyManagementClient, req *dkimv1.WatchDomainsRequest) (received bool, _ error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := api.WatchDomains(ctx, req)
	if err != nil {
		return false, r.failure(err)
	}
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) { // dkimd ends a watch with an error only
			return received, errors.New("dkimd ended the watch without a reason")
		}
		if err != nil {
			return received, r.failure(err)
		}
		received = true
		if err := r.printEvent(ev); err != nil {
			return received, err
		}
		if ev.GetResumeToken() != "" {
			req.ResumeToken = ev.GetResumeToken()
		}
	}
}

func (r *run) printEvent(ev *dkimv1.WatchDomainsResponse) error {
	text := []byte(eventText(ev))
	if r.format != formatTable {
		var err error
		if text, err = r.document(ev); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(r.Stdout, "%s\n", text)
	return err
}

func eventText(ev *dkimv1.WatchDomainsResponse) string {
	kind := strings.TrimPrefix(ev.GetType().String(), "EVENT_TYPE_")
	d := ev.GetDomain()
	if d == nil {
		return kind
	}
	words := []string{fmt.Sprintf("%-6s", kind), brandOf(d.GetName()), lastPart(d.GetName()), "revision=" + strconv.FormatInt(d.GetRevision(), 10)}
	for _, s := range d.GetSelectors() {
		words = append(words, selectorText(s))
	}
	return strings.TrimRight(strings.Join(words, " "), " ")
}

// backoff is a pause that grows from one failure to the next.
type backoff struct{ last time.Duration }

// begun reports whether there has been a pause.
func (b *backoff) begun() bool { return b.last > 0 }

// wait pauses, for least at least. It returns errInterrupted if ctx ends before.
func (b *backoff) wait(ctx context.Context, least time.Duration) error {
	const first, longest = 100 * time.Millisecond, 5 * time.Second
	b.last = min(max(first, 2*b.last), longest)
	timer := time.NewTimer(max(b.last, least))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return errInterrupted
	case <-timer.C:
		return nil
	}
}
