package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// waiting are the flags of commands that can wait for name servers.
type waiting struct {
	wanted bool
	places placeFlags
}

func (w *waiting) define(c *cobra.Command) {
	c.Flags().BoolVar(&w.wanted, "wait", false, "wait until every name server of the zone serves the change, asked over DNS")
	c.Flags().Var(&w.places, "name-server", "with --wait: ask this name server there and not at port 53 of its address; may be repeated")
	noFiles(c, "name-server")
}

// served is what name servers are to serve.
type served struct {
	zone     string            // zones/…
	revision int64             // of the change
	ahead    int64             // of the revision, is the zone's serial
	records  map[string]string // TXT data by owner name
}

// wait returns once every address of every name server of the zone serves the
// change, if that is wanted. Its error says which do not and what they answer.
func (r *run) wait(ctx context.Context, api dkimv1.KeyManagementClient, w waiting, s served) error {
	if !w.wanted {
		return nil
	}
	z, err := call(ctx, r, api.GetZone, &dkimv1.GetZoneRequest{Name: s.zone})
	if err != nil {
		return fmt.Errorf("the change is made, but not what to wait for known: %w", err)
	}
	s.ahead = z.GetSerial() - int64(serial(z.GetRevision()))
	limited, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	sites, err := r.sites(limited, z, w.places)
	if err != nil {
		return fmt.Errorf("the change is made, but name servers cannot be asked: %w", err)
	}

	bar := r.newProgress(len(sites), "name servers")
	lagging := make([]string, len(sites))
	var all sync.WaitGroup
	for i, site := range sites {
		all.Go(func() {
			lagging[i] = site.await(limited, lastPart(s.zone), s)
			if lagging[i] == "" {
				bar.step()
			}
		})
	}
	all.Wait()
	bar.finish()
	if ctx.Err() != nil {
		return errInterrupted
	}
	lagging = slices.DeleteFunc(lagging, func(text string) bool { return text == "" })
	if len(lagging) > 0 {
		return fmt.Errorf("the change is made, but after %s %d of %d name servers do not serve it: %s",
			r.timeout, len(lagging), len(sites), strings.Join(lagging, "; "))
	}
	return nil
}

// sites are the places where the name servers of a zone are asked: as flags
// say, else as the configuration says, else port 53 of all their addresses.
func (r *run) sites(ctx context.Context, z *dkimv1.Zone, places placeFlags) ([]site, error) {
	var found []site
	var hosts []string
	for _, ns := range z.GetNameServers() {
		host := ns.GetHost()
		hosts = append(hosts, host)
		at := places[host]
		if configured, ok := r.session.config.NameServers[host]; ok && at == nil {
			at = []netip.AddrPort{configured}
		}
		if at == nil {
			addrs, err := addresses(ctx, ns)
			if err != nil {
				return nil, err
			}
			for _, a := range addrs {
				at = append(at, netip.AddrPortFrom(a, 53))
			}
		}
		for _, a := range at {
			found = append(found, site{host, a})
		}
	}
	for _, host := range slices.Sorted(maps.Keys(places)) {
		if !slices.Contains(hosts, host) {
			return nil, fmt.Errorf("--name-server %s: %s has no such name server, but %s", host, lastPart(z.GetName()), strings.Join(hosts, " and "))
		}
	}
	return found, nil
}

func addresses(ctx context.Context, ns *dkimv1.NameServer) ([]netip.Addr, error) {
	if len(ns.GetAddresses()) == 0 {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", ns.GetHost()+".")
		if err != nil {
			return nil, fmt.Errorf("%w; --name-server %s=ADDRESS:PORT says where it is", err, ns.GetHost())
		}
		return addrs, nil
	}
	var addrs []netip.Addr
	for _, text := range ns.GetAddresses() {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("name server %s: %w", ns.GetHost(), err)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// provisioned is what name servers are to serve after a domain was provisioned.
func (r *run) provisioned(ctx context.Context, api dkimv1.KeyManagementClient, d *dkimv1.Domain) (served, error) {
	s := served{zone: d.GetZone(), revision: d.GetRevision(), records: make(map[string]string)}
	byName := make(map[string]*dkimv1.Key)
	for token := ""; ; {
		resp, err := r.keyPage(ctx, api, d.GetName(), token)
		if err != nil {
			return served{}, err
		}
		for _, k := range resp.GetKeys() {
			byName[k.GetName()] = k
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	for _, sel := range d.GetSelectors() {
		if record := byName[sel.GetKey()].GetRecord(); record != "" {
			s.records[sel.GetCnameTarget()] = record
		}
	}
	return s, nil
}

// serial is the SOA serial of the change.
func (s served) serial() uint32 { return serial(s.revision + s.ahead) }

// serial is the SOA serial at a store revision, where it is not ahead of that. 0 is not used (RFC 1982 has
// nothing against it, some name servers do).
func serial(revision int64) uint32 {
	return cmp.Or(uint32(revision), 1) //nolint:gosec // its low 32 bits
}

// reached reports whether serial a is b or later (RFC 1982 §3.2).
func reached(a, b uint32) bool { return int32(a-b) >= 0 } //nolint:gosec // the sign bit tells
