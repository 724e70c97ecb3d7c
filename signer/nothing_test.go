package signer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
)

// direct calls a dkimd without a network.
type direct struct {
	grpc.ClientConnInterface
	d *dkimd
}

func (c direct) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	var resp proto.Message
	var err error
	switch req := args.(type) {
	case *dkimv1.ResolveSigningKeysRequest:
		resp, err = c.d.ResolveSigningKeys(ctx, req)
	case *dkimv1.SignRequest:
		resp, err = c.d.Sign(ctx, req)
	default:
		return fmt.Errorf("no method %s", method)
	}
	if err == nil {
		proto.Merge(reply.(proto.Message), resp)
	}
	return err
}

// A domain that could not sign signs within 10 seconds after it can, and one that can is
// asked about when its answer is due.
func TestNothingForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dkimd{}
		d.reset()
		d.refresh = 5 * time.Minute
		c, err := signer.New(signer.Options{Conn: direct{d: d}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		names := []string{"nobody.example", "nokeys.example", "fallback.example", "signs.example"}
		d.rotate(t, "brands/acme/domains/nokeys.example")
		d.rotate(t, "brands/acme/domains/fallback.example", "ed-default")
		d.rotate(t, "brands/acme/domains/signs.example", "ed1")
		d.fallback["fallback.example"] = true
		selector := func(name string) string {
			a, err := c.Keys(t.Context(), name)
			switch {
			case errors.Is(err, signer.ErrUnknownDomain):
				return "nobody"
			case err != nil:
				return err.Error()
			case len(a.Keys) == 0:
				return "none"
			}
			return a.Keys[0].Selector
		}
		all := func() string {
			var got []string
			for _, n := range names {
				got = append(got, selector(n))
			}
			return strings.Join(got, " ")
		}
		if got, want := all(), "nobody none ed-default ed1"; got != want {
			t.Fatalf("at first %s, want %s", got, want)
		}
		for _, n := range names {
			d.rotate(t, "brands/acme/domains/"+n, "ed2")
		}
		clear(d.fallback)
		asked := d.count("Resolve")
		time.Sleep(5 * time.Second)
		if got := all(); got != "nobody none ed-default ed1" || d.count("Resolve") != asked {
			t.Errorf("after 5 seconds %s, asked %d times", got, d.count("Resolve")-asked)
		}
		time.Sleep(5 * time.Second)
		if got, want := all(), "ed2 ed2 ed2 ed1"; got != want {
			t.Errorf("after 10 seconds %s, want %s", got, want)
		}
		time.Sleep(5 * time.Minute)
		if got, want := all(), "ed2 ed2 ed2 ed2"; got != want {
			t.Errorf("after 5 minutes %s, want %s", got, want)
		}
	})
}

// Check says whether mail can be signed.
func TestCheck(t *testing.T) {
	for name, o := range ways {
		d := newDkimd(t)
		d.rotate(t, spamtrap, "ed1")
		c := d.client(t, o)
		if err := c.Check(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.Confirmed().IsZero() == o.Watch {
			t.Errorf("%s: confirmed %v", name, c.Confirmed())
		}
		d.setDown(true)
		err := c.Check(t.Context())
		if want := !(o.Watch && o.Local); errors.Is(err, signer.ErrUnavailable) != want {
			t.Errorf("%s, while dkimd is away: %v, want an error: %t", name, err, want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Check(t.Context()); !errors.Is(err, signer.ErrClosed) {
			t.Errorf("%s, closed: %v", name, err)
		}
	}
	d := newDkimd(t)
	c := d.client(t, signer.Options{Brand: "nobody"})
	if err := c.Check(t.Context()); !errors.Is(err, signer.ErrUnknownDomain) {
		t.Errorf("of a brand that does not exist: %v", err)
	}
}
