package service

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/refusal"
	"github.com/dkimzone/dkimzone/internal/signview"
)

const (
	// maxWatches bounds the watches of what signs, maxSnapshots those that are at
	// their beginning, which takes seconds of a core when there are a million domains.
	maxWatches   = 1000
	maxSnapshots = 2
	// watchBatch is how many domains a response has at most.
	watchBatch = 500
	// watchSilence is how long a watch says nothing at most.
	watchSilence = 10 * time.Second
	// sendTimeout is how long a caller may leave a response lying.
	sendTimeout = time.Minute
)

type signingStream = grpc.ServerStreamingServer[dkimv1.WatchSigningKeysResponse]

// WatchSigningKeys implements dkim.v1.Signer.
func (s *Service) WatchSigningKeys(req *dkimv1.WatchSigningKeysRequest, stream signingStream) error {
	ctx := stream.Context()
	g, err := s.ready()
	if err != nil {
		return err
	}
	brand, err := parseParentBrand("parent", req.GetParent())
	if err != nil {
		return err
	}
	if brand == "" {
		brand = boundBrand(ctx)
	}
	if brand != "" && !g.view.HasBrand(brand) {
		return storeFailure(fmt.Errorf("%w: %s", keystore.ErrBrandNotFound, brand))
	}
	w := &signingWatch{signatory: g, now: s.now, stream: stream, brand: brand, standby: req.GetIncludeStandby()}
	cursor, resume, err := w.parseToken(req.GetResumeToken())
	if err != nil {
		return err
	}
	select {
	case g.watches <- struct{}{}:
		defer func() { <-g.watches }()
	default:
		return failWith(codes.ResourceExhausted, "TOO_MANY_WATCHES", fmt.Sprintf("%d watches run already; ask another dkimd", maxWatches),
			refusal.Retry(watchSilence))
	}
	return viewFailure(w.run(ctx, cursor, resume))
}

// signingWatch is one call of WatchSigningKeys.
type signingWatch struct {
	*signatory

	now     func() time.Time
	stream  signingStream
	brand   string
	standby bool
}

func (w *signingWatch) run(ctx context.Context, c signview.Cursor, resume bool) error {
	var err error
	for {
		if !resume {
			if c, err = w.everything(ctx); err != nil {
				return err
			}
			resume = true
		}
		silence := time.NewTimer(watchSilence)
		var entries []signview.Entry
		entries, c, err = w.view.Changes(ctx, c, w.brand, watchBatch, silence.C)
		silence.Stop()
		if errors.Is(err, signview.ErrBehind) {
			resume = false
			continue
		}
		if err != nil {
			return err
		}
		resp := &dkimv1.WatchSigningKeysResponse{ResumeToken: w.token(c)}
		for _, e := range entries {
			w.add(resp, e)
		}
		if err := w.send(ctx, resp); err != nil {
			return err
		}
	}
}

// everything sends all that the caller may see.
func (w *signingWatch) everything(ctx context.Context) (signview.Cursor, error) {
	select {
	case w.snapshots <- struct{}{}:
		defer func() { <-w.snapshots }()
	case <-ctx.Done():
		return signview.Cursor{}, ctx.Err()
	}
	resp := &dkimv1.WatchSigningKeysResponse{Snapshot: true}
	c, err := w.view.Snapshot(ctx, w.brand, func(e signview.Entry) error {
		w.add(resp, e)
		if len(resp.GetBrands())+len(resp.GetDomains()) < watchBatch {
			return nil
		}
		full := resp
		resp = &dkimv1.WatchSigningKeysResponse{}
		return w.send(ctx, full)
	})
	if err != nil {
		return c, err
	}
	resp.Synced, resp.ResumeToken = true, w.token(c)
	return c, w.send(ctx, resp)
}

// send sends a response. A caller that takes none is cut off, as it would hold up a
// listing that others wait for.
func (w *signingWatch) send(ctx context.Context, resp *dkimv1.WatchSigningKeysResponse) error {
	resp.Age = durationpb.New(max(0, w.now().Sub(w.view.Confirmed())))
	sent := make(chan error, 1)
	go func() { sent <- w.stream.Send(resp) }() // ends with the stream at the latest
	limit := time.NewTimer(sendTimeout)
	defer limit.Stop()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		return fail(codes.DeadlineExceeded, "SLOW_CONSUMER", fmt.Sprintf("a response was not taken for %s", sendTimeout))
	}
}

func (w *signingWatch) add(resp *dkimv1.WatchSigningKeysResponse, e signview.Entry) {
	if b := e.Brand; b != nil {
		m := &dkimv1.SigningBrand{Name: "brands/" + b.Name, Deleted: b.Deleted}
		if !b.Deleted {
			m.DefaultKeys, m.DefaultOnly = signingKeyMessages(b.Name, b.Keys), b.DefaultOnly
			m.HoldDuration = durationpb.New(b.Hold)
			if w.standby {
				m.StandbyKeys = signingKeyMessages(b.Name, b.Standby)
			}
		}
		resp.Brands = append(resp.Brands, m)
	}
	if d := e.Domain; d != nil {
		m := &dkimv1.SigningDomain{Name: domainName{d.Brand, d.Name}.String(), Deleted: d.Deleted}
		if !d.Deleted {
			m.Keys, m.Fallback, m.Reason = signingKeyMessages(d.Brand, d.Keys), d.Fallback, d.Reason
			m.HoldDuration = durationpb.New(d.Hold)
			if w.standby {
				m.StandbyKeys = signingKeyMessages(d.Brand, d.Standby)
			}
		}
		resp.Domains = append(resp.Domains, m)
	}
}

// token is a resume token. It says for which brand it is, so that it resumes no
// other watch.
func (w *signingWatch) token(c signview.Cursor) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "s1:%x:%x:%t:%s", c.Epoch, c.Next, w.standby, w.brand))
}

func (w *signingWatch) parseToken(token string) (c signview.Cursor, resume bool, err error) {
	if token == "" {
		return c, false, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		var rest string
		if _, err = fmt.Sscanf(string(raw), "s1:%x:%x:%s", &c.Epoch, &c.Next, &rest); err == nil && strings.HasPrefix(string(raw), "s1:") && w.token(c) == token {
			return c, true, nil
		}
	}
	return signview.Cursor{}, false, invalid("resume_token", "INVALID_RESUME_TOKEN", fmt.Sprintf("%.40q is not from a response of this watch; begin again without it", token))
}
