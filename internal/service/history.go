package service

import (
	"context"
	"strconv"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// actor is who makes a call, for the history. Calls from within the process
// come from nobody else.
func actor(ctx context.Context) string {
	caller, ok := authn.FromContext(ctx)
	if !ok {
		return "dkimd"
	}
	return caller.String()
}

// event is a line of history about the domain as a whole.
func (s *Service) event(ctx context.Context, action string) keystore.Event {
	return keystore.Event{Time: s.now(), Actor: actor(ctx), Action: action}
}

// keyEvent is a line of history about a key.
func (s *Service) keyEvent(ctx context.Context, action string, k keystore.Key) keystore.Event {
	e := s.event(ctx, action)
	e.KeyID, e.Selector, e.Algorithm = k.ID, k.Selector, k.Algorithm
	return e
}

// ListDomainEvents implements dkim.v1.KeyManagement.
func (s *Service) ListDomainEvents(ctx context.Context, req *dkimv1.ListDomainEventsRequest) (*dkimv1.ListDomainEventsResponse, error) {
	n, err := parseExistingDomainName("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	request := "events\x00" + n.String()
	after, err := pagePlace(req.GetPageToken(), request)
	if err != nil {
		return nil, err
	}
	offset := 0
	if after != "" {
		if offset, err = strconv.Atoi(after); err != nil || offset < 1 {
			return nil, badPageToken()
		}
	}
	events, err := s.store.History(ctx, n.brand, n.domain)
	if err != nil {
		return nil, storeFailure(err)
	}
	if len(events) == 0 {
		if _, err := s.store.Domain(ctx, n.brand, n.domain); err != nil {
			return nil, storeFailure(err)
		}
	}
	resp := &dkimv1.ListDomainEventsResponse{}
	events = events[min(offset, len(events)):]
	if len(events) > size {
		resp.NextPageToken = pageToken(request, strconv.Itoa(offset+size))
		events = events[:size]
	}
	for _, e := range events {
		resp.Events = append(resp.Events, eventMessage(n, e))
	}
	return resp, nil
}

func eventMessage(n domainName, e keystore.Event) *dkimv1.DomainEvent {
	m := &dkimv1.DomainEvent{
		EventTime: timestamp(e.Time), Actor: e.Actor, Action: e.Action, Selector: string(e.Selector),
		Algorithm: algorithmMessage(e.Algorithm), FromState: states[e.From], ToState: states[e.To],
		Reason: e.Reason, Detail: e.Detail,
	}
	if e.KeyID != "" {
		m.Key = n.key(e.KeyID)
	}
	return m
}
