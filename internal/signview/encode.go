package signview

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// The forms below live in memory only. They may change with every release.

// dictionary has the words that take one octet.
var dictionary = []string{
	"selector1", "selector2", "selector3", "mail1", "mail2", "default1", "default2", "default3",
	"OK", "MISSING", "WRONG_TARGET", "OTHER_DOMAIN_TARGET", "DOUBLED_SUFFIX", "FLATTENED_TXT", "STALE_TXT", "PROXIED_ADDRESS", "LOOP", "LAME",
	"UNREACHABLE", "DNSSEC_BOGUS", "SERVERS_DISAGREE", "INDIRECT_OK", "NOT_SERVED", "s1", "s2", "dkim", "default", "mail", "k1",
}

var dictionaryRefs = func() map[string]uint64 {
	refs := make(map[string]uint64, len(dictionary))
	for i, w := range dictionary {
		refs[w] = uint64(i) + 2
	}
	return refs
}()

// appendWord appends 0 for "", 1 and the text with its length, or the number of a
// word of the dictionary.
func appendWord(b []byte, s string) []byte {
	if s == "" {
		return append(b, 0)
	}
	if ref, ok := dictionaryRefs[s]; ok {
		return binary.AppendUvarint(b, ref)
	}
	return appendText(append(b, 1), s)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// An id of the usual form, 16 characters of base32, takes 11 octets.
const (
	idLen    = 16
	idPacked = 10
	base32   = "abcdefghijklmnopqrstuvwxyz234567"
)

var base32Values = func() (values [256]int8) {
	for i := range values {
		values[i] = -1
	}
	for i := range len(base32) {
		values[base32[i]] = int8(i)
	}
	return values
}()

func appendID(b []byte, id string) []byte {
	var packed [idPacked]byte
	if !packID(&packed, id) {
		return appendText(append(b, 0), id)
	}
	return append(append(b, 1), packed[:]...)
}

func packID(packed *[idPacked]byte, id string) bool {
	if len(id) != idLen {
		return false
	}
	for i := range 2 { // eight characters are five octets
		var v uint64
		for _, c := range []byte(id[8*i : 8*i+8]) {
			n := base32Values[c]
			if n < 0 {
				return false
			}
			v = v<<5 | uint64(n)
		}
		for j := range 5 {
			packed[5*i+j] = byte(v >> (32 - 8*j)) //nolint:gosec // one octet of five
		}
	}
	return true
}

func unpackID(packed []byte) string {
	var id [idLen]byte
	for i := range 2 {
		var v uint64
		for _, o := range packed[5*i : 5*i+5] {
			v = v<<8 | uint64(o)
		}
		for j := range 8 {
			id[8*i+j] = base32[v>>(35-5*j)&31]
		}
	}
	return string(id[:])
}

// appendSpan appends a time in microseconds relative to another.
func appendSpan(b []byte, t time.Time, from int64) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	return binary.AppendVarint(append(b, 1), schema.Micros(t)-from)
}

const (
	domainHasPolicy = 1 << iota
	domainHasRequest
)

const keyCompromised = 1

// encodeDomain encodes what decides which keys sign.
func encodeDomain(b []byte, d *keystore.Domain) ([]byte, error) {
	var flags byte
	policy, err := json.Marshal(d.Policy)
	if err != nil {
		return nil, fmt.Errorf("policy of %s: %w", d.Name, err)
	}
	if !slices.Equal(policy, noPolicy) {
		flags |= domainHasPolicy
	}
	if !d.RotateRequested.IsZero() {
		flags |= domainHasRequest
	}
	created := schema.Micros(d.CreateTime)
	b = append(b, byte(d.Kind), flags)
	b = binary.AppendVarint(b, created)
	if flags&domainHasPolicy != 0 {
		b = appendText(b, string(policy))
	}
	if flags&domainHasRequest != 0 {
		b = binary.AppendVarint(b, schema.Micros(d.RotateRequested)-created)
	}
	b = binary.AppendUvarint(b, uint64(len(d.Selectors)))
	for _, s := range d.Selectors {
		b = append(appendWord(b, string(s.Selector)), byte(s.Algorithm))
	}
	b = binary.AppendUvarint(b, uint64(len(d.Keys)))
	for i := range d.Keys {
		k := &d.Keys[i]
		b = appendWord(appendID(b, k.ID), string(k.Selector))
		b = append(b, byte(k.Algorithm), byte(k.State)|byte(k.Custody)<<4)
		flags := uint64(k.TTL) << 1
		if k.Compromised {
			flags |= keyCompromised
		}
		b = binary.AppendUvarint(b, flags)
		for _, t := range []time.Time{k.PrepareTime, k.ActivateTime, k.RetireTime, k.RevokeTime} {
			b = appendSpan(b, t, created)
		}
	}
	return b, nil
}

var noPolicy = func() []byte { b, _ := json.Marshal(rotation.Override{}); return b }() //nolint:errchkjson // a struct without anything that could fail

// encodeStatus encodes what was observed.
func encodeStatus(b []byte, st *keystore.Status) []byte {
	var base int64
	include := func(o rotation.Observation) {
		base = max(base, schema.Seconds(o.Since), schema.Seconds(o.CheckTime), schema.Seconds(o.DenyTime))
	}
	for _, o := range st.Aliases {
		include(o)
	}
	for _, o := range st.Served {
		include(o)
	}
	observation := func(o rotation.Observation) {
		b = append(b, byte(o.Finding))
		for _, t := range []time.Time{o.Since, o.CheckTime, o.DenyTime} {
			ref := uint64(0)
			if !t.IsZero() {
				ref = uint64(base-t.Unix()) + 1 //nolint:gosec // base is the last
			}
			b = binary.AppendUvarint(b, ref)
		}
		b = appendWord(b, o.Reason)
	}
	b = binary.AppendVarint(b, base)
	b = binary.AppendUvarint(b, uint64(len(st.Aliases)))
	for _, sel := range slices.Sorted(maps.Keys(st.Aliases)) {
		b = appendWord(b, string(sel))
		observation(st.Aliases[sel])
	}
	b = binary.AppendUvarint(b, uint64(len(st.Served)))
	for _, id := range slices.Sorted(maps.Keys(st.Served)) {
		b = appendID(b, id)
		observation(st.Served[id])
	}
	return b
}

// picture is a domain as it is decoded.
type picture struct {
	rotation.View

	policy rotation.Override
}

var errForm = errors.New("signview: a record does not decode")

// reader takes a record apart. After a mistake it reads nothing but zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b, r.err = nil, errForm
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) octet() byte {
	b := r.bytes(1)
	if b == nil {
		return 0
	}
	return b[0]
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.err = nil, errForm
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.b, r.err = nil, errForm
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads how many things follow, each of an octet at least.
func (r *reader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.b, r.err = nil, errForm
		return 0
	}
	return int(n) //nolint:gosec // checked above
}

func (r *reader) text() string { return string(r.bytes(r.count())) }

func (r *reader) word() string {
	switch ref := r.uvarint(); {
	case ref == 0:
		return ""
	case ref == 1:
		return r.text()
	case ref-2 < uint64(len(dictionary)):
		return dictionary[ref-2]
	}
	r.b, r.err = nil, errForm
	return ""
}

func (r *reader) id() string {
	if r.octet() == 0 {
		return r.text()
	}
	packed := r.bytes(idPacked)
	if packed == nil {
		return ""
	}
	return unpackID(packed)
}

func (r *reader) span(from int64) time.Time {
	if r.octet() == 0 {
		return time.Time{}
	}
	return schema.FromMicros(from + r.varint())
}

func (r *reader) domain(p *picture) {
	d := &p.Domain
	d.Kind = rotation.Kind(r.octet())
	flags := r.octet()
	created := r.varint()
	d.CreateTime = schema.FromMicros(created)
	if flags&domainHasPolicy != 0 {
		if err := json.Unmarshal([]byte(r.text()), &p.policy); err != nil {
			r.err = errForm
		}
	}
	if flags&domainHasRequest != 0 {
		d.RotateRequested = schema.FromMicros(created + r.varint())
	}
	d.Selectors = make([]rotation.Selector, r.count())
	for i := range d.Selectors {
		d.Selectors[i] = rotation.Selector{Selector: dnsname.Selector(r.word()), Algorithm: keypair.Algorithm(r.octet())}
	}
	d.Keys = make([]rotation.Key, r.count())
	for i := range d.Keys {
		k := &d.Keys[i]
		k.ID, k.Selector = r.id(), dnsname.Selector(r.word())
		k.Algorithm = keypair.Algorithm(r.octet())
		both := r.octet()
		k.State, k.Custody = rotation.State(both&15), rotation.Custody(both>>4)
		ttl := r.uvarint()
		k.TTL, k.Compromised = uint32(ttl>>1), ttl&keyCompromised != 0 //nolint:gosec // of 32 bits
		for _, t := range []*time.Time{&k.PrepareTime, &k.ActivateTime, &k.RetireTime, &k.RevokeTime} {
			*t = r.span(created)
		}
	}
}

func (r *reader) status(p *picture) {
	base := r.varint()
	observation := func() rotation.Observation {
		o := rotation.Observation{Finding: rotation.Finding(r.octet())}
		for _, t := range []*time.Time{&o.Since, &o.CheckTime, &o.DenyTime} {
			if ref := r.uvarint(); ref != 0 {
				*t = schema.FromSeconds(base - int64(ref-1)) //nolint:gosec // as encoded
			}
		}
		o.Reason = r.word()
		return o
	}
	if n := r.count(); n > 0 {
		p.Evidence.Aliases = make(map[dnsname.Selector]rotation.Observation, n)
		for range n {
			sel := dnsname.Selector(r.word())
			p.Evidence.Aliases[sel] = observation()
		}
	}
	if n := r.count(); n > 0 {
		p.Evidence.Served = make(map[string]rotation.Observation, n)
		for range n {
			id := r.id()
			p.Evidence.Served[id] = observation()
		}
	}
}
