package service_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

const (
	put     = dkimv1.WatchDomainsResponse_EVENT_TYPE_PUT
	deleted = dkimv1.WatchDomainsResponse_EVENT_TYPE_DELETE
	synced  = dkimv1.WatchDomainsResponse_EVENT_TYPE_SYNCED
)

type watch struct {
	grpc.ServerStreamingClient[dkimv1.WatchDomainsResponse]
}

func (f *fixture) watch(t *testing.T, ctx context.Context, parent, token string) watch {
	t.Helper()
	return watch{must(f.api.WatchDomains(ctx, &dkimv1.WatchDomainsRequest{Parent: parent, ResumeToken: token}))(t)}
}

func (w watch) next(t *testing.T) *dkimv1.WatchDomainsResponse {
	t.Helper()
	return must(w.Recv())(t)
}

// sync reads until SYNCED and returns what was there, and the token.
func (w watch) sync(t *testing.T) (there []*dkimv1.Domain, token string) {
	t.Helper()
	for {
		resp := w.next(t)
		if resp.GetType() == synced {
			if resp.GetDomain() != nil || resp.GetResumeToken() == "" {
				t.Errorf("SYNCED with domain %v and token %q", resp.GetDomain(), resp.GetResumeToken())
			}
			return there, resp.GetResumeToken()
		}
		if resp.GetType() != put || resp.GetResumeToken() != "" {
			t.Errorf("in the first listing: %v", resp)
		}
		there = append(there, resp.GetDomain())
	}
}

func TestWatchDomains(t *testing.T) {
	f := newFixture(t)
	there := f.provision(t, acme+"a.example")
	f.provision(t, "brands/other/domains/b.example")

	w := f.watch(t, t.Context(), "brands/acme", "")
	domains, token := w.sync(t)
	wantEqual(t, "domains that were there", domains, []*dkimv1.Domain{there})

	// Each change once, in order, and with all that a reader of it would see.
	f.provision(t, "brands/other/domains/unseen.example")
	made := f.provision(t, acme+"c.example")
	rotated := bare(f.rotate(t, made.GetName()))
	f.publish(t, there.GetName(), "theirs")
	published := bare(must(f.api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: there.GetName()}))(t))
	gone := must(f.api.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: made.GetName()}))(t)
	want := []*dkimv1.WatchDomainsResponse{
		{Type: put, Domain: made}, {Type: put, Domain: rotated}, {Type: put, Domain: published},
		{Type: deleted, Domain: &dkimv1.Domain{Name: made.GetName(), Revision: gone.GetRevision()}},
	}
	var tokens []string
	for _, want := range want {
		resp := w.next(t)
		tokens = append(tokens, resp.GetResumeToken())
		resp.ResumeToken = ""
		wantEqual(t, "change", resp, want)
	}
	// Going on from each token gives what came after it.
	for i, token := range append([]string{token}, tokens[:3]...) {
		w := f.watch(t, t.Context(), "brands/acme", token)
		for j, want := range want[i:] {
			resp := w.next(t)
			wantEqual(t, "token", resp.GetResumeToken(), tokens[i+j])
			resp.ResumeToken = ""
			wantEqual(t, "change again", resp, want)
		}
	}

	all := f.watch(t, t.Context(), "brands/-", "")
	domains, _ = all.sync(t)
	wantEqual(t, "domains of all brands", names(domains), []string{"a.example", "b.example", "unseen.example"})
	f.provision(t, "brands/other/domains/seen.example")
	wantEqual(t, "change in another brand", all.next(t).GetDomain().GetName(), "brands/other/domains/seen.example")
}

func TestWatchDomainsExpires(t *testing.T) {
	f := newFixture(t)
	f.provision(t, acme+"a.example")
	_, token := f.watch(t, t.Context(), "brands/-", "").sync(t)
	f.provision(t, acme+"b.example")
	f.provision(t, acme+"c.example")
	revision := must(f.store.Revision(t.Context()))(t)
	must(f.fake.Compact(t.Context(), revision))(t)
	expired := rejection{codes.OutOfRange, "WATCH_EXPIRED", ""}
	watching := func(parent, token string) func() error {
		return func() error {
			_, err := f.watch(t, t.Context(), parent, token).Recv()
			return err
		}
	}
	f.refused(t, expired, watching("brands/-", token))
	// Of a store that was restored from an earlier state since.
	ahead := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "w1:%d", revision+1))
	f.refused(t, expired, watching("brands/-", ahead))
	_, token = f.watch(t, t.Context(), "brands/-", "").sync(t)
	d := f.provision(t, acme+"d.example")
	wantEqual(t, "change after the new listing", f.watch(t, t.Context(), "brands/-", token).next(t).GetDomain(), d)

	for name, token := range map[string]string{
		"nonsense": "nonsense!", "no revision": base64.RawURLEncoding.EncodeToString([]byte("w1:")), "revision 0": base64.RawURLEncoding.EncodeToString([]byte("w1:0")),
		"negative": base64.RawURLEncoding.EncodeToString([]byte("w1:-1")), "another version": base64.RawURLEncoding.EncodeToString([]byte("w2:7")), "a revision": "7",
	} {
		t.Run(name, func(t *testing.T) {
			f.refused(t, badArgument("INVALID_RESUME_TOKEN", "resume_token"), watching("brands/-", token))
		})
	}
	f.refused(t, rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, watching(nobody, ""))
	f.refused(t, badArgument("INVALID_BRAND", "parent"), watching("brands/A", ""))
	f.refused(t, badArgument("INVALID_NAME", "parent"), watching("", ""))
}

// A client that leaves, however it does so, leaves nothing running here.
func TestWatchDomainsEndsWithItsClient(t *testing.T) {
	f := newFixture(t)
	f.provision(t, acme+"a.example")
	cert, key := f.admin(t)
	leave := map[string]func(cancel context.CancelFunc, conn *grpc.ClientConn){
		"cancels":     func(cancel context.CancelFunc, _ *grpc.ClientConn) { cancel() },
		"disconnects": func(_ context.CancelFunc, conn *grpc.ClientConn) { conn.Close() },
	}
	for name, leave := range leave {
		t.Run(name, func(t *testing.T) {
			conn := f.connect(t, cert, key)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream := must(dkimv1.NewKeyManagementClient(conn).WatchDomains(ctx, &dkimv1.WatchDomainsRequest{Parent: "brands/-"}))(t)
			watch{stream}.sync(t)
			if n := running("WatchDomains"); n == 0 {
				t.Fatal("no watch is running; the test looks at the wrong thing")
			}
			leave(cancel, conn)
			if _, err := stream.Recv(); status.Code(err) != codes.Canceled && !errors.Is(err, io.EOF) {
				t.Errorf("the client sees %v", err)
			}
			wantEqual(t, "handler that returned", <-f.streams, "WatchDomains")
			patience, cancelPatience := context.WithTimeout(t.Context(), time.Minute)
			defer cancelPatience()
			for running("WatchDomains")+running("(*Fake).watch") > 0 {
				if patience.Err() != nil {
					t.Fatal("the watch goes on without its client")
				}
				runtime.Gosched()
			}
		})
	}
	wantEqual(t, "log", f.log.String(), "")
}

// running is the number of goroutines that have a function of that name on their
// stack.
func running(function string) int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		// Not the test itself, nor the client's half.
		if strings.Contains(stack, function+"(") && !strings.Contains(stack, "testing.tRunner") {
			n++
		}
	}
	return n
}
