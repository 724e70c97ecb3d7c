package schema

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// ErrCorrupt is wrapped by the errors of values that do not decode.
var ErrCorrupt = errors.New("schema: value does not decode")

// MaxPublicKeyLen bounds the octets of p=: RSA-4096 as SubjectPublicKeyInfo is
// 550, anything above this is no key of ours.
const MaxPublicKeyLen = 2048

// PublicRecord is what one owner name serves. It says nothing of the key's
// state but whether it is revoked, so that a change of state without a change
// in DNS costs the DNS nodes nothing.
type PublicRecord struct {
	KeyType    dkimrecord.KeyType
	PublicKey  []byte // octets of p=; empty: revoked (RFC 6376 §3.6.1)
	Testing    bool   // t=y
	SameDomain bool   // t=s
	TTL        uint32 // seconds
	UpdateTime time.Time
}

// Revoked reports whether the record is served with an empty p=.
func (r PublicRecord) Revoked() bool { return len(r.PublicKey) == 0 }

// Record is the DKIM record that r stands for. It shares PublicKey with r.
func (r PublicRecord) Record() dkimrecord.Record {
	return dkimrecord.Record{
		KeyType: r.KeyType, PublicKey: r.PublicKey,
		Testing: r.Testing, SameDomain: r.SameDomain,
	}
}

// Marshal is the stored form.
func (r PublicRecord) Marshal() ([]byte, error) {
	return marshal(&schemapb.PublicRecord{
		KeyType:          uint32(r.KeyType),
		PublicKey:        r.PublicKey,
		Testing:          r.Testing,
		SameDomain:       r.SameDomain,
		TtlSeconds:       r.TTL,
		UpdateTimeMicros: uint64(Micros(r.UpdateTime)), //nolint:gosec // times before 1970 do not occur
	})
}

// UnmarshalPublicRecord is the inverse of Marshal. Its errors wrap ErrCorrupt.
func UnmarshalPublicRecord(b []byte) (PublicRecord, error) {
	var v schemapb.PublicRecord
	if err := proto.Unmarshal(b, &v); err != nil {
		return PublicRecord{}, fmt.Errorf("%w: public record: %w", ErrCorrupt, err)
	}
	if v.GetKeyType() > uint32(dkimrecord.Ed25519) {
		return PublicRecord{}, fmt.Errorf("%w: public record: unknown key type %d", ErrCorrupt, v.GetKeyType())
	}
	if len(v.GetPublicKey()) > MaxPublicKeyLen {
		return PublicRecord{}, fmt.Errorf("%w: public record: key of %d octets", ErrCorrupt, len(v.GetPublicKey()))
	}
	return PublicRecord{
		KeyType:    dkimrecord.KeyType(v.GetKeyType()), //nolint:gosec // checked above
		PublicKey:  v.GetPublicKey(),
		Testing:    v.GetTesting(),
		SameDomain: v.GetSameDomain(),
		TTL:        v.GetTtlSeconds(),
		UpdateTime: FromMicros(int64(v.GetUpdateTimeMicros())), //nolint:gosec // written by Marshal
	}, nil
}

// NameServer is one of a zone's name servers. Addresses are served as glue and
// are only kept for a name inside the zone.
type NameServer struct {
	Name      string // lower case, no trailing dot
	Addresses []netip.Addr
}

// Apex is the zone object. Times to live and timers are in seconds.
type Apex struct {
	NameServers []NameServer
	Mailbox     string // SOA RNAME as a name, "hostmaster.example.net"
	ApexTTL     uint32 // of SOA, NS and name-server addresses
	Refresh     uint32
	Retry       uint32
	Expire      uint32
	NegativeTTL uint32 // SOA MINIMUM (RFC 2308 §4)
	RecordTTL   uint32 // of a record whose writer names none
	// AcceptDeletionsRevision releases a resync that was held because it would
	// delete too much, if it began at or before this revision.
	AcceptDeletionsRevision int64

	// SerialOffset is what the SOA serial is ahead of the revision: 0, but in a
	// store that a backup was restored to, whose revisions began anew.
	SerialOffset uint32
	CreateTime   time.Time
	Policy       []byte // how keys rotate; DNS nodes do not look into it
}

// Serial is the SOA serial of the zone when its apex was last touched at revision.
func (a Apex) Serial(revision int64) uint32 { return Serial(revision + int64(a.SerialOffset)) }

// Marshal is the stored form.
func (a Apex) Marshal() ([]byte, error) {
	v := &schemapb.Apex{
		Mailbox:                 a.Mailbox,
		ApexTtlSeconds:          a.ApexTTL,
		RefreshSeconds:          a.Refresh,
		RetrySeconds:            a.Retry,
		ExpireSeconds:           a.Expire,
		NegativeTtlSeconds:      a.NegativeTTL,
		RecordTtlSeconds:        a.RecordTTL,
		AcceptDeletionsRevision: a.AcceptDeletionsRevision,
		SerialOffset:            a.SerialOffset,
		CreateTimeMicros:        Micros(a.CreateTime),
		Policy:                  a.Policy,
	}
	for _, ns := range a.NameServers {
		p := &schemapb.NameServer{Name: ns.Name}
		for _, addr := range ns.Addresses {
			p.Addresses = append(p.Addresses, addr.AsSlice())
		}
		v.NameServers = append(v.NameServers, p)
	}
	return marshal(v)
}

// UnmarshalApex is the inverse of Marshal. Its errors wrap ErrCorrupt.
func UnmarshalApex(b []byte) (Apex, error) {
	var v schemapb.Apex
	if err := proto.Unmarshal(b, &v); err != nil {
		return Apex{}, fmt.Errorf("%w: apex: %w", ErrCorrupt, err)
	}
	a := Apex{
		Mailbox:                 v.GetMailbox(),
		ApexTTL:                 v.GetApexTtlSeconds(),
		Refresh:                 v.GetRefreshSeconds(),
		Retry:                   v.GetRetrySeconds(),
		Expire:                  v.GetExpireSeconds(),
		NegativeTTL:             v.GetNegativeTtlSeconds(),
		RecordTTL:               v.GetRecordTtlSeconds(),
		AcceptDeletionsRevision: v.GetAcceptDeletionsRevision(),
		SerialOffset:            v.GetSerialOffset(),
		CreateTime:              FromMicros(v.GetCreateTimeMicros()),
		Policy:                  v.GetPolicy(),
	}
	for _, p := range v.GetNameServers() {
		ns := NameServer{Name: p.GetName()}
		for _, raw := range p.GetAddresses() {
			addr, ok := netip.AddrFromSlice(raw)
			if !ok {
				return Apex{}, fmt.Errorf("%w: apex: address of %d octets", ErrCorrupt, len(raw))
			}
			ns.Addresses = append(ns.Addresses, addr)
		}
		a.NameServers = append(a.NameServers, ns)
	}
	if len(a.NameServers) == 0 {
		return Apex{}, fmt.Errorf("%w: apex: no name server", ErrCorrupt)
	}
	return a, nil
}

// Micros is t as stored: microseconds since the Unix epoch, 0 for no time.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// FromMicros is the inverse of Micros; times are in UTC.
func FromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// marshal is deterministic, since a zone's etag is made of its stored form.
func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
