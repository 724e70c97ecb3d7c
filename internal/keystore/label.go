package keystore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// claim says to whom a host label belongs. The claim of a deleted domain stays
// as a tombstone: its CNAMEs may still point here.
type claim struct {
	brand      string
	domain     dnsname.Domain
	deleteTime time.Time // zero while the domain exists
	// historyBlocks is that of the deleted domain: the one that takes its place
	// goes on counting.
	historyBlocks uint32
	revision      int64 // 0: the label is free
}

// ClaimReason says why a domain may not have a host label.
type ClaimReason uint8

// Reasons of a ClaimError.
const (
	ClaimedByOtherBrand    ClaimReason = iota + 1 // another brand has the domain in this zone
	ReservedForBrand                              // another brand had it, and nothing shows that it let go
	LabelsTaken                                   // other domains have all labels it could have
	SelectorTaken                                 // owner names of the selector could be another domain's
	SelectorDoesNotFit                            // selector and label together are longer than 63 octets
	PublicKeyUsedElsewhere                        // the public key is published under another owner name
)

// ClaimError says that a name, or a key, belongs to somebody else. It never
// tells to whom.
type ClaimError struct {
	Reason   ClaimReason
	Domain   dnsname.Domain
	Zone     dnsname.Zone
	Selector dnsname.Selector  // of the last three reasons
	Label    dnsname.HostLabel // of SelectorTaken and SelectorDoesNotFit
	// DeleteTime is when the other brand gave it up, of ReservedForBrand.
	DeleteTime time.Time
}

func (e *ClaimError) Error() string {
	switch e.Reason {
	case ClaimedByOtherBrand:
		return fmt.Sprintf("domain %s is in use by another brand in zone %s", e.Domain, e.Zone)
	case ReservedForBrand:
		return fmt.Sprintf("domain %s is reserved in zone %s: another brand used it, and CNAMEs that trust that brand may still exist", e.Domain, e.Zone)
	case LabelsTaken:
		return fmt.Sprintf("all host labels that domain %s could have in zone %s are taken", e.Domain, e.Zone)
	case SelectorTaken:
		return fmt.Sprintf("selector %s of domain %s would give an owner name that can also be read as another domain's", e.Selector, e.Domain)
	case SelectorDoesNotFit:
		return fmt.Sprintf("selector %s and host label %s make too long a name in zone %s (63 octets a label, 253 in all)", e.Selector, e.Label, e.Zone)
	case PublicKeyUsedElsewhere:
		return fmt.Sprintf("the public key for selector %s of domain %s is already published under another name", e.Selector, e.Domain)
	}
	return fmt.Sprintf("domain %s cannot have its names in zone %s", e.Domain, e.Zone)
}

// chooseLabel picks the host label of a new domain: the one it had before it was
// deleted, so that its CNAMEs are right again, or else the first candidate that
// is free. All candidates are looked at, so that a domain is never in two brands
// under two labels. With takeOver, that another brand had it is no obstacle.
func chooseLabel(d *Domain, candidates []dnsname.HostLabel, claims map[dnsname.HostLabel]claim, selectors []dnsname.Selector, takeOver bool) (dnsname.HostLabel, error) {
	if d.Kind == rotation.BrandDefault {
		return "", d.misfit(selectors)
	}
	var reason ClaimReason
	var deleteTime time.Time
	for _, l := range candidates {
		c := claims[l]
		switch {
		case c.revision == 0 || c.domain != d.Name || c.brand == d.Brand:
		case c.deleteTime.IsZero():
			reason = ClaimedByOtherBrand
		case reason == 0 && !takeOver:
			reason = ReservedForBrand
		}
		if reason == ReservedForBrand && c.domain == d.Name && c.brand != d.Brand && c.deleteTime.After(deleteTime) {
			deleteTime = c.deleteTime
		}
	}
	switch reason {
	case ClaimedByOtherBrand:
		return "", &ClaimError{Reason: reason, Domain: d.Name, Zone: d.Zone}
	case ReservedForBrand:
		return "", &ClaimError{Reason: reason, Domain: d.Name, Zone: d.Zone, DeleteTime: deleteTime}
	}
	var usable []dnsname.HostLabel
	for _, l := range candidates {
		if c := claims[l]; c.revision == 0 || c.domain == d.Name {
			usable = append(usable, l)
		}
	}
	if len(usable) == 0 {
		return "", &ClaimError{Reason: LabelsTaken, Domain: d.Name, Zone: d.Zone}
	}
	// The one it had last first; a free label has no time.
	slices.SortStableFunc(usable, func(a, b dnsname.HostLabel) int {
		return claims[b].deleteTime.Compare(claims[a].deleteTime)
	})
	var misfit error
	for _, l := range usable {
		labelled := *d
		labelled.HostLabel = l
		if misfit = labelled.misfit(selectors); misfit == nil {
			return l, nil
		}
	}
	return "", misfit
}

// labelCandidates are the labels that a domain may have, the best first.
func (d *Domain) labelCandidates() []dnsname.HostLabel {
	switch d.Kind {
	case rotation.BrandDefault:
		return nil
	case rotation.BrandShared:
		return append([]dnsname.HostLabel{dnsname.HostLabel(d.Brand)}, dnsname.HostLabelCandidates(d.Name)...)
	default:
		return dnsname.HostLabelCandidates(d.Name)
	}
}

// misfit returns the *ClaimError of the first selector that makes no owner name
// with d's label, or nil.
func (d *Domain) misfit(selectors []dnsname.Selector) error {
	for _, sel := range selectors {
		if _, err := d.OwnerName(sel); err != nil {
			return &ClaimError{Reason: SelectorDoesNotFit, Domain: d.Name, Zone: d.Zone, Selector: sel, Label: d.HostLabel}
		}
	}
	return nil
}

// inherited are the tombstones, besides that of d's own label, that another brand
// left of d's name and d's brand takes over: else neither could have the domain
// again once d is deleted.
func inherited(d Domain, claims map[dnsname.HostLabel]claim) ([]clientv3.Op, error) {
	var ops []clientv3.Op
	for l, c := range claims {
		if c.revision == 0 || c.domain != d.Name || c.brand == d.Brand || l == d.HostLabel {
			continue
		}
		value, err := claim{brand: d.Brand, domain: d.Name, deleteTime: c.deleteTime}.marshal()
		if err != nil {
			return nil, fmt.Errorf("tombstone of %s: %w", d.Name, err)
		}
		ops = append(ops, clientv3.OpPut(schema.LabelKey(string(d.Zone), string(l)), string(value)))
	}
	return ops, nil
}

// OwnerOf tells which brand has a customer's domain in a zone; ok is false if none
// has.
func (s *Store) OwnerOf(ctx context.Context, zone dnsname.Zone, domain dnsname.Domain) (brand string, ok bool, _ error) {
	claims, _, err := s.claims(ctx, zone, dnsname.HostLabelCandidates(domain))
	if err != nil {
		return "", false, err
	}
	for _, c := range claims {
		if c.revision != 0 && c.domain == domain && c.deleteTime.IsZero() {
			return c.brand, true, nil
		}
	}
	return "", false, nil
}

// labels returns all labels that d claims: its host label, and those that must
// not be another domain's for its selectors to be unambiguous.
func (d *Domain) labels() []dnsname.HostLabel {
	if d.Kind == rotation.BrandDefault {
		return nil
	}
	labels := []dnsname.HostLabel{d.HostLabel}
	add := func(sel dnsname.Selector) {
		for _, l := range dnsname.ShadowLabels(sel, d.HostLabel) {
			if !slices.Contains(labels, l) {
				labels = append(labels, l)
			}
		}
	}
	for _, s := range d.Selectors {
		add(s.Selector)
	}
	for _, k := range d.Keys {
		if k.Published() {
			add(k.Selector)
		}
	}
	return labels
}

// released returns the labels that d, as it will stand, no longer needs once the
// keys are withdrawn.
func released(withdraw []Key, d Domain) []dnsname.HostLabel {
	if d.Kind == rotation.BrandDefault {
		return nil
	}
	needed := d.labels()
	var labels []dnsname.HostLabel
	for _, k := range withdraw {
		for _, l := range dnsname.ShadowLabels(k.Selector, d.HostLabel) {
			if !slices.Contains(needed, l) && !slices.Contains(labels, l) {
				labels = append(labels, l)
			}
		}
	}
	return labels
}

func (c claim) marshal() ([]byte, error) {
	return proto.Marshal(&schemapb.LabelClaim{
		Brand: c.brand, Domain: string(c.domain), DeleteTimeMicros: schema.Micros(c.deleteTime), HistoryBlocks: c.historyBlocks,
	})
}

// claimFrom decodes a claim; a nil kv is a free label.
func claimFrom(kv *mvccpb.KeyValue) (claim, error) {
	if kv == nil {
		return claim{}, nil
	}
	var v schemapb.LabelClaim
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return claim{}, fmt.Errorf("%w: claim %q: %w", schema.ErrCorrupt, kv.Key, err)
	}
	return claim{
		brand:      v.GetBrand(),
		domain:     dnsname.Domain(v.GetDomain()),
		deleteTime: schema.FromMicros(v.GetDeleteTimeMicros()), historyBlocks: v.GetHistoryBlocks(),
		revision: kv.ModRevision,
	}, nil
}
