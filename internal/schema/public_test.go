package schema_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

var (
	sometime = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	equal    = cmpopts.EquateComparable(netip.Addr{})
)

// The stored forms. A change here breaks every store and every DNS node that is
// there: add fields, never change one.
var goldenRecords = []struct {
	name   string
	record schema.PublicRecord
	stored string // hexadecimal
}{
	{"empty", schema.PublicRecord{}, ""},
	{
		"rsa",
		schema.PublicRecord{KeyType: dkimrecord.RSA, PublicKey: []byte{0x30, 0x82}, TTL: 3600, UpdateTime: sometime},
		"12023082" + "28901c" + "3140f2b035f54b0600",
	},
	{
		"all flags",
		schema.PublicRecord{KeyType: dkimrecord.Ed25519, PublicKey: []byte{1, 2, 3}, Testing: true, SameDomain: true, TTL: 60, UpdateTime: sometime},
		"0801" + "1203010203" + "1801" + "2001" + "283c" + "3140f2b035f54b0600",
	},
	{
		"revoked",
		schema.PublicRecord{KeyType: dkimrecord.RSA, TTL: 86400, UpdateTime: sometime},
		"2880a305" + "3140f2b035f54b0600",
	},
}

func TestPublicRecord(t *testing.T) {
	for _, tt := range goldenRecords {
		t.Run(tt.name, func(t *testing.T) {
			b, err := tt.record.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(b); got != tt.stored {
				t.Errorf("stored as %s, want %s", got, tt.stored)
			}
			got, err := schema.UnmarshalPublicRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.record, got); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
			if got.Revoked() != (len(tt.record.PublicKey) == 0) {
				t.Errorf("Revoked() = %t", got.Revoked())
			}
		})
	}
}

func TestRecord(t *testing.T) {
	r := schema.PublicRecord{KeyType: dkimrecord.Ed25519, PublicKey: []byte{1, 2, 3}, Testing: true, SameDomain: true, TTL: 60, UpdateTime: sometime}
	if got, want := r.Record().String(), "v=DKIM1; k=ed25519; t=y:s; p=AQID"; got != want {
		t.Errorf("got record %q, want %q", got, want)
	}
	r = schema.PublicRecord{KeyType: dkimrecord.RSA}
	if got, want := r.Record().String(), "v=DKIM1; k=rsa; p="; got != want {
		t.Errorf("got record %q, want %q", got, want)
	}
}

var fullApex = schema.Apex{
	NameServers: []schema.NameServer{
		{Name: "ns1.keys.example.net", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}},
		{Name: "ns.example.org"},
	},
	Mailbox: "hostmaster.example.net", ApexTTL: 86400, Refresh: 3600, Retry: 600, Expire: 1209600, NegativeTTL: 300, RecordTTL: 3600,
	AcceptDeletionsRevision: 1 << 40, CreateTime: sometime, SerialOffset: 1 << 28,
}

const fullApexStored = "0a2e" + "0a146e73312e6b6579732e6578616d706c652e6e6574" + "1204c0000201" + "121020010db8000000000000000000000001" +
	"0a10" + "0a0e6e732e6578616d706c652e6f7267" +
	"1216686f73746d61737465722e6578616d706c652e6e6574" + "1880a305" + "20901c" + "28d804" + "3080ea49" + "38ac02" + "40901c" +
	"48808080808020" + "50c0e4c3add3fe9203" + "6500000010"

func TestApex(t *testing.T) {
	b, err := fullApex.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(b); got != fullApexStored {
		t.Errorf("stored as\n%s, want\n%s", got, fullApexStored)
	}
	got, err := schema.UnmarshalApex(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fullApex, got, equal); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

// marshal is a stored value that Marshal would not make.
func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCorrupt(t *testing.T) {
	server := &schemapb.NameServer{Name: "ns.example.org"}
	tests := []struct {
		name  string
		apex  bool
		value []byte
	}{
		{"record: truncated", false, []byte{0x12, 0x05, 1}},
		{"record: not protobuf", false, []byte("v=DKIM1")},
		{"record: unknown key type", false, marshal(t, &schemapb.PublicRecord{KeyType: 2})},
		{"record: key type of many bits", false, marshal(t, &schemapb.PublicRecord{KeyType: math.MaxUint32})},
		{"record: key too long", false, marshal(t, &schemapb.PublicRecord{PublicKey: bytes.Repeat([]byte{1}, schema.MaxPublicKeyLen+1)})},
		{"apex: empty", true, nil},
		{"apex: truncated", true, []byte{0x0a, 0x05, 1}},
		{"apex: no name server", true, marshal(t, &schemapb.Apex{Mailbox: "hostmaster.example.net"})},
		{"apex: address of 5 octets", true, marshal(t, &schemapb.Apex{NameServers: []*schemapb.NameServer{
			server, {Name: "ns1.keys.example.net", Addresses: [][]byte{{192, 0, 2, 1}, {1, 2, 3, 4, 5}}},
		}})},
		{"apex: empty address", true, marshal(t, &schemapb.Apex{NameServers: []*schemapb.NameServer{{Name: "a.example", Addresses: [][]byte{{}}}}})},
		{"apex: name not UTF-8", true, []byte{0x0a, 0x03, 0x0a, 0x01, 0xff}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got any
			var zero bool
			var err error
			if tt.apex {
				var a schema.Apex
				a, err = schema.UnmarshalApex(tt.value)
				got, zero = a, cmp.Equal(a, schema.Apex{}, equal)
			} else {
				var r schema.PublicRecord
				r, err = schema.UnmarshalPublicRecord(tt.value)
				got, zero = r, cmp.Equal(r, schema.PublicRecord{})
			}
			if !errors.Is(err, schema.ErrCorrupt) || !zero {
				t.Errorf("got %+v, %v; want nothing and %v", got, err, schema.ErrCorrupt)
			}
		})
	}
	if _, err := schema.UnmarshalPublicRecord(marshal(t, &schemapb.PublicRecord{PublicKey: bytes.Repeat([]byte{1}, schema.MaxPublicKeyLen)})); err != nil {
		t.Errorf("a key of %d octets: %v", schema.MaxPublicKeyLen, err)
	}
}

// What a later release adds does not keep this one from reading.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	later := strings.Repeat("fa07023132", 2) // field 127, "12"
	for _, tt := range goldenRecords {
		b, err := hex.DecodeString(tt.stored + later)
		if err != nil {
			t.Fatal(err)
		}
		got, err := schema.UnmarshalPublicRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.record, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestMicros(t *testing.T) {
	for _, tt := range []time.Time{{}, sometime, time.Unix(0, 1000), time.Unix(-1, 0), time.UnixMicro(math.MaxInt64 / 2)} {
		if got := schema.FromMicros(schema.Micros(tt)); !got.Equal(tt) || got.Location() != time.UTC {
			t.Errorf("%v comes back as %v", tt, got)
		}
	}
	if got := schema.FromMicros(schema.Micros(sometime.Add(999 * time.Nanosecond))); !got.Equal(sometime) {
		t.Errorf("nanoseconds come back as %v, want %v", got, sometime)
	}
}

func FuzzUnmarshalPublicRecord(f *testing.F) {
	for _, tt := range goldenRecords {
		b, err := hex.DecodeString(tt.stored)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := schema.UnmarshalPublicRecord(b)
		if err != nil {
			if !errors.Is(err, schema.ErrCorrupt) || !cmp.Equal(r, schema.PublicRecord{}) {
				t.Fatalf("got %+v, %v; want nothing and %v", r, err, schema.ErrCorrupt)
			}
			return
		}
		again, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		r2, err := schema.UnmarshalPublicRecord(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, r2, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("read, written and read again (-first +second):\n%s", diff)
		}
	})
}

func FuzzUnmarshalApex(f *testing.F) {
	b, err := fullApex.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := schema.UnmarshalApex(b)
		if err != nil {
			if !errors.Is(err, schema.ErrCorrupt) || !cmp.Equal(a, schema.Apex{}, equal) {
				t.Fatalf("got %+v, %v; want nothing and %v", a, err, schema.ErrCorrupt)
			}
			return
		}
		again, err := a.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		a2, err := schema.UnmarshalApex(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, a2, equal, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("read, written and read again (-first +second):\n%s", diff)
		}
	})
}
