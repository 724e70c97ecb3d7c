package keystore_test

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// The stored forms of what surrounds a domain's keys: status, due index, events,
// signers and reports. See TestStoredForm.
func TestStoredFormOfLife(t *testing.T) {
	at := func(second int) time.Time { return time.Date(2026, 3, 1, 12, 0, second, 0, time.UTC) } // 1772366400
	fake := keystoretest.NewFake()
	s := keystore.New(fake, time.Minute)
	if _, err := s.CreateZone(t.Context(), keystore.Zone{Name: zone, Apex: schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}}}); err != nil {
		t.Fatal(err)
	}
	hour := time.Hour
	brand := keystore.Brand{
		Name: "acme", Zone: zone, Mode: rotation.ModeBrandShared, Policy: rotation.Override{Lead: &hour},
		Disclosure: keystore.Disclosure{Enabled: true, Lag: hour},
	}
	if _, err := s.CreateBrand(t.Context(), brand); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), keystore.Change{
		Domain: keystore.Domain{
			Brand: "acme", Name: "a.dk", Zone: zone, UpdateTime: at(0), RotateRequested: at(0),
			Selectors: []keystore.Selector{{Selector: "selector1", Algorithm: keypair.Ed25519}},
		},
		Actor: "alice",
		Events: []keystore.Event{
			{Action: "CREATED"},
			{Time: at(-3), Actor: "controller", Action: "ODD", KeyID: "k1", Selector: "s1", Algorithm: keypair.RSA2048, From: rotation.Prepared, To: rotation.Active, Reason: "FAILOVER"},
		},
		Status: &keystore.Status{
			Aliases:    map[dnsname.Selector]rotation.Observation{"selector1": {Finding: rotation.Proven, Since: at(-9), CheckTime: at(-1)}},
			Served:     map[string]rotation.Observation{"k1": {Finding: rotation.Contradicted, CheckTime: at(-2), DenyTime: at(-5), Reason: "MISSING"}},
			Conditions: []rotation.Condition{{Group: keypair.Ed25519, Type: rotation.ConditionSigning, Reason: "R", Message: "M", Since: at(-4)}},
		},
		Due: at(60),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutSigner(t.Context(), keystore.Signer{ID: "mta1", Brand: "acme", Description: "d", RegisterTime: time.UnixMicro(1), LeaseExpiry: time.UnixMicro(2)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutReports(t.Context(), []keystore.Report{{Signer: "mta1", Brand: "acme", Domain: "a.dk", Time: at(0), Holds: map[string]time.Time{"k1": at(-1)}}}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/dkim/v1/meta/brands/acme": "0a106b6579732e6578616d706c652e6e6574" + "2002" + "2a062080c8ceb40d" + "3001" + "3880c8ceb40d",
		"/dkim/v1/meta/domains/acme/a.dk": "0a106b6579732e6578616d706c652e6e6574" + "1204612d646b" + "2080a0bcadd3fe9203" + "2a0d0a0973656c6563746f72311004" +
			"4880a0bcadd3fe9203" + "522e" + "08c0d490cd06" + "1205616c696365" + "12034f4444" + "12026b31" + "12027331" +
			"1a12" + "010417000000000000" + "040506080a010a3100",
		"/dkim/v1/meta/due/1772366460/acme/a.dk": "",
		"/dkim/v1/meta/status/acme/a.dk": "08fcd490cd06" + "10bfd490cd06" + "1a026b31" + "1a0152" + "1a014d" +
			"2206" + "070109010000" + "2a06" + "020200020557" + "3206" + "040100040604",
		"/dkim/v1/meta/signers/mta1":           "0a0461636d65" + "120164" + "1801" + "2002",
		"/dkim/v1/meta/reports/acme/a.dk/mta1": "08c0d490cd06" + "12026b31" + "1a03010102",
	}
	got := make(map[string]string)
	for key, value := range fake.Dump() {
		if !strings.HasPrefix(key, schema.PubPrefix) && !strings.HasPrefix(key, schema.LabelPrefix(string(zone))) {
			got[key] = hex.EncodeToString([]byte(value))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
}
