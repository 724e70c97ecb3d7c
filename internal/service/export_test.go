package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// export reads a zone file to its end, and the sizes of the pieces it came in.
func export(ctx context.Context, api dkimv1.KeyManagementClient, zone string) (text []byte, pieces []int, _ error) {
	stream, err := api.ExportZone(ctx, &dkimv1.ExportZoneRequest{Name: zone})
	if err != nil {
		return nil, nil, err
	}
	revision := int64(0)
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text, pieces, nil
		}
		if err != nil {
			return text, pieces, err
		}
		if revision != 0 && resp.GetRevision() != revision {
			return nil, nil, fmt.Errorf("revision %d after %d", resp.GetRevision(), revision)
		}
		if !bytes.HasSuffix(resp.GetData(), []byte("\n")) {
			return nil, nil, fmt.Errorf("a piece ends with %q", resp.GetData()[max(0, len(resp.GetData())-20):])
		}
		revision = resp.GetRevision()
		text, pieces = append(text, resp.GetData()...), append(pieces, len(resp.GetData()))
	}
}

// records parses a zone file as name servers do.
func records(t testing.TB, text []byte) []string {
	t.Helper()
	var rrs []string
	p := dns.NewZoneParser(bytes.NewReader(text), "", "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		rrs = append(rrs, rr.String())
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	return rrs
}

func TestExportZone(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	must(f.api.CreateZone(ctx, &dkimv1.CreateZoneRequest{ZoneId: "dkim.example.org", Zone: &dkimv1.Zone{
		NameServers: []*dkimv1.NameServer{{Host: "ns1.dkim.example.org", Addresses: []string{"192.0.2.1", "2001:db8::1"}}, {Host: "ns.example.com"}},
		Mailbox:     "dns@example.com", RecordTtlSeconds: 7200, NegativeTtlSeconds: 60, ApexTtlSeconds: 600, RefreshSeconds: 61, RetrySeconds: 62, ExpireSeconds: 3663,
	}}))(t)
	must(f.store.CreateBrand(ctx, keystore.Brand{Name: "org", Zone: "dkim.example.org", CreateTime: start}))(t)
	f.provision(t, spamtrap) // in another zone

	rsa := must(rsaKey(keypair.RSA4096, 0))(t).Public()
	text := dkimrecord.Record{KeyType: dkimrecord.RSA, PublicKey: rsa.Octets, Testing: true}.String()
	must(f.api.PublishKey(ctx, &dkimv1.PublishKeyRequest{
		Parent: "brands/org/domains/b.example", Selector: "large", PublicKey: text, TtlSeconds: 300, Testing: true,
	}))(t)
	small := f.publish(t, "brands/org/domains/a.example", "dotted.selector")
	revoked := must(schema.PublicRecord{KeyType: dkimrecord.Ed25519, TTL: 60}.Marshal())(t)
	must(f.fake.Txn(ctx).Then(
		clientv3.OpPut(schema.RecordKey("dkim.example.org", "gone-c-example._domainkey"), string(revoked)),
		clientv3.OpPut(schema.ApexKey("dkim.example.org"), "", clientv3.WithIgnoreValue()),
	).Commit())(t)

	z := must(f.api.GetZone(ctx, &dkimv1.GetZoneRequest{Name: "zones/dkim.example.org"}))(t)
	f.publish(t, spamtrap, "another") // a later revision that is not this zone's
	strs := must(dkimrecord.Split(text))(t)
	want := []string{
		fmt.Sprintf("dkim.example.org.\t600\tIN\tSOA\tns1.dkim.example.org. dns.example.com. %d 61 62 3663 60", z.GetRevision()),
		"dkim.example.org.\t600\tIN\tNS\tns1.dkim.example.org.",
		"dkim.example.org.\t600\tIN\tNS\tns.example.com.",
		"ns1.dkim.example.org.\t600\tIN\tA\t192.0.2.1",
		"ns1.dkim.example.org.\t600\tIN\tAAAA\t2001:db8::1",
		"dotted.selector-a-example._domainkey.dkim.example.org.\t7200\tIN\tTXT\t\"" + small.GetRecord() + "\"",
		"gone-c-example._domainkey.dkim.example.org.\t60\tIN\tTXT\t\"v=DKIM1; k=ed25519; p=\"",
		"large-b-example._domainkey.dkim.example.org.\t300\tIN\tTXT\t\"" + strings.Join(strs, "\" \"") + "\"",
	}
	got, _, err := export(ctx, f.api, "zones/dkim.example.org")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "records", records(t, got), want)
	if end := "; end of zone dkim.example.org, 3 key records\n"; !bytes.HasSuffix(got, []byte(end)) {
		t.Errorf("the file does not end with %q", end)
	}

	f.refused(t, rejection{codes.NotFound, "ZONE_NOT_FOUND", ""}, func() error { _, _, err := export(ctx, f.api, "zones/none.example"); return err })
	f.refused(t, rejection{codes.InvalidArgument, "INVALID_NAME", "name"}, func() error { _, _, err := export(ctx, f.api, "brands/acme"); return err })
	f.refused(t, rejection{codes.InvalidArgument, "INVALID_ZONE", "name"}, func() error { _, _, err := export(ctx, f.api, "zones/a_b"); return err })
}

// fillRecords stores n records of the zone keys.example.net and returns their names.
func (f *fixture) fillRecords(t *testing.T, n int) []string {
	t.Helper()
	octets := must(rsaKey(keypair.RSA2048, 0))(t).Public().Octets
	value := string(must(schema.PublicRecord{PublicKey: octets, TTL: 3600}.Marshal())(t))
	var names []string
	var ops []clientv3.Op
	for i := range n {
		name := fmt.Sprintf("s1-d%05d-example._domainkey", i)
		names = append(names, name)
		ops = append(ops, clientv3.OpPut(schema.RecordKey("keys.example.net", name), value))
		if len(ops) == 100 || i == n-1 {
			must(f.fake.Txn(t.Context()).Then(ops...).Commit())(t)
			ops = nil
		}
	}
	return names
}

// An export of many pages is of one revision, whatever happens meanwhile, and
// comes in pieces of a bounded size.
func TestExportZoneIsOfOneRevision(t *testing.T) {
	f := newFixture(t)
	const n = 2300
	want := f.fillRecords(t, n)
	stream := must(f.api.ExportZone(t.Context(), &dkimv1.ExportZoneRequest{Name: "zones/keys.example.net"}))(t)
	first := must(stream.Recv())(t)
	must(f.fake.Delete(t.Context(), schema.RecordKey("keys.example.net", want[n-1])))(t)
	f.publish(t, spamtrap, "zzz")
	got := first.GetData()
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if size := len(resp.GetData()); size > 68<<10 {
			t.Errorf("a piece of %d octets", size)
		}
		got = append(got, resp.GetData()...)
	}
	var names []string
	for _, rr := range records(t, got)[2:] {
		name, _, _ := strings.Cut(rr, ".keys.example.net.\t")
		names = append(names, name)
	}
	if !slices.Equal(names, want) {
		t.Errorf("%d records, want the %d that were there when it began", len(names), len(want))
	}
}

func TestExportZoneExpires(t *testing.T) {
	f := newFixture(t)
	f.fillRecords(t, 9000) // more than the connection takes before the reader reads
	ctx := t.Context()
	stream := must(f.api.ExportZone(ctx, &dkimv1.ExportZoneRequest{Name: "zones/keys.example.net"}))(t)
	must(stream.Recv())(t)
	must(f.fake.Put(ctx, schema.Root+"later", ""))(t)
	must(f.fake.Compact(ctx, must(f.store.Revision(ctx))(t)))(t)
	f.refused(t, rejection{codes.Aborted, "EXPORT_EXPIRED", ""}, func() error {
		for {
			if _, err := stream.Recv(); err != nil {
				return err
			}
		}
	})
}
