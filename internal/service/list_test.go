package service_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// fill stores n domains of a brand that are like the one of acme named
// template.example, which it provisions. name gives the i-th one's name.
func (f *fixture) fill(t testing.TB, brand string, n int, name func(i int) string) {
	t.Helper()
	f.provision(t, acme+"template.example")
	value := f.fake.Dump()[schema.DomainKey("acme", "template.example")]
	var ops []clientv3.Op
	for i := range n {
		ops = append(ops, clientv3.OpPut(schema.DomainKey(brand, name(i)), value))
		if len(ops) == 100 || i == n-1 {
			must(f.fake.Txn(t.Context()).Then(ops...).Commit())(t)
			ops = nil
		}
	}
}

// list returns the names of all domains that a request finds, and the number of
// pages they came in.
func (f *fixture) list(t testing.TB, req *dkimv1.ListDomainsRequest) (found []string, pages int) {
	t.Helper()
	for more := true; more; more = req.GetPageToken() != "" {
		resp := must(f.api.ListDomains(t.Context(), req))(t)
		if n := len(resp.GetDomains()); n > 1000 || req.GetPageSize() > 0 && n > int(req.GetPageSize()) {
			t.Fatalf("page of %d domains for size %d", n, req.GetPageSize())
		}
		for _, d := range resp.GetDomains() {
			found = append(found, strings.TrimPrefix(d.GetName(), "brands/"))
		}
		pages++
		req.PageToken = resp.GetNextPageToken()
	}
	return found, pages
}

func TestListDomains(t *testing.T) {
	f := newFixture(t)
	const n = 2500
	name := func(i int) string { return fmt.Sprintf("d%04d-%d.example", i, i%10) }
	f.fill(t, "other", n, name)
	var others, sevens []string
	for i := range n {
		others = append(others, "other/domains/"+name(i))
		if i%10 == 7 {
			sevens = append(sevens, others[i])
		}
	}
	all := append([]string{"acme/domains/template.example"}, others...)
	tests := []struct {
		name   string
		req    *dkimv1.ListDomainsRequest
		want   []string
		pages  int
		filter string
	}{
		{"of a brand", &dkimv1.ListDomainsRequest{Parent: "brands/other"}, others, 25, ""},
		{"of all", &dkimv1.ListDomainsRequest{Parent: "brands/-"}, all, 26, ""},
		{"by one", &dkimv1.ListDomainsRequest{Parent: "brands/acme", PageSize: 1}, all[:1], 1, ""},
		{"by 999", &dkimv1.ListDomainsRequest{Parent: "brands/other", PageSize: 999}, others, 3, ""},
		{"by 1000", &dkimv1.ListDomainsRequest{Parent: "brands/-", PageSize: 1000}, all, 3, ""},
		{"by more than there may be", &dkimv1.ListDomainsRequest{Parent: "brands/-", PageSize: 1 << 30}, all, 3, ""},
		{"by 500", &dkimv1.ListDomainsRequest{Parent: "brands/other", PageSize: 500}, others, 5, ""},
		{"filtered", &dkimv1.ListDomainsRequest{Parent: "brands/-"}, sevens, 3, `domain = "*-7.example"`},
		{"filtered by 10", &dkimv1.ListDomainsRequest{Parent: "brands/other", PageSize: 10}, sevens, 25, `domain = "*-7.example"`},
		{"filtered by 1", &dkimv1.ListDomainsRequest{Parent: "brands/other", PageSize: 1}, sevens[:10], 10, `domain = "d00*" AND domain = "*7.example" AND key_state = PREPARED`},
		{"filtered, one found", &dkimv1.ListDomainsRequest{Parent: "brands/-"}, others[2499:], 1, `domain = "D2499-9.example"`},
		{"filtered, none found", &dkimv1.ListDomainsRequest{Parent: "brands/other"}, nil, 1, `domain = "none.example"`},
		{"filtered, all found", &dkimv1.ListDomainsRequest{Parent: "brands/other", PageSize: 1000}, others, 3, `algorithm = ED25519`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Filter = tt.filter
			got, pages := f.list(t, tt.req)
			wantEqual(t, "domains", got, tt.want)
			// The last page may be empty when the one before was full.
			if pages != tt.pages && pages != tt.pages+1 {
				t.Errorf("in %d pages, want %d", pages, tt.pages)
			}
		})
	}
}

// A filter that finds little answers in time, with pages that are not full.
func TestListDomainsLooksAtSoManyAtATime(t *testing.T) {
	f := newFixture(t)
	const n = 20500
	f.fill(t, "other", n, func(i int) string { return fmt.Sprintf("d%05d.example", i) })
	req := &dkimv1.ListDomainsRequest{Parent: "brands/other", Filter: `domain = "d20499.example"`}
	resp := must(f.api.ListDomains(t.Context(), req))(t)
	if len(resp.GetDomains()) != 0 || resp.GetNextPageToken() == "" {
		t.Errorf("first page of %d domains, token %q; want an empty one that is not the last", len(resp.GetDomains()), resp.GetNextPageToken())
	}
	got, pages := f.list(t, req)
	wantEqual(t, "domains", got, []string{"other/domains/d20499.example"})
	wantEqual(t, "pages", pages, 2)
}

func TestFilter(t *testing.T) {
	f := newFixture(t)
	f.provision(t, acme+"a-b.com")
	f.provision(t, acme+"a.b.com")
	must(f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{Name: acme + "bücher.example"}))(t)
	f.publish(t, acme+"empty.example", "s")
	f.rotate(t, acme+"a.b.com")
	const ab, hashed, books, empty = "a-b.com", "a.b.com", "xn--bcher-kva.example", "empty.example"
	tests := []struct {
		filter string
		want   []string
	}{
		{"", []string{ab, hashed, empty, books}},
		{"  ", []string{ab, hashed, empty, books}},
		{`domain = "a-b.com"`, []string{ab}},
		{`domain=a-b.com`, []string{ab}},
		{`domain = "A-B.COM"`, []string{ab}},
		{`domain = "bücher.example"`, []string{books}},
		{`domain = "xn--bcher-kva.example"`, []string{books}},
		{`domain = "*.com"`, []string{ab, hashed}},
		{`domain = *.COM`, []string{ab, hashed}},
		{`domain = "a*"`, []string{ab, hashed}},
		{`domain = "*b.*"`, []string{ab, hashed}},
		{`domain = "*"`, []string{ab, hashed, empty, books}},
		{`domain = "com*"`, nil},
		{`host_label = "a-b-com"`, []string{ab}},
		{`host_label = a-b-com-fcxgssuj`, []string{hashed}},
		{`algorithm = RSA_2048`, []string{books}},
		{`algorithm = KEY_ALGORITHM_ED25519`, []string{ab, hashed, empty}},
		{`algorithm = RSA_4096`, nil},
		{`key_state = PREPARED`, []string{ab, hashed, books}},
		{`key_state = "KEY_STATE_ACTIVE"`, []string{hashed, empty}},
		{`key_state = PREPARED AND algorithm = ED25519 AND domain = "*.com"`, []string{ab, hashed}},
		{`kind = CUSTOMER AND domain = "a.b.com"`, []string{hashed}},
		{`kind = DOMAIN_KIND_BRAND_DEFAULT`, nil},
		{`domain = "a-b.com" AND domain = "a.b.com"`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.filter, func(t *testing.T) {
			got := must(f.api.ListDomains(t.Context(), &dkimv1.ListDomainsRequest{Parent: "brands/acme", Filter: tt.filter}))(t)
			wantEqual(t, "domains", names(got.GetDomains()), tt.want)
		})
	}
}

func TestRefusedLists(t *testing.T) {
	f := newFixture(t)
	f.fill(t, "other", 20, func(i int) string { return fmt.Sprintf("d%02d.example", i) })
	type api = dkimv1.KeyManagementClient
	var all []refusal
	add := func(name string, want rejection, req *dkimv1.ListDomainsRequest) {
		if req.GetParent() == "" {
			req.Parent = "brands/other"
		}
		all = append(all, refusal{name, want, calling(api.ListDomains, req)})
	}
	for _, filter := range []string{
		"nonsense", `color = "red"`, `domain`, `domain = `, `domain = "a`, `domain != "a.example"`, `domain : "a.example"`,
		`domain = "a.example" domain = "b.example"`, `domain = "a.example" OR domain = "b.example"`, `domain = "a.example" and domain = "b.example"`,
		`domain = "a.example" AND `, `AND domain = "a.example"`, `NOT domain = "a.example"`, `(domain = "a.example")`,
		`domain = "a*.example"`, `domain = "[a]*"`, `domain = "a?*"`, `domain = "\\*"`, `domain = "bü*"`, `domain = ""`, `domain = "a_b.example"`, `domain = "co.uk"`,
		`algorithm = RSA_1024`, `algorithm = ""`, `algorithm = UNSPECIFIED`, `algorithm = rsa_2048`, `key_state = GONE`, `key_state = UNSPECIFIED`, `key_state = ""`,
		strings.Repeat(`domain = "a.example" AND `, 50) + `domain = "a.example"`, "domain = \"a.example\"\x00",
	} {
		add("filter "+filter, badArgument("INVALID_FILTER", "filter"), &dkimv1.ListDomainsRequest{Filter: filter})
	}
	add("brand that is not there", rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, &dkimv1.ListDomainsRequest{Parent: nobody})
	add("bad brand", badArgument("INVALID_BRAND", "parent"), &dkimv1.ListDomainsRequest{Parent: "brands/A"})
	add("no brand", badArgument("INVALID_NAME", "parent"), &dkimv1.ListDomainsRequest{Parent: "brands"})

	domains := must(f.api.ListDomains(t.Context(), &dkimv1.ListDomainsRequest{Parent: "brands/other", PageSize: 5}))(t).GetNextPageToken()
	filtered := must(f.api.ListDomains(t.Context(), &dkimv1.ListDomainsRequest{Parent: "brands/other", PageSize: 5, Filter: `domain = "*.example"`}))(t).GetNextPageToken()
	brands := must(f.api.ListBrands(t.Context(), &dkimv1.ListBrandsRequest{PageSize: 1}))(t).GetNextPageToken()
	madeUp := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	token := badArgument("INVALID_PAGE_TOKEN", "page_token")
	for name, tt := range map[string]struct{ parent, filter, token string }{
		"nonsense":                    {"brands/other", "", "nonsense!"},
		"cut":                         {"brands/other", "", domains[:len(domains)/2]},
		"of another brand":            {"brands/acme", "", domains},
		"of all brands":               {"brands/-", "", domains},
		"of a list without a filter":  {"brands/other", `domain = "*.example"`, domains},
		"of a list with a filter":     {"brands/other", "", filtered},
		"of another filter":           {"brands/other", `domain = "*.example" AND key_state = ACTIVE`, filtered},
		"of another method":           {"brands/other", "", brands},
		"made up, without a place":    {"brands/other", "", madeUp("1\x00domains\x00other\x00\x00")},
		"made up, of another brand":   {"brands/other", "", madeUp("1\x00domains\x00other\x00\x00a/d01.example")},
		"made up, of a longer brand":  {"brands/other", "", madeUp("1\x00domains\x00other\x00\x00other-brand/d01.example")},
		"made up, without a brand":    {"brands/other", "", madeUp("1\x00domains\x00other\x00\x00d01.example")},
		"made up, without a domain":   {"brands/other", "", madeUp("1\x00domains\x00other\x00\x00other/")},
		"made up, of another version": {"brands/other", "", madeUp("2\x00domains\x00other\x00\x00other/d01.example")},
	} {
		add("page token: "+name, token, &dkimv1.ListDomainsRequest{Parent: tt.parent, Filter: tt.filter, PageToken: tt.token})
	}
	for name, call := range map[string]func(size int32, token string) refusal{
		"zones": func(size int32, token string) refusal {
			return refusal{call: calling(api.ListZones, &dkimv1.ListZonesRequest{PageSize: size, PageToken: token})}
		},
		"brands": func(size int32, token string) refusal {
			return refusal{call: calling(api.ListBrands, &dkimv1.ListBrandsRequest{PageSize: size, PageToken: token})}
		},
		"domains": func(size int32, token string) refusal {
			return refusal{call: calling(api.ListDomains, &dkimv1.ListDomainsRequest{Parent: "brands/-", PageSize: size, PageToken: token})}
		},
		"keys": func(size int32, token string) refusal {
			return refusal{call: calling(api.ListKeys, &dkimv1.ListKeysRequest{Parent: acme + "template.example", PageSize: size, PageToken: token})}
		},
	} {
		negative, foreign := call(-1, ""), call(0, domains)
		negative.name, negative.want = name+": page size -1", badArgument("INVALID_PAGE_SIZE", "page_size")
		foreign.name, foreign.want = name+": foreign page token", token
		all = append(all, negative, foreign)
	}
	f.refuse(t, all)
}
