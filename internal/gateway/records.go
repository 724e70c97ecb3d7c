package gateway

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

const (
	recordsPrefix = "/v1/domains/"
	recordsName   = "dns_records"
	domainkey     = "._domainkey"
)

// dnsRecords publishes DKIM TXT values that were made elsewhere, as systems do
// that write DNS records: {domain}/dns_records[/{record}].
type dnsRecords struct {
	api     dkimv1.KeyManagementClient
	callers dkimv1.CallersClient
}

// dnsRecord is a TXT record at a name in the customer's domain. It is served in
// the provider's zone; the CNAME leads there.
type dnsRecord struct {
	ID     string     `json:"id"` // of its key
	Brand  string     `json:"brand"`
	Domain string     `json:"domain"`
	Type   string     `json:"type"`
	Name   string     `json:"name"`
	Value  string     `json:"value"`
	TTL    int32      `json:"ttl"`
	CNAME  recordLink `json:"cname"`
}

// recordLink is the CNAME that the customer adds.
type recordLink struct {
	Name   string `json:"name"`
	Target string `json:"target"`
}

func dnsRecordOf(k *dkimv1.Key) dnsRecord {
	brand, domain := splitDomainName(k.GetName())
	name := k.GetSelector() + domainkey
	return dnsRecord{
		ID: lastPart(k.GetName()), Brand: brand, Domain: domain,
		Type: "TXT", Name: name, Value: k.GetRecord(), TTL: k.GetTtlSeconds(),
		CNAME: recordLink{Name: name + "." + domain, Target: k.GetOwnerName()},
	}
}

func (d dnsRecords) serve(w http.ResponseWriter, r *http.Request, segments []string) {
	if len(segments) < 2 || len(segments) > 3 || segments[1] != recordsName {
		writeError(w, nothingHere())
		return
	}
	if refuseQuery(w, r, "brand", "etag") {
		return
	}
	domain := segments[0]
	switch {
	case len(segments) == 2 && r.Method == http.MethodPost:
		d.create(w, r, domain)
	case len(segments) == 2 && r.Method == http.MethodGet:
		d.list(w, r, domain)
	case len(segments) == 3 && r.Method == http.MethodGet:
		d.get(w, r, domain, segments[2])
	case len(segments) == 3 && r.Method == http.MethodDelete:
		d.remove(w, r, domain, segments[2])
	case len(segments) == 2:
		writeError(w, notAllowed(r, http.MethodGet, http.MethodPost))
	default:
		writeError(w, notAllowed(r, http.MethodGet, http.MethodDelete))
	}
}

// parent is the resource name of the domain: in the brand that the request names,
// or else in that of the caller.
func (d dnsRecords) parent(r *http.Request, domain, brand string) (string, error) {
	query := r.URL.Query().Get("brand")
	if brand != "" && query != "" && brand != query {
		return "", refuse(codes.InvalidArgument, "INVALID_BRAND", "brand: the query names another than the body")
	}
	if brand = cmp.Or(brand, query); brand != "" {
		return domainName(brand, domain), nil
	}
	caller, err := d.callers.GetCaller(r.Context(), &dkimv1.GetCallerRequest{})
	if err != nil {
		return "", err
	}
	if caller.GetBrand() != "" {
		return domainName(lastPart(caller.GetBrand()), domain), nil
	}
	return "", refuse(codes.InvalidArgument, "BRAND_NEEDED", "brand: name it in the query, since the caller has no brand of its own")
}

func (d dnsRecords) create(w http.ResponseWriter, r *http.Request, domain string) {
	var brand, kind, name, value string
	req := &dkimv1.PublishKeyRequest{}
	err := readFields(r, map[string]any{"brand": &brand, "type": &kind, "name": &name, "value": &value, "ttl": &req.TtlSeconds})
	if err == nil {
		req.Selector, err = selectorOf(kind, name, domain)
	}
	if err == nil {
		req.PublicKey = value
		req.Testing, err = checkValue(value)
	}
	if err == nil {
		req.Parent, err = d.parent(r, domain, brand)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	var answer callInfo
	k, err := d.api.PublishKey(r.Context(), req, answer.options()...)
	if err != nil {
		answer.fail(w, err)
		return
	}
	answer.setHeader(w)
	writeJSON(w, http.StatusCreated, dnsRecordOf(k))
}

// selectorOf is the selector in the name of a record, which is relative to the
// domain or ends with it.
func selectorOf(kind, name, domain string) (string, error) {
	if kind != "TXT" {
		return "", refuse(codes.InvalidArgument, "INVALID_TYPE", fmt.Sprintf("type: only TXT is taken, not %.20q", kind))
	}
	selector, ok := strings.CutSuffix(strings.TrimSuffix(name, "."+domain), domainkey)
	if !ok || selector == "" {
		return "", refuse(codes.InvalidArgument, "INVALID_RECORD_NAME", fmt.Sprintf("name: %.100q is not of the form selector._domainkey", name))
	}
	return selector, nil
}

// checkValue refuses a value that would not be served as it is given.
func checkValue(value string) (testing bool, err error) {
	invalid := func(why string) error { return refuse(codes.InvalidArgument, "INVALID_RECORD", "value: "+why) }
	if !strings.HasPrefix(value, "v=DKIM1") {
		return false, invalid("it does not begin with v=DKIM1")
	}
	record, err := dkimrecord.Parse(value)
	switch {
	case err != nil:
		return false, invalid(err.Error())
	case record.Revoked():
		return false, invalid("p= is empty; delete the record instead")
	case record.SameDomain || record.HashAlgorithms != nil || record.ServiceTypes != nil || record.Notes != "":
		return false, invalid("it has h=, s=, n= or t=s, which are not published; leave them out")
	}
	return record.Testing, nil
}

// list answers with the records that were published, not those of keys that the
// service rotates.
func (d dnsRecords) list(w http.ResponseWriter, r *http.Request, domain string) {
	parent, err := d.parent(r, domain, "")
	if err != nil {
		writeError(w, err)
		return
	}
	var answer callInfo
	doc := struct {
		Records []dnsRecord `json:"dns_records"`
	}{[]dnsRecord{}}
	for req := (&dkimv1.ListKeysRequest{Parent: parent, PageSize: listPage}); ; {
		page, err := d.api.ListKeys(r.Context(), req, answer.options()...)
		if err != nil {
			answer.fail(w, domainFailure(err))
			return
		}
		for _, k := range page.GetKeys() {
			if published(k) {
				doc.Records = append(doc.Records, dnsRecordOf(k))
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	answer.setHeader(w)
	writeJSON(w, http.StatusOK, doc)
}

// published reports whether a key is one that this face shows.
func published(k *dkimv1.Key) bool {
	return k.GetOwnerName() != "" && slices.Contains([]dkimv1.KeyCustody{
		dkimv1.KeyCustody_KEY_CUSTODY_PUBLIC_ONLY, dkimv1.KeyCustody_KEY_CUSTODY_SIGNER,
	}, k.GetCustody())
}

func (d dnsRecords) get(w http.ResponseWriter, r *http.Request, domain, id string) {
	parent, err := d.parent(r, domain, "")
	if err != nil {
		writeError(w, err)
		return
	}
	var answer callInfo
	k, err := d.api.GetKey(r.Context(), &dkimv1.GetKeyRequest{Name: parent + "/keys/" + id}, answer.options()...)
	if err != nil {
		answer.fail(w, recordFailure(err))
		return
	}
	if !published(k) {
		writeError(w, recordNotFound())
		return
	}
	answer.setHeader(w)
	writeJSON(w, http.StatusOK, dnsRecordOf(k))
}

func (d dnsRecords) remove(w http.ResponseWriter, r *http.Request, domain, id string) {
	parent, err := d.parent(r, domain, "")
	if err != nil {
		writeError(w, err)
		return
	}
	var answer callInfo
	_, err = d.api.DeleteKey(r.Context(), &dkimv1.DeleteKeyRequest{
		Name: parent + "/keys/" + id, Etag: r.URL.Query().Get("etag"),
	}, answer.options()...)
	if err != nil {
		answer.fail(w, recordFailure(err))
		return
	}
	answer.setHeader(w)
	w.WriteHeader(http.StatusNoContent)
}

func recordNotFound() error {
	return refuse(codes.NotFound, "KEY_NOT_FOUND", "Record not found")
}

func recordFailure(err error) error {
	if refusal.Reason(err) == "KEY_NOT_FOUND" {
		return recordNotFound()
	}
	return domainFailure(err)
}
