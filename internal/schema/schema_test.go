package schema_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/schema"
)

func TestKeys(t *testing.T) {
	fingerprint := string(slices.Repeat([]byte{0xff}, schema.FingerprintLen))
	tests := []struct{ name, got, want string }{
		{"apex", schema.ApexKey("keys.example.net"), "/dkim/v1/pub/keys.example.net/apex"},
		{"record", schema.RecordKey("keys.example.net", "selector1-spamtrap-dk._domainkey"), "/dkim/v1/pub/keys.example.net/rr/selector1-spamtrap-dk._domainkey"},
		{"records", schema.RecordPrefix("keys.example.net"), "/dkim/v1/pub/keys.example.net/rr/"},
		{"zone", schema.ZonePrefix("keys.example.net"), "/dkim/v1/pub/keys.example.net/"},
		{"brand", schema.BrandKey("acme"), "/dkim/v1/meta/brands/acme"},
		{"brands", schema.BrandPrefix(), "/dkim/v1/meta/brands/"},
		{"domain", schema.DomainKey("acme", "spamtrap.dk"), "/dkim/v1/meta/domains/acme/spamtrap.dk"},
		{"domains", schema.DomainPrefix("acme"), "/dkim/v1/meta/domains/acme/"},
		{"all domains", schema.AllDomainsPrefix(), "/dkim/v1/meta/domains/"},
		{"label", schema.LabelKey("keys.example.net", "spamtrap-dk"), "/dkim/v1/meta/labels/keys.example.net/spamtrap-dk"},
		{"fingerprint", schema.FingerprintKey("keys.example.net", []byte(fingerprint)), "/dkim/v1/meta/fingerprints/keys.example.net/" + fingerprint},
		{"data key", schema.DataKeyKey("acme", 7), "/dkim/v1/priv/deks/acme/0000000007"},
		{"last data key", schema.DataKeyKey("acme", math.MaxUint32), "/dkim/v1/priv/deks/acme/4294967295"},
		{"data keys", schema.DataKeyPrefix("acme"), "/dkim/v1/priv/deks/acme/"},
		{"all data keys", schema.DataKeyPrefix(""), "/dkim/v1/priv/deks/"},
		{"sealed key", schema.SealedKeyKey("acme", "spamtrap.dk", "k1"), "/dkim/v1/priv/keys/acme/spamtrap.dk/k1"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
		// A DNS node reads what is under pub/, so that is where nothing else may be.
		public := strings.HasPrefix(tt.got, schema.PubPrefix)
		if want := slices.Contains([]string{"apex", "record", "records", "zone"}, tt.name); public != want {
			t.Errorf("%s: under %s: %t, want %t", tt.name, schema.PubPrefix, public, want)
		}
	}
}

func TestParsePubKey(t *testing.T) {
	tests := []struct {
		key            string
		zone, relative string
		apex, ok       bool
	}{
		{"/dkim/v1/pub/keys.example.net/apex", "keys.example.net", "", true, true},
		{"/dkim/v1/pub/keys.example.net/rr/s-a._domainkey", "keys.example.net", "s-a._domainkey", false, true},
		{"/dkim/v1/pub/keys.example.net/rr/apex", "keys.example.net", "apex", false, true},
		{"/dkim/v1/pub/keys.example.net/rr/", "", "", false, false},
		{"/dkim/v1/pub/keys.example.net/rr", "", "", false, false},
		{"/dkim/v1/pub/keys.example.net/rr/a/b", "", "", false, false},
		{"/dkim/v1/pub/keys.example.net/apex/", "", "", false, false},
		{"/dkim/v1/pub/keys.example.net/other", "", "", false, false},
		{"/dkim/v1/pub/keys.example.net/", "", "", false, false},
		{"/dkim/v1/pub/keys.example.net", "", "", false, false},
		{"/dkim/v1/pub//apex", "", "", false, false},
		{"/dkim/v1/pub/", "", "", false, false},
		{"/dkim/v1/meta/brands/acme", "", "", false, false},
		{"/dkim/v2/pub/keys.example.net/apex", "", "", false, false},
		{"", "", "", false, false},
	}
	for _, tt := range tests {
		zone, relative, apex, ok := schema.ParsePubKey(tt.key)
		if zone != tt.zone || relative != tt.relative || apex != tt.apex || ok != tt.ok {
			t.Errorf("ParsePubKey(%q) = %q, %q, %t, %t; want %q, %q, %t, %t", tt.key, zone, relative, apex, ok, tt.zone, tt.relative, tt.apex, tt.ok)
		}
	}
}

func TestParseDomainKey(t *testing.T) {
	tests := []struct {
		key, brand, domain string
		ok                 bool
	}{
		{"/dkim/v1/meta/domains/acme/spamtrap.dk", "acme", "spamtrap.dk", true},
		{"/dkim/v1/meta/domains/acme/", "", "", false},
		{"/dkim/v1/meta/domains/acme", "", "", false},
		{"/dkim/v1/meta/domains//spamtrap.dk", "", "", false},
		{"/dkim/v1/meta/domains/acme/a/b", "", "", false},
		{"/dkim/v1/meta/brands/acme", "", "", false},
		{"", "", "", false},
	}
	for _, tt := range tests {
		brand, domain, ok := schema.ParseDomainKey(tt.key)
		if brand != tt.brand || domain != tt.domain || ok != tt.ok {
			t.Errorf("ParseDomainKey(%q) = %q, %q, %t; want %q, %q, %t", tt.key, brand, domain, ok, tt.brand, tt.domain, tt.ok)
		}
	}
}

func TestParseDataKeyKey(t *testing.T) {
	tests := []struct {
		key, brand string
		n          uint32
		ok         bool
	}{
		{"/dkim/v1/priv/deks/acme/0000000007", "acme", 7, true},
		{"/dkim/v1/priv/deks/acme/4294967295", "acme", math.MaxUint32, true},
		{"/dkim/v1/priv/deks/acme/4294967296", "", 0, false},
		{"/dkim/v1/priv/deks/acme/7", "", 0, false},
		{"/dkim/v1/priv/deks/acme/+000000007", "", 0, false},
		{"/dkim/v1/priv/deks/acme/00000000x7", "", 0, false},
		{"/dkim/v1/priv/deks/acme/b/00000007", "", 0, false},
		{"/dkim/v1/priv/deks//0000000007", "", 0, false},
		{"/dkim/v1/priv/deks/acme", "", 0, false},
		{"/dkim/v1/priv/keys/acme/0000000007", "", 0, false},
	}
	for _, tt := range tests {
		brand, n, ok := schema.ParseDataKeyKey(tt.key)
		if brand != tt.brand || n != tt.n || ok != tt.ok {
			t.Errorf("ParseDataKeyKey(%q) = %q, %d, %t; want %q, %d, %t", tt.key, brand, n, ok, tt.brand, tt.n, tt.ok)
		}
	}
}

func TestSerial(t *testing.T) {
	tests := []struct {
		revision int64
		want     uint32
	}{
		{1, 1},
		{2, 2},
		{math.MaxInt32, math.MaxInt32},
		{math.MaxInt32 + 1, math.MaxInt32 + 1},
		{math.MaxUint32 - 1, math.MaxUint32 - 1},
		{math.MaxUint32, math.MaxUint32},
		{math.MaxUint32 + 1, 1}, // not 0
		{math.MaxUint32 + 2, 1},
		{math.MaxUint32 + 3, 2},
		{2 * (math.MaxUint32 + 1), 1},
		{math.MaxInt64, math.MaxUint32},
	}
	for _, tt := range tests {
		if got := schema.Serial(tt.revision); got != tt.want {
			t.Errorf("Serial(%d) = %d, want %d", tt.revision, got, tt.want)
		}
	}
	// A later revision never has an earlier serial (RFC 1982 §3.2).
	for _, middle := range []int64{5, math.MaxInt32, math.MaxUint32, 2 * math.MaxUint32} {
		for r := middle - 4; r < middle+8; r++ {
			if step := int32(schema.Serial(r+1) - schema.Serial(r)); step < 0 || step > 2 {
				t.Errorf("serial goes from %d to %d at revision %d", schema.Serial(r), schema.Serial(r+1), r)
			}
		}
	}
}

func FuzzParsePubKey(f *testing.F) {
	f.Add("/dkim/v1/pub/keys.example.net/apex")
	f.Add("/dkim/v1/pub/keys.example.net/rr/s-a._domainkey")
	f.Fuzz(func(t *testing.T, key string) {
		zone, relative, apex, ok := schema.ParsePubKey(key)
		switch {
		case !ok:
			if zone != "" || relative != "" || apex {
				t.Errorf("ParsePubKey(%q) refuses the key and returns %q, %q, %t", key, zone, relative, apex)
			}
		case apex && schema.ApexKey(zone) != key, !apex && schema.RecordKey(zone, relative) != key:
			t.Errorf("ParsePubKey(%q) = %q, %q, %t, which make another key", key, zone, relative, apex)
		}
	})
}

func FuzzParseDomainKey(f *testing.F) {
	f.Add("/dkim/v1/meta/domains/acme/spamtrap.dk")
	f.Fuzz(func(t *testing.T, key string) {
		brand, domain, ok := schema.ParseDomainKey(key)
		if ok && schema.DomainKey(brand, domain) != key || !ok && brand+domain != "" {
			t.Errorf("ParseDomainKey(%q) = %q, %q, %t, which make another key", key, brand, domain, ok)
		}
	})
}

func FuzzParseDataKeyKey(f *testing.F) {
	f.Add("/dkim/v1/priv/deks/acme/0000000007")
	f.Fuzz(func(t *testing.T, key string) {
		brand, n, ok := schema.ParseDataKeyKey(key)
		if ok && schema.DataKeyKey(brand, n) != key {
			t.Errorf("ParseDataKeyKey(%q) = %q, %d, which make another key", key, brand, n)
		}
	})
}
