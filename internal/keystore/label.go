package keystore

import (
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// claim says to whom a host label belongs. The claim of a deleted domain stays
// as a tombstone: its CNAMEs may still point here.
type claim struct {
	brand      string
	domain     dnsname.Domain
	deleteTime time.Time // zero while the domain exists
	revision   int64     // 0: the label is free
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
// under two labels.
func chooseLabel(d *Domain, candidates []dnsname.HostLabel, claims map[dnsname.HostLabel]claim, selectors []dnsname.Selector) (dnsname.HostLabel, error) {
	var reason ClaimReason
	for _, l := range candidates {
		c := claims[l]
		switch {
		case c.revision == 0 || c.domain != d.Name || c.brand == d.Brand:
		case c.deleteTime.IsZero():
			reason = ClaimedByOtherBrand
		case reason == 0:
			reason = ReservedForBrand
		}
	}
	if reason != 0 {
		return "", &ClaimError{Reason: reason, Domain: d.Name, Zone: d.Zone}
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
	var unfit dnsname.Selector
	for _, l := range usable {
		i := slices.IndexFunc(selectors, func(sel dnsname.Selector) bool { return !fits(sel, l, d.Zone) })
		if i < 0 {
			return l, nil
		}
		unfit = selectors[i]
	}
	return "", &ClaimError{Reason: SelectorDoesNotFit, Domain: d.Name, Zone: d.Zone, Selector: unfit, Label: usable[len(usable)-1]}
}

// fits reports whether selector and label make an owner name in the zone.
func fits(sel dnsname.Selector, l dnsname.HostLabel, zone dnsname.Zone) bool {
	_, err := dnsname.OwnerName(sel, l, zone)
	return err == nil
}

// labels returns all labels that d claims: its host label, and those that must
// not be another domain's for its selectors to be unambiguous.
func (d *Domain) labels() []dnsname.HostLabel {
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
		Brand: c.brand, Domain: string(c.domain), DeleteTimeMicros: schema.Micros(c.deleteTime),
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
		deleteTime: schema.FromMicros(v.GetDeleteTimeMicros()),
		revision:   kv.ModRevision,
	}, nil
}
