package keystore

import (
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// Domain is a signing domain as stored, without key material.
type Domain struct {
	Brand string
	Name  dnsname.Domain
	Zone  dnsname.Zone
	// Kind says what the keys are for. Those of a brand's own domains have owner
	// names of their own form, see RelativeOwner.
	Kind       rotation.Kind
	HostLabel  dnsname.HostLabel // empty in a new domain: Apply chooses it; a BrandDefault one has none
	CreateTime time.Time
	UpdateTime time.Time
	Selectors  []Selector // those whose keys the service manages
	Keys       []Key
	Policy     rotation.Override // what it sets itself of how its keys rotate
	// RotateRequested is when somebody asked for a rotation; zero: nobody did.
	RotateRequested time.Time
	// Events are the newest ones, in order of time. Apply adds those of the change;
	// Store.History has the older ones too.
	Events        []Event
	HistoryBlocks uint32 // how many blocks of older events were stored; Apply counts
	Revision      int64  // store revision it was read or written at; 0: new
}

// Selector is a selector whose keys the service manages.
type Selector = rotation.Selector

// Key is a key of a domain, without key material.
type Key struct {
	rotation.Key
	Testing bool // published with t=y
	// Imported says that the private half was made elsewhere: its public half may
	// stand at other names, in the customers' own DNS.
	Imported    bool
	Fingerprint [schema.FingerprintLen]byte
}

// Published reports whether a record of the key is served.
func (k Key) Published() bool { return k.State != rotation.Destroyed }

// RelativeOwner is the name of a selector's record below the apex of the zone:
// "selector1-spamtrap-dk._domainkey" of a customer's domain and
// "mail1-acme._domainkey" of the keys that domains of brand acme share, whose host
// label is "acme" if it is free; "default1._domainkey.acme" of its default keys.
// The error is a *dnsname.InvalidError if the name would be too long.
func (d *Domain) RelativeOwner(sel dnsname.Selector) (string, error) {
	if d.Kind != rotation.BrandDefault {
		return dnsname.RelativeOwnerName(sel, d.HostLabel)
	}
	return dnsname.AliasOwnerName(sel, dnsname.Domain(d.Brand))
}

// OwnerName is the whole name of a selector's record, which a CNAME has to point
// at. Errors are as of RelativeOwner.
func (d *Domain) OwnerName(sel dnsname.Selector) (string, error) {
	if d.Kind != rotation.BrandDefault {
		return dnsname.OwnerName(sel, d.HostLabel, d.Zone)
	}
	return dnsname.AliasOwnerName(sel, dnsname.Domain(d.Brand+"."+string(d.Zone)))
}

// ETag changes with every change of the domain.
func (d Domain) ETag() string { return strconv.FormatInt(d.Revision, 10) }

// Key returns the key with the id, or nil.
func (d *Domain) Key(id string) *Key {
	for i := range d.Keys {
		if d.Keys[i].ID == id {
			return &d.Keys[i]
		}
	}
	return nil
}

// KeyIn returns the published key that stands in a selector, or nil.
func (d *Domain) KeyIn(sel dnsname.Selector) *Key {
	for i := range d.Keys {
		if d.Keys[i].Selector == sel && d.Keys[i].Published() {
			return &d.Keys[i]
		}
	}
	return nil
}

// Selector returns the managed selector of that name, or nil.
func (d *Domain) Selector(name dnsname.Selector) *Selector {
	for i := range d.Selectors {
		if d.Selectors[i].Selector == name {
			return &d.Selectors[i]
		}
	}
	return nil
}

func (d *Domain) marshal() ([]byte, error) {
	v := &schemapb.Domain{
		Zone:             string(d.Zone),
		HostLabel:        string(d.HostLabel),
		CreateTimeMicros: schema.Micros(d.CreateTime),
		UpdateTimeMicros: schema.Micros(d.UpdateTime),
		Kind:             uint32(d.Kind), Policy: policyValue(d.Policy), RotateRequestMicros: schema.Micros(d.RotateRequested),
		Events: eventsValue(d.Events, d.impliedWords()), HistoryBlocks: d.HistoryBlocks,
	}
	for _, s := range d.Selectors {
		v.Selectors = append(v.Selectors, &schemapb.Selector{Selector: string(s.Selector), Algorithm: uint32(s.Algorithm)})
	}
	for _, k := range d.Keys {
		v.Keys = append(v.Keys, &schemapb.Key{
			Id: k.ID, Selector: string(k.Selector), Algorithm: uint32(k.Algorithm),
			State: uint32(k.State), Custody: uint32(k.Custody),
			TtlSeconds: k.TTL, Testing: k.Testing, Fingerprint: k.Fingerprint[:],
			PrepareTimeMicros:  schema.Micros(k.PrepareTime),
			ActivateTimeMicros: schema.Micros(k.ActivateTime),
			RetireTimeMicros:   schema.Micros(k.RetireTime),
			RevokeTimeMicros:   schema.Micros(k.RevokeTime),
			Compromised:        k.Compromised,
			Imported:           k.Imported,
		})
	}
	b, err := proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", d.Name, err)
	}
	return b, nil
}

// domainFrom decodes a domain. Its errors wrap schema.ErrCorrupt.
func domainFrom(kv *mvccpb.KeyValue) (Domain, error) { return decodeDomain(kv, true) }

// bareDomainFrom is domainFrom without the events.
func bareDomainFrom(kv *mvccpb.KeyValue) (Domain, error) { return decodeDomain(kv, false) }

func decodeDomain(kv *mvccpb.KeyValue, events bool) (Domain, error) {
	brand, name, ok := schema.ParseDomainKey(string(kv.Key))
	if !ok {
		return Domain{}, fmt.Errorf("%w: %q is no domain's key", schema.ErrCorrupt, kv.Key)
	}
	var v schemapb.Domain
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return Domain{}, fmt.Errorf("%w: domain %s of %s: %w", schema.ErrCorrupt, name, brand, err)
	}
	d := Domain{
		Brand:      brand,
		Name:       dnsname.Domain(name),
		Zone:       dnsname.Zone(v.GetZone()),
		HostLabel:  dnsname.HostLabel(v.GetHostLabel()),
		CreateTime: schema.FromMicros(v.GetCreateTimeMicros()),
		UpdateTime: schema.FromMicros(v.GetUpdateTimeMicros()),
		Kind:       rotation.Kind(v.GetKind()), //nolint:gosec // checked below
		Policy:     policyFrom(v.GetPolicy()), RotateRequested: schema.FromMicros(v.GetRotateRequestMicros()),
		HistoryBlocks: v.GetHistoryBlocks(),
		Revision:      kv.ModRevision,
	}
	if v.GetKind() > 255 || !d.Kind.Valid() {
		return Domain{}, fmt.Errorf("%w: domain %s of %s: unknown kind %d", schema.ErrCorrupt, name, brand, v.GetKind())
	}
	for _, s := range v.GetSelectors() {
		a, err := algorithmFrom(s.GetAlgorithm())
		if err != nil {
			return Domain{}, fmt.Errorf("domain %s of %s: %w", name, brand, err)
		}
		d.Selectors = append(d.Selectors, Selector{Selector: dnsname.Selector(s.GetSelector()), Algorithm: a})
	}
	for _, p := range v.GetKeys() {
		k, err := keyFrom(p)
		if err != nil {
			return Domain{}, fmt.Errorf("domain %s of %s: %w", name, brand, err)
		}
		d.Keys = append(d.Keys, k)
	}
	if !events {
		return d, nil
	}
	var err error
	if d.Events, err = eventsFrom(v.GetEvents(), d.impliedWords()); err != nil {
		return Domain{}, fmt.Errorf("domain %s of %s: %w", name, brand, err)
	}
	return d, nil
}

func keyFrom(p *schemapb.Key) (Key, error) {
	a, err := algorithmFrom(p.GetAlgorithm())
	if err != nil {
		return Key{}, err
	}
	state, custody := rotation.State(p.GetState()), rotation.Custody(p.GetCustody()) //nolint:gosec // checked below
	if p.GetState() > 255 || !state.Valid() || p.GetCustody() > 255 || !custody.Valid() || len(p.GetFingerprint()) != schema.FingerprintLen {
		return Key{}, fmt.Errorf("%w: key %s", schema.ErrCorrupt, p.GetId())
	}
	return Key{
		Key: rotation.Key{
			ID: p.GetId(), Selector: dnsname.Selector(p.GetSelector()), Algorithm: a, State: state, Custody: custody,
			PrepareTime:  schema.FromMicros(p.GetPrepareTimeMicros()),
			ActivateTime: schema.FromMicros(p.GetActivateTimeMicros()),
			RetireTime:   schema.FromMicros(p.GetRetireTimeMicros()),
			RevokeTime:   schema.FromMicros(p.GetRevokeTimeMicros()),
			TTL:          p.GetTtlSeconds(),
			Compromised:  p.GetCompromised(),
		},
		Testing:     p.GetTesting(),
		Imported:    p.GetImported(),
		Fingerprint: [schema.FingerprintLen]byte(p.GetFingerprint()),
	}, nil
}

func algorithmFrom(v uint32) (keypair.Algorithm, error) {
	if v > 255 || !keypair.Algorithm(v).Valid() {
		return 0, fmt.Errorf("%w: unknown algorithm %d", schema.ErrCorrupt, v)
	}
	return keypair.Algorithm(v), nil
}

// algorithmOrNone is algorithmFrom where there need not be an algorithm.
func algorithmOrNone(v uint64) (keypair.Algorithm, error) {
	if v == 0 {
		return 0, nil
	}
	const unknown = 256
	return algorithmFrom(uint32(min(v, unknown)))
}
