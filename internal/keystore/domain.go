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

// Domain is a customer's signing domain as stored, without key material.
type Domain struct {
	Brand      string
	Name       dnsname.Domain
	Zone       dnsname.Zone
	HostLabel  dnsname.HostLabel // empty in a new domain: Apply chooses it
	CreateTime time.Time
	UpdateTime time.Time
	Selectors  []Selector // those whose keys the service manages
	Keys       []Key
	Revision   int64 // store revision it was read or written at; 0: new
}

// Selector is a selector whose keys the service manages.
type Selector struct {
	Selector  dnsname.Selector
	Algorithm keypair.Algorithm
}

// Key is a key of a domain, without key material.
type Key struct {
	rotation.Key
	Testing     bool // published with t=y
	Fingerprint [schema.FingerprintLen]byte
}

// Published reports whether a record of the key is served.
func (k Key) Published() bool { return k.State != rotation.Destroyed }

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
		})
	}
	b, err := proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", d.Name, err)
	}
	return b, nil
}

// domainFrom decodes a domain. Its errors wrap schema.ErrCorrupt.
func domainFrom(kv *mvccpb.KeyValue) (Domain, error) {
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
		Revision:   kv.ModRevision,
	}
	for _, s := range v.GetSelectors() {
		a, err := algorithmFrom(s.GetAlgorithm())
		if err != nil {
			return Domain{}, fmt.Errorf("domain %s of %s: %w", name, brand, err)
		}
		d.Selectors = append(d.Selectors, Selector{dnsname.Selector(s.GetSelector()), a})
	}
	for _, p := range v.GetKeys() {
		k, err := keyFrom(p)
		if err != nil {
			return Domain{}, fmt.Errorf("domain %s of %s: %w", name, brand, err)
		}
		d.Keys = append(d.Keys, k)
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
		},
		Testing:     p.GetTesting(),
		Fingerprint: [schema.FingerprintLen]byte(p.GetFingerprint()),
	}, nil
}

func algorithmFrom(v uint32) (keypair.Algorithm, error) {
	if v > 255 || !keypair.Algorithm(v).Valid() {
		return 0, fmt.Errorf("%w: unknown algorithm %d", schema.ErrCorrupt, v)
	}
	return keypair.Algorithm(v), nil
}
