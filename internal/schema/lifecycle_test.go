package schema_test

import (
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/schema"
)

func TestLifecycleKeys(t *testing.T) {
	at := time.Unix(1_772_366_400, 999)
	tests := []struct{ name, got, want string }{
		{"status", schema.StatusKey("acme", "spamtrap.dk"), "/dkim/v1/meta/status/acme/spamtrap.dk"},
		{"all statuses", schema.AllStatusPrefix(), "/dkim/v1/meta/status/"},
		{"due", schema.DueKey(at, "acme", "spamtrap.dk"), "/dkim/v1/meta/due/1772366400/acme/spamtrap.dk"},
		{"due before 1970", schema.DueKey(time.Unix(-1, 0), "acme", "spamtrap.dk"), "/dkim/v1/meta/due/0000000000/acme/spamtrap.dk"},
		{"due never", schema.DueKey(time.Unix(1<<40, 0), "acme", "spamtrap.dk"), "/dkim/v1/meta/due/9999999999/acme/spamtrap.dk"},
		{"due at", schema.DueTimePrefix(at), "/dkim/v1/meta/due/1772366400/"},
		{"due index", schema.DuePrefix(), "/dkim/v1/meta/due/"},
		{"history", schema.HistoryKey("acme", "spamtrap.dk", 3), "/dkim/v1/meta/history/acme/spamtrap.dk/3"},
		{"signer", schema.SignerKey("mta1"), "/dkim/v1/meta/signers/mta1"},
		{"signers", schema.SignerPrefix(), "/dkim/v1/meta/signers/"},
		{"report", schema.ReportKey("acme", "spamtrap.dk", "mta1"), "/dkim/v1/meta/reports/acme/spamtrap.dk/mta1"},
		{"disclosed", schema.DisclosedKey("acme", "spamtrap.dk", "k1"), "/dkim/v1/meta/disclosed/acme/spamtrap.dk/k1"},
		{"retained", schema.RetainedKey("acme", "spamtrap.dk", "k1"), "/dkim/v1/priv/retained/acme/spamtrap.dk/k1"},
		{"all retained", schema.RetainedPrefix(""), "/dkim/v1/priv/retained/"},
		{"leader", schema.LeaderPrefix(), "/dkim/v1/meta/leader"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
		if strings.HasPrefix(tt.got, schema.PubPrefix) {
			t.Errorf("%s is where DNS nodes read", tt.name)
		}
	}
	// The order of statuses is that of domains, which a sweep goes by.
	if a, b := schema.StatusKey("ab", "z.dk"), schema.StatusKey("ab-c", "a.dk"); (a < b) != (schema.DomainKey("ab", "z.dk") < schema.DomainKey("ab-c", "a.dk")) {
		t.Error("statuses and domains are in different order")
	}
}

func TestParseLifecycleKeys(t *testing.T) {
	for _, key := range []string{
		"/dkim/v1/meta/due/1772366400/acme/spamtrap.dk/x", "/dkim/v1/meta/due/1772366400/acme", "/dkim/v1/meta/due/1772366400//spamtrap.dk",
		"/dkim/v1/meta/due/177236640/acme/spamtrap.dk", "/dkim/v1/meta/due/+772366400/acme/spamtrap.dk", "/dkim/v1/meta/due/17723664000/acme/a.dk",
		"/dkim/v1/meta/status/acme/spamtrap.dk", "",
	} {
		if at, b, d, ok := schema.ParseDueKey(key); ok || b+d != "" || !at.IsZero() {
			t.Errorf("ParseDueKey(%q) = %s, %q, %q, %t", key, at, b, d, ok)
		}
	}
	at, brand, domain, ok := schema.ParseDueKey("/dkim/v1/meta/due/1772366400/acme/spamtrap.dk")
	if !ok || !at.Equal(time.Unix(1_772_366_400, 0)) || brand != "acme" || domain != "spamtrap.dk" {
		t.Errorf("ParseDueKey = %s, %q, %q, %t", at, brand, domain, ok)
	}
	for _, key := range []string{"/dkim/v1/priv/retained/acme/spamtrap.dk", "/dkim/v1/priv/retained/acme/spamtrap.dk/", "/dkim/v1/priv/retained/acme/a/b/c", "/dkim/v1/priv/keys/acme/a.dk/k", ""} {
		if b, d, k, found := schema.ParseRetainedKey(key); found || b+d+k != "" {
			t.Errorf("ParseRetainedKey(%q) = %q, %q, %q, %t", key, b, d, k, found)
		}
	}
	brand, domain, id, ok := schema.ParseRetainedKey("/dkim/v1/priv/retained/acme/spamtrap.dk/k1")
	if !ok || brand != "acme" || domain != "spamtrap.dk" || id != "k1" {
		t.Errorf("ParseRetainedKey = %q, %q, %q, %t", brand, domain, id, ok)
	}
	if brand, domain, ok = schema.ParseStatusKey("/dkim/v1/meta/status/acme/spamtrap.dk"); !ok || brand != "acme" || domain != "spamtrap.dk" {
		t.Errorf("ParseStatusKey = %q, %q, %t", brand, domain, ok)
	}
	if _, _, ok := schema.ParseStatusKey("/dkim/v1/meta/domains/acme/spamtrap.dk"); ok {
		t.Error("ParseStatusKey takes a domain's key")
	}
	if !schema.FromSeconds(schema.Seconds(time.Time{})).IsZero() || !schema.FromSeconds(schema.Seconds(time.Unix(5, 9))).Equal(time.Unix(5, 0)) {
		t.Error("Seconds and FromSeconds are no inverses")
	}
}
