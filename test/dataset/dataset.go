// Package dataset makes zones of any number of DKIM records to measure and to
// compare name servers with, the same ones each time.
package dataset

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Zone is the name of every data set's zone.
const Zone = "keys.example.net"

const (
	ttl       = 3600
	perDomain = 2
	opsPerTxn = 120 // etcd takes 128
	writers   = 4
)

// spkiHead is what stands before the modulus of an RSA-2048 key in a
// SubjectPublicKeyInfo, and spkiTail what stands behind it: the exponent 65537.
var (
	spkiHead = []byte("\x30\x82\x01\x22\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82\x01\x0f\x00\x30\x82\x01\x0a\x02\x82\x01\x01\x00")
	spkiTail = []byte("\x02\x03\x01\x00\x01")
)

const modulusLen = 256

// Set is a zone with two selectors for each domain. Everything about it follows
// from the number of records, so that nothing has to be kept.
type Set struct {
	records int
}

// New returns a set of that many records, an odd one less.
func New(records int) Set { return Set{records - records%perDomain} }

// Len is the number of records.
func (s Set) Len() int { return s.records }

// Domains is the number of domains.
func (s Set) Domains() int { return s.records / perDomain }

// Owner is the owner name of record i without the zone. The records 2n and 2n+1
// are those of domain n.
func (Set) Owner(i int) string {
	return fmt.Sprintf("selector%d-customer-%07d-example._domainkey", i%perDomain+1, i/perDomain)
}

// Record is record i. A few are Ed25519 keys, revoked or marked, if mixed; the
// rest look like RSA-2048 keys, of random octets.
func (Set) Record(i int, mixed bool) schema.PublicRecord {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(i)) //nolint:gosec // never negative
	random := rand.NewChaCha8(seed)
	rec := schema.PublicRecord{KeyType: dkimrecord.RSA, TTL: ttl}
	if mixed {
		switch i % 16 {
		case 3:
			rec.Testing = true
		case 7:
			rec.SameDomain, rec.TTL = true, 300
		case 11: // revoked
			return rec
		case 13:
			rec.KeyType, rec.PublicKey = dkimrecord.Ed25519, make([]byte, 32)
			_, _ = random.Read(rec.PublicKey) // never fails
			return rec
		case 15:
			rec.PublicKey = rsaKey(random, 2*modulusLen)
			return rec
		}
	}
	rec.PublicKey = rsaKey(random, modulusLen)
	return rec
}

// rsaKey is as long as a real key with such a modulus.
func rsaKey(random *rand.ChaCha8, modulus int) []byte {
	key := make([]byte, 0, len(spkiHead)+modulus+len(spkiTail))
	key = append(key, spkiHead...)
	key = key[:len(key)+modulus]
	body := key[len(spkiHead):]
	_, _ = random.Read(body) // never fails
	body[0] |= 0x80
	body[modulus-1] |= 1
	return append(key, spkiTail...)
}

// Apex is the zone object of every set: one name server in the zone, one not.
func Apex() schema.Apex {
	return schema.Apex{
		NameServers: []schema.NameServer{
			{Name: "ns1." + Zone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}},
			{Name: "ns2.example.org"},
		},
		Mailbox: "hostmaster.example.net", ApexTTL: 3600, Refresh: 3600, Retry: 600, Expire: 1209600, NegativeTTL: 300, RecordTTL: ttl,
	}
}

// WriteMaster writes the zone as a master file (RFC 1035 §5).
func (s Set) WriteMaster(w io.Writer, serial uint32, mixed bool) error {
	b := bufio.NewWriterSize(w, 1<<20)
	a := Apex()
	fmt.Fprintf(b, "$ORIGIN %s.\n@ %d IN SOA %s. %s. %d %d %d %d %d\n", Zone, a.ApexTTL,
		a.NameServers[0].Name, a.Mailbox, serial, a.Refresh, a.Retry, a.Expire, a.NegativeTTL)
	for _, ns := range a.NameServers {
		fmt.Fprintf(b, "@ %d IN NS %s.\n", a.ApexTTL, ns.Name)
		for _, addr := range ns.Addresses {
			kind := "AAAA"
			if addr.Is4() {
				kind = "A"
			}
			fmt.Fprintf(b, "%s. %d IN %s %s\n", ns.Name, a.ApexTTL, kind, addr)
		}
	}
	var text []byte
	for i := range s.records {
		rec := s.Record(i, mixed)
		text = rec.Record().AppendText(text[:0])
		parts, err := dkimrecord.Split(string(text))
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%s %d IN TXT", s.Owner(i), rec.TTL)
		for _, part := range parts {
			fmt.Fprintf(b, ` "%s"`, part) // base64 and tags need no escape
		}
		if err := b.WriteByte('\n'); err != nil {
			return err
		}
	}
	return b.Flush()
}

// Load puts the zone into an etcd, many records in a transaction, and returns
// the serial of the zone.
func (s Set) Load(ctx context.Context, client *clientv3.Client, mixed bool) (serial uint32, err error) {
	if err := s.load(ctx, client, func(i int) (clientv3.Op, error) {
		value, err := s.Record(i, mixed).Marshal()
		return clientv3.OpPut(schema.RecordKey(Zone, s.Owner(i)), string(value)), err
	}); err != nil {
		return 0, err
	}
	value, err := Apex().Marshal()
	if err != nil {
		return 0, err
	}
	resp, err := client.Put(ctx, schema.ApexKey(Zone), string(value))
	if err != nil {
		return 0, err
	}
	return uint32(resp.Header.GetRevision()), nil //nolint:gosec // the serial is the revision's low 32 bits
}

// LoadSkyDNS puts the records into an etcd the way that CoreDNS's plugin etcd
// reads them.
func (s Set) LoadSkyDNS(ctx context.Context, client *clientv3.Client) error {
	return s.load(ctx, client, func(i int) (clientv3.Op, error) {
		rec := s.Record(i, false)
		value, err := json.Marshal(struct {
			Text string `json:"text"`
			TTL  uint32 `json:"ttl"`
		}{rec.Record().String(), rec.TTL})
		labels := strings.Split(s.Owner(i)+"."+Zone, ".")
		slices.Reverse(labels)
		return clientv3.OpPut("/skydns/"+strings.Join(labels, "/"), string(value)), err
	})
}

// load puts all records, several transactions at a time.
func (s Set) load(ctx context.Context, client *clientv3.Client, put func(i int) (clientv3.Op, error)) error {
	g, inGroup := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for first := 0; first < s.records && inGroup.Err() == nil; first += opsPerTxn {
		g.Go(func() error {
			var ops []clientv3.Op
			for i := first; i < min(first+opsPerTxn, s.records); i++ {
				op, err := put(i)
				if err != nil {
					return err
				}
				ops = append(ops, op)
			}
			_, err := client.Txn(inGroup).Then(ops...).Commit()
			return err
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}
