package service

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// WatchDomains implements dkim.v1.KeyManagement.
func (s *Service) WatchDomains(req *dkimv1.WatchDomainsRequest, stream grpc.ServerStreamingServer[dkimv1.WatchDomainsResponse]) error {
	ctx := stream.Context()
	brand, err := parseParentBrand("parent", req.GetParent())
	if err != nil {
		return err
	}
	if brand != "" {
		if _, err := s.store.Brand(ctx, brand); err != nil {
			return storeFailure(err)
		}
	}
	revision, err := parseResumeToken(req.GetResumeToken())
	if err != nil {
		return err
	}
	if revision == 0 {
		if revision, err = s.store.DomainSnapshot(ctx, brand, func(d keystore.Domain) error {
			m, err := domainMessage(d, nil)
			if err != nil {
				return err
			}
			return stream.Send(&dkimv1.WatchDomainsResponse{Type: dkimv1.WatchDomainsResponse_EVENT_TYPE_PUT, Domain: m})
		}); err != nil {
			return watchFailure(err)
		}
		if err := stream.Send(&dkimv1.WatchDomainsResponse{
			Type: dkimv1.WatchDomainsResponse_EVENT_TYPE_SYNCED, ResumeToken: resumeToken(revision),
		}); err != nil {
			return err
		}
	}
	return watchFailure(s.store.WatchDomains(ctx, brand, revision, func(ev keystore.DomainEvent) error {
		resp := &dkimv1.WatchDomainsResponse{ResumeToken: resumeToken(ev.Domain.Revision)}
		if ev.Deleted {
			resp.Type = dkimv1.WatchDomainsResponse_EVENT_TYPE_DELETE
			resp.Domain = &dkimv1.Domain{
				Name: domainName{ev.Domain.Brand, ev.Domain.Name}.String(), Revision: ev.Domain.Revision,
			}
			return stream.Send(resp)
		}
		m, err := domainMessage(ev.Domain, nil)
		if err != nil {
			return err
		}
		resp.Type, resp.Domain = dkimv1.WatchDomainsResponse_EVENT_TYPE_PUT, m
		return stream.Send(resp)
	}))
}

func watchFailure(err error) error {
	if errors.Is(err, keystore.ErrCompacted) {
		return fail(codes.OutOfRange, "WATCH_EXPIRED", "the changes after the resume token are no longer known; watch again without it, which begins with all domains")
	}
	return storeFailure(err)
}

// A resume token is a store revision, in a form that invites nobody to compute
// with it.

func resumeToken(revision int64) string {
	return base64.RawURLEncoding.EncodeToString([]byte("w1:" + strconv.FormatInt(revision, 10)))
}

func parseResumeToken(token string) (int64, error) {
	if token == "" {
		return 0, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil && len(raw) > 3 && string(raw[:3]) == "w1:" {
		if revision, err := strconv.ParseInt(string(raw[3:]), 10, 64); err == nil && revision > 0 {
			return revision, nil
		}
	}
	return 0, invalid("resume_token", "INVALID_RESUME_TOKEN", fmt.Sprintf("%.40q is not from a response of this watch; begin again without it", token))
}
