package keystore_test

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// All that is stored for one domain with one key, in hexadecimal, and what its
// deletion leaves. A change here breaks every store that is there: add fields,
// never change one.
func TestStoredForm(t *testing.T) {
	at := func(second int) time.Time { return time.Date(2026, 3, 1, 12, 0, second, 123456000, time.UTC) }
	fake := keystoretest.NewFake()
	s := keystore.New(fake, time.Minute)
	if _, err := s.CreateZone(t.Context(), keystore.Zone{Name: zone, Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.example.org"}},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateBrand(t.Context(), keystore.Brand{Name: "acme", Zone: zone, DisplayName: "Acme", CreateTime: at(0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateDataKey(t.Context(), "acme", 7, []byte("wrapped"), 0); err != nil {
		t.Fatal(err)
	}
	key := keystore.Key{
		Key: rotation.Key{
			ID: "k1", Selector: "s1", Algorithm: keypair.Ed25519, State: rotation.Revoked, Custody: rotation.Signer,
			PrepareTime: at(1), ActivateTime: at(2), RetireTime: at(3), RevokeTime: at(4), TTL: 3600,
		},
		Testing: true, Fingerprint: [16]byte{0xf0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff},
	}
	domain, err := s.Apply(t.Context(), keystore.Change{
		Domain: keystore.Domain{
			Brand: "acme", Name: "spamtrap.dk", Zone: zone, CreateTime: at(1), UpdateTime: at(2),
			Selectors: []keystore.Selector{{Selector: "s1", Algorithm: keypair.Ed25519}, {Selector: "s2", Algorithm: keypair.RSA2048}},
			Keys:      []keystore.Key{key},
		},
		Publish: []keystore.Publication{{
			Key: key, Record: schema.PublicRecord{KeyType: dkimrecord.Ed25519, Testing: true, TTL: 3600}, Sealed: []byte("sealed"), New: true,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	apex := "0a110a0f6e73312e6578616d706c652e6f7267"
	brand := "0a106b6579732e6578616d706c652e6e6574" + "120441636d65" + "18c0e4c3add3fe9203"
	wrapped := hex.EncodeToString([]byte("wrapped"))
	want := map[string]string{
		"/dkim/v1/pub/keys.example.net/apex":                         apex,
		"/dkim/v1/pub/keys.example.net/rr/s1-spamtrap-dk._domainkey": "0801" + "1801" + "28901c",
		"/dkim/v1/meta/brands/acme":                                  brand,
		"/dkim/v1/meta/domains/acme/spamtrap.dk": "0a106b6579732e6578616d706c652e6e6574" + "120b7370616d747261702d646b" +
			"1880e980aed3fe9203" + "20c0edbdaed3fe9203" + "2a060a0273311004" + "2a060a0273321001" +
			"3249" + "0a026b31" + "12027331" + "1804" + "2004" + "2802" + "30901c" + "3a10f00102030405060708090a0b0c0d0eff" +
			"4080e980aed3fe9203" + "48c0edbdaed3fe9203" + "5080f2faaed3fe9203" + "58c0f6b7afd3fe9203" + "6001",
		"/dkim/v1/meta/due/1772366402/acme/spamtrap.dk":                                                                "",
		"/dkim/v1/meta/labels/keys.example.net/spamtrap-dk":                                                            "0a0461636d65" + "120b7370616d747261702e646b",
		"/dkim/v1/meta/fingerprints/keys.example.net/\xf0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\xff": hex.EncodeToString([]byte("s1.spamtrap.dk")),
		"/dkim/v1/priv/deks/acme/0000000007":                                                                           wrapped,
		"/dkim/v1/priv/keys/acme/spamtrap.dk/k1":                                                                       hex.EncodeToString([]byte("sealed")),
	}
	if diff := cmp.Diff(want, hexDump(fake)); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}

	if _, err := s.DeleteDomain(t.Context(), domain, at(5)); err != nil {
		t.Fatal(err)
	}
	want = map[string]string{
		"/dkim/v1/pub/keys.example.net/apex":                apex,
		"/dkim/v1/meta/brands/acme":                         brand,
		"/dkim/v1/meta/labels/keys.example.net/spamtrap-dk": "0a0461636d65" + "120b7370616d747261702e646b" + "1880fbf4afd3fe9203",
		"/dkim/v1/priv/deks/acme/0000000007":                wrapped,
	}
	if diff := cmp.Diff(want, hexDump(fake)); diff != "" {
		t.Errorf("left after the deletion (-want +got):\n%s", diff)
	}
}

func hexDump(fake *keystoretest.Fake) map[string]string {
	dump := fake.Dump()
	for key, value := range dump {
		dump[key] = hex.EncodeToString([]byte(value))
	}
	return dump
}
