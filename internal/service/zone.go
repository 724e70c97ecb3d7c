package service

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/audit"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	maxNameServers = 13 // as many as fit in a referral of 512 octets
	maxAddresses   = 8
)

// zoneSeconds are the numbers of a zone, with their ranges and defaults.
var zoneSeconds = []struct {
	field             string
	low, high, preset int32
	api               func(*dkimv1.Zone) *int32
	stored            func(*schema.Apex) *uint32
}{
	{"record_ttl_seconds", minTTL, maxTTL, 3600, func(z *dkimv1.Zone) *int32 { return &z.RecordTtlSeconds }, func(a *schema.Apex) *uint32 { return &a.RecordTTL }},
	{"negative_ttl_seconds", 5, 3600, 300, func(z *dkimv1.Zone) *int32 { return &z.NegativeTtlSeconds }, func(a *schema.Apex) *uint32 { return &a.NegativeTTL }},
	{"apex_ttl_seconds", 60, 604800, 86400, func(z *dkimv1.Zone) *int32 { return &z.ApexTtlSeconds }, func(a *schema.Apex) *uint32 { return &a.ApexTTL }},
	{"refresh_seconds", 60, 604800, 3600, func(z *dkimv1.Zone) *int32 { return &z.RefreshSeconds }, func(a *schema.Apex) *uint32 { return &a.Refresh }},
	{"retry_seconds", 60, 604800, 600, func(z *dkimv1.Zone) *int32 { return &z.RetrySeconds }, func(a *schema.Apex) *uint32 { return &a.Retry }},
	{"expire_seconds", 3600, 2419200 * 4, 1209600, func(z *dkimv1.Zone) *int32 { return &z.ExpireSeconds }, func(a *schema.Apex) *uint32 { return &a.Expire }},
}

// CreateZone implements dkim.v1.KeyManagement.
func (s *Service) CreateZone(ctx context.Context, req *dkimv1.CreateZoneRequest) (*dkimv1.Zone, error) {
	name, err := dnsname.ParseZone(req.GetZoneId())
	if err != nil {
		return nil, nameFailure("zone_id", "INVALID_ZONE", err)
	}
	z := keystore.Zone{Name: name}
	z.CreateTime = s.now()
	if err := setZone(&z, req.GetZone(), zonePaths()); err != nil {
		return nil, err
	}
	if z, err = s.store.CreateZone(ctx, z); err != nil {
		return nil, storeFailure(err)
	}
	return zoneMessage(z), nil
}

// GetZone implements dkim.v1.KeyManagement.
func (s *Service) GetZone(ctx context.Context, req *dkimv1.GetZoneRequest) (*dkimv1.Zone, error) {
	z, err := s.zone(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return zoneMessage(z), nil
}

func (s *Service) zone(ctx context.Context, resource string) (keystore.Zone, error) {
	name, err := parseZoneName("name", resource)
	if err != nil {
		return keystore.Zone{}, err
	}
	z, err := s.store.Zone(ctx, name)
	return z, storeFailure(err)
}

// ListZones implements dkim.v1.KeyManagement.
func (s *Service) ListZones(ctx context.Context, req *dkimv1.ListZonesRequest) (*dkimv1.ListZonesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pagePlace(req.GetPageToken(), "zones")
	if err != nil {
		return nil, err
	}
	zones, more, err := s.store.Zones(ctx, dnsname.Zone(after), size)
	if err != nil {
		return nil, storeFailure(err)
	}
	resp := &dkimv1.ListZonesResponse{}
	for _, z := range zones {
		resp.Zones = append(resp.Zones, zoneMessage(z))
	}
	if more {
		resp.NextPageToken = pageToken("zones", string(zones[len(zones)-1].Name))
	}
	return resp, nil
}

// UpdateZone implements dkim.v1.KeyManagement.
func (s *Service) UpdateZone(ctx context.Context, req *dkimv1.UpdateZoneRequest) (*dkimv1.Zone, error) {
	paths, err := maskPaths(req.GetUpdateMask(), req.GetZone(), zonePaths())
	if err != nil {
		return nil, err
	}
	return s.changeZone(ctx, req.GetZone().GetName(), req.GetZone().GetEtag(), func(z *keystore.Zone) error {
		return setZone(z, req.GetZone(), paths)
	})
}

// AcceptZoneDeletions implements dkim.v1.KeyManagement.
func (s *Service) AcceptZoneDeletions(ctx context.Context, req *dkimv1.AcceptZoneDeletionsRequest) (*dkimv1.Zone, error) {
	return s.changeZone(ctx, req.GetName(), "", func(z *keystore.Zone) error {
		revision, err := s.store.Revision(ctx)
		z.AcceptDeletionsRevision = revision
		return storeFailure(err)
	})
}

func (s *Service) changeZone(ctx context.Context, resource, etag string, change func(*keystore.Zone) error) (*dkimv1.Zone, error) {
	for range conflictRetries {
		z, err := s.zone(ctx, resource)
		if err != nil {
			return nil, err
		}
		if err := checkETag(etag, z.ETag()); err != nil {
			return nil, err
		}
		audit.Before(ctx, zoneMessage(z))
		if err := change(&z); err != nil {
			return nil, err
		}
		z, err = s.store.UpdateZone(ctx, z)
		if err == nil {
			return zoneMessage(z), nil
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return nil, storeFailure(err)
		}
	}
	return nil, storeFailure(keystore.ErrConflict)
}

// DeleteZone implements dkim.v1.KeyManagement.
func (s *Service) DeleteZone(ctx context.Context, req *dkimv1.DeleteZoneRequest) (*emptypb.Empty, error) {
	z, err := s.zone(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkETag(req.GetEtag(), z.ETag()); err != nil {
		return nil, err
	}
	audit.Before(ctx, zoneMessage(z))
	if err := s.store.DeleteZone(ctx, z); err != nil {
		return nil, storeFailure(err)
	}
	return &emptypb.Empty{}, nil
}

// zonePaths are the fields of a zone that may be set.
func zonePaths() []string {
	paths := append(policyPaths(), "name_servers", "mailbox")
	for _, f := range zoneSeconds {
		paths = append(paths, f.field)
	}
	return paths
}

// setZone sets the named fields of z from msg; fields that msg leaves empty get
// their defaults.
func setZone(z *keystore.Zone, msg *dkimv1.Zone, paths []string) error {
	if slices.Contains(paths, "name_servers") {
		servers, err := parseNameServers(msg.GetNameServers(), z.Name)
		if err != nil {
			return err
		}
		z.NameServers = servers
	}
	if slices.Contains(paths, "mailbox") {
		mailbox, err := parseMailbox(msg.GetMailbox(), z.Name)
		if err != nil {
			return err
		}
		z.Mailbox = mailbox
	}
	if err := setPolicy(&z.Policy, msg.GetRotationPolicy(), "zone", paths); err != nil {
		return err
	}
	if msg == nil {
		msg = &dkimv1.Zone{}
	}
	for _, f := range zoneSeconds {
		if !slices.Contains(paths, f.field) {
			continue
		}
		v := *f.api(msg)
		if v == 0 {
			v = f.preset
		}
		if v < f.low || v > f.high {
			return invalid("zone."+f.field, "INVALID_ZONE", fmt.Sprintf("%d is out of range: use %d to %d seconds", v, f.low, f.high))
		}
		*f.stored(&z.Apex) = uint32(v) //nolint:gosec // in range
	}
	return nil
}

func parseNameServers(msgs []*dkimv1.NameServer, zone dnsname.Zone) ([]schema.NameServer, error) {
	if len(msgs) == 0 || len(msgs) > maxNameServers {
		return nil, invalid("zone.name_servers", "INVALID_ZONE", fmt.Sprintf("%d name servers given: a zone has 1 to %d, the same as its parent lists", len(msgs), maxNameServers))
	}
	servers := make([]schema.NameServer, 0, len(msgs))
	for i, m := range msgs {
		field := fmt.Sprintf("zone.name_servers[%d]", i)
		host, err := dnsname.ParseZone(m.GetHost())
		if err != nil {
			return nil, nameFailure(field+".host", "INVALID_ZONE", err)
		}
		if slices.ContainsFunc(servers, func(ns schema.NameServer) bool { return ns.Name == string(host) }) {
			return nil, invalid(field+".host", "INVALID_ZONE", fmt.Sprintf("%s is there twice", host))
		}
		inside := strings.HasSuffix("."+string(host), "."+string(zone))
		switch n := len(m.GetAddresses()); {
		case host == dnsname.Zone(zone):
			return nil, invalid(field+".host", "INVALID_ZONE", "the zone itself cannot be its name server: use a name below it, such as ns1."+string(zone))
		case inside && n == 0:
			return nil, invalid(field+".addresses", "INVALID_ZONE", fmt.Sprintf("%s lies inside the zone, so that nobody else can give its address: add one", host))
		case !inside && n > 0:
			return nil, invalid(field+".addresses", "INVALID_ZONE", fmt.Sprintf("%s lies outside the zone, which cannot give its address: leave it out", host))
		case n > maxAddresses:
			return nil, invalid(field+".addresses", "INVALID_ZONE", fmt.Sprintf("%d addresses given, at most %d are allowed", n, maxAddresses))
		}
		ns := schema.NameServer{Name: string(host)}
		for j, a := range m.GetAddresses() {
			addr, err := netip.ParseAddr(a)
			if err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
				return nil, invalid(fmt.Sprintf("%s.addresses[%d]", field, j), "INVALID_ZONE", fmt.Sprintf("%.60q is not an IPv4 or IPv6 address that a client could ask", a))
			}
			if addr = addr.Unmap(); !slices.Contains(ns.Addresses, addr) {
				ns.Addresses = append(ns.Addresses, addr)
			}
		}
		servers = append(servers, ns)
	}
	return servers, nil
}

// parseMailbox takes a mail address, whose local part must then be a plain
// label, or a domain name (RFC 1035 §3.3.13).
func parseMailbox(mailbox string, zone dnsname.Zone) (string, error) {
	if mailbox == "" {
		return "hostmaster." + string(zone), nil
	}
	name := mailbox
	if strings.Contains(mailbox, "@") {
		addr, err := mail.ParseAddress(mailbox)
		if err != nil || addr.Address != mailbox {
			return "", invalid("zone.mailbox", "INVALID_ZONE", fmt.Sprintf("%.100q is not a mail address", mailbox))
		}
		local, domain, _ := strings.Cut(mailbox, "@")
		if strings.Contains(local, ".") {
			return "", invalid("zone.mailbox", "INVALID_ZONE", "a local part with dots cannot be told from the domain by those who read the SOA record: use one without, such as hostmaster")
		}
		name = local + "." + domain
	}
	z, err := dnsname.ParseZone(name)
	if err != nil {
		return "", nameFailure("zone.mailbox", "INVALID_ZONE", err)
	}
	return string(z), nil
}

func zoneMessage(z keystore.Zone) *dkimv1.Zone {
	m := &dkimv1.Zone{
		Name:       "zones/" + string(z.Name),
		Mailbox:    z.Mailbox,
		CreateTime: timestamp(z.CreateTime),
		Revision:   z.Revision,
		Serial:     int64(z.Serial(z.Revision)),
		Etag:       z.ETag(),

		RotationPolicy: overrideMessage(z.Policy),
	}
	for _, f := range zoneSeconds {
		*f.api(m) = int32(*f.stored(&z.Apex)) //nolint:gosec // in range when stored
	}
	for _, ns := range z.NameServers {
		server := &dkimv1.NameServer{Host: ns.Name}
		for _, a := range ns.Addresses {
			server.Addresses = append(server.Addresses, a.String())
		}
		m.NameServers = append(m.NameServers, server)
	}
	return m
}
