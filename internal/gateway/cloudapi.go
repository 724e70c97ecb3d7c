package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

const (
	cloudPrefix = "/cloudapi/v2/mail/dkim/"
	// listPage is how many domains of a list are read at a time.
	listPage = 500

	noEntries      = "No DKIM entries found"
	noDomain       = "Domain not found"
	noSuchSelector = "Selector not found"
)

// cloudAPI is the provisioning interface of mailbox providers' systems:
// {brand}[/{domain}[/{selector}]].
type cloudAPI struct{ api dkimv1.KeyManagementClient }

func (c cloudAPI) serve(w http.ResponseWriter, r *http.Request, segments []string) {
	switch len(segments) {
	case 1:
		if r.Method != http.MethodGet {
			writeError(w, notAllowed(r, http.MethodGet))
			return
		}
		c.list(w, r, segments[0])
	case 2:
		c.domain(w, r, segments[0], segments[1])
	case 3:
		switch {
		case r.Method == http.MethodGet:
			c.selector(w, r, segments[0], segments[1], segments[2])
		case r.Method == http.MethodPost && segments[2] == "rotate":
			c.rotate(w, r, segments[0], segments[1])
		default:
			writeError(w, notAllowed(r, http.MethodGet))
		}
	default:
		writeError(w, nothingHere())
	}
}

// cloudDomain is a domain with its selectors.
type cloudDomain struct {
	Brand    string `json:"brand"`
	Domain   string `json:"domain"`
	Unicode  string `json:"unicode_domain,omitempty"` // if it is another
	Revision int64  `json:"revision"`
	// RotationTime is when the next rotation is, as far as is known.
	RotationTime string          `json:"next_rotation_time,omitempty"`
	Selectors    []cloudSelector `json:"selectors"`
}

// cloudSelector is a selector and what is known of the key in it.
type cloudSelector struct {
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm,omitempty"`
	State     string `json:"state,omitempty"` // of its key; empty between two keys
	// PrivateKey says that the service holds the private half.
	PrivateKey bool         `json:"private_key_exists"`
	Key        string       `json:"key,omitempty"`    // its id
	Record     *cloudRecord `json:"record,omitempty"` // in the answer about one selector only
	CNAME      *cloudCNAME  `json:"cname,omitempty"`
}

// cloudRecord is what DNS serves.
type cloudRecord struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value string `json:"value"`
	TTL   int32  `json:"ttl"`
	// Seen says that the name servers were seen to serve it at the last look.
	Seen bool `json:"seen"`
}

// cloudCNAME is what the customer adds.
type cloudCNAME struct {
	Name   string `json:"name"`
	Target string `json:"target"`
	// Seen says that it was there at the last look; CheckTime when that was, and
	// Finding what was there otherwise.
	Seen      bool   `json:"seen"`
	Finding   string `json:"finding,omitempty"`
	CheckTime string `json:"check_time,omitempty"`
}

func cloudDomainOf(d *dkimv1.Domain) cloudDomain {
	brand, name := splitDomainName(d.GetName())
	doc := cloudDomain{Brand: brand, Domain: name, Revision: d.GetRevision(), Selectors: []cloudSelector{}}
	if d.GetUnicodeDomain() != name {
		doc.Unicode = d.GetUnicodeDomain()
	}
	doc.RotationTime = rfc3339(d.GetNextRotationTime())
	for _, s := range d.GetSelectors() {
		doc.Selectors = append(doc.Selectors, cloudSelectorOf(s))
	}
	return doc
}

func cloudSelectorOf(s *dkimv1.Selector) cloudSelector {
	doc := cloudSelector{Selector: s.GetSelector(), Algorithm: algorithmWord(s.GetAlgorithm())}
	if s.GetKey() != "" {
		doc.State, doc.Key = stateWord(s.GetKeyState()), lastPart(s.GetKey())
		doc.PrivateKey = s.GetCustody() == dkimv1.KeyCustody_KEY_CUSTODY_SERVICE && s.GetKeyState() != dkimv1.KeyState_KEY_STATE_DESTROYED
	}
	if s.GetCnameOwner() != "" {
		doc.CNAME = &cloudCNAME{Name: s.GetCnameOwner(), Target: s.GetCnameTarget()}
		if check := s.GetCnameCheck(); check != nil {
			doc.CNAME.Seen = proven(check)
			doc.CNAME.CheckTime = rfc3339(check.GetCheckTime())
			if !doc.CNAME.Seen {
				doc.CNAME.Finding = check.GetReason()
			}
		}
	}
	return doc
}

// list sends all domains of a brand, however many, as one array.
func (c cloudAPI) list(w http.ResponseWriter, r *http.Request, brand string) {
	if refuseQuery(w, r) {
		return
	}
	if brand == "-" { // which means all of them to the API
		writeError(w, refuse(codes.InvalidArgument, "INVALID_BRAND", "brand: name one"))
		return
	}
	req := &dkimv1.ListDomainsRequest{Parent: "brands/" + brand, PageSize: listPage, Filter: "kind = CUSTOMER"}
	begun := false
	for {
		var answer callInfo
		page, err := c.api.ListDomains(r.Context(), req, answer.options()...)
		if err != nil {
			if begun {
				panic(http.ErrAbortHandler) // half a list must not look like a whole one
			}
			if refusal.Reason(err) == "BRAND_NOT_FOUND" {
				err = withMessage(err, noEntries)
			}
			answer.fail(w, err)
			return
		}
		for _, d := range page.GetDomains() {
			entry, err := json.Marshal(cloudDomainOf(d))
			if err != nil {
				panic(err)
			}
			between := ",\n"
			if !begun {
				begun, between = true, "["
				answer.setHeader(w)
				w.Header().Set("Content-Type", jsonType)
			}
			if _, err := fmt.Fprintf(w, "%s%s", between, entry); err != nil {
				return // the caller has gone
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if !begun {
		writeError(w, refuse(codes.NotFound, "NO_ENTRIES", noEntries))
		return
	}
	fmt.Fprintln(w, "]")
}

func (c cloudAPI) domain(w http.ResponseWriter, r *http.Request, brand, domain string) {
	name := domainName(brand, domain)
	var answer callInfo
	var d *dkimv1.Domain
	var err error
	if r.Method != http.MethodDelete && refuseQuery(w, r) {
		return
	}
	switch r.Method {
	case http.MethodGet:
		d, err = c.api.GetDomain(r.Context(), &dkimv1.GetDomainRequest{Name: name}, answer.options()...)
	case http.MethodPut:
		req, invalid := provisionRequest(r, name)
		if invalid != nil {
			writeError(w, invalid)
			return
		}
		d, err = c.api.ProvisionDomain(r.Context(), req, answer.options()...)
	case http.MethodDelete:
		c.remove(w, r, name)
		return
	default:
		writeError(w, notAllowed(r, http.MethodGet, http.MethodPut, http.MethodDelete))
		return
	}
	if err != nil {
		answer.fail(w, domainFailure(err))
		return
	}
	answer.setHeader(w)
	writeJSON(w, http.StatusOK, cloudDomainOf(d))
}

// provisionRequest reads the body of a PUT, all of which is optional:
//
//	{"algorithm": "rsa2048", "selectors": ["selector1", {"selector": "ed1", "algorithm": "ed25519"}], "test_mode": true}
func provisionRequest(r *http.Request, name string) (*dkimv1.ProvisionDomainRequest, error) {
	var algorithm string
	var selectors []json.RawMessage
	req := &dkimv1.ProvisionDomainRequest{Name: name}
	err := readFields(r, map[string]any{"algorithm": &algorithm, "selectors": &selectors, "test_mode": &req.Testing})
	if err != nil {
		return nil, err
	}
	if req.Algorithm, err = parseAlgorithm("algorithm", algorithm); err != nil {
		return nil, err
	}
	for i, raw := range selectors {
		field := fmt.Sprintf("selectors[%d]", i)
		spec := &dkimv1.SelectorSpec{}
		if err := json.Unmarshal(raw, &spec.Selector); err != nil {
			var own string
			if err := readObject(field, raw, map[string]any{"selector": &spec.Selector, "algorithm": &own}); err != nil {
				return nil, err
			}
			if spec.Algorithm, err = parseAlgorithm(field+".algorithm", own); err != nil {
				return nil, err
			}
		}
		req.Selectors = append(req.Selectors, spec)
	}
	return req, nil
}

func (c cloudAPI) rotate(w http.ResponseWriter, r *http.Request, brand, domain string) {
	if refuseQuery(w, r) {
		return
	}
	req := &dkimv1.RotateDomainRequest{Name: domainName(brand, domain)}
	if err := readFields(r, map[string]any{"when_ready": &req.WhenReady}); err != nil {
		writeError(w, err)
		return
	}
	var answer callInfo
	d, err := c.api.RotateDomain(r.Context(), req, answer.options()...)
	if err != nil {
		answer.fail(w, domainFailure(err))
		return
	}
	answer.setHeader(w)
	writeJSON(w, http.StatusOK, cloudDomainOf(d))
}

func (c cloudAPI) remove(w http.ResponseWriter, r *http.Request, name string) {
	req := &dkimv1.DeleteDomainRequest{Name: name, Etag: r.URL.Query().Get("etag")}
	if refuseQuery(w, r, "etag") {
		return
	}
	var answer callInfo
	d, err := c.api.DeleteDomain(r.Context(), req, answer.options()...)
	if err != nil {
		answer.fail(w, domainFailure(err))
		return
	}
	brand, domain := splitDomainName(d.GetName())
	answer.setHeader(w)
	writeJSON(w, http.StatusOK, struct {
		Brand    string   `json:"brand"`
		Domain   string   `json:"domain"`
		Revision int64    `json:"revision"`
		Deleted  string   `json:"delete_time"`
		Dangling []string `json:"dangling_cnames,omitempty"`
	}{brand, domain, d.GetRevision(), rfc3339(d.GetDeleteTime()), d.GetDanglingCnames()})
}

func (c cloudAPI) selector(w http.ResponseWriter, r *http.Request, brand, domain, selector string) {
	if refuseQuery(w, r) {
		return
	}
	var answer callInfo
	d, err := c.api.GetDomain(r.Context(), &dkimv1.GetDomainRequest{Name: domainName(brand, domain)}, answer.options()...)
	if err != nil {
		answer.fail(w, domainFailure(err))
		return
	}
	for _, s := range d.GetSelectors() {
		if s.GetSelector() != strings.ToLower(selector) {
			continue
		}
		doc := cloudSelectorOf(s)
		if s.GetKey() != "" {
			if doc.Record, err = c.record(r.Context(), s); err != nil {
				answer.fail(w, err)
				return
			}
		}
		answer.setHeader(w)
		writeJSON(w, http.StatusOK, doc)
		return
	}
	writeError(w, refuse(codes.NotFound, "SELECTOR_NOT_FOUND", noSuchSelector))
}

// record is what is served for a selector; nil if its key has gone meanwhile.
func (c cloudAPI) record(ctx context.Context, s *dkimv1.Selector) (*cloudRecord, error) {
	k, err := c.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: s.GetKey()})
	if refusal.Reason(err) == "KEY_NOT_FOUND" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if k.GetOwnerName() == "" {
		return nil, nil
	}
	return &cloudRecord{Name: k.GetOwnerName(), Type: "TXT", Value: k.GetRecord(), TTL: k.GetTtlSeconds(), Seen: proven(s.GetRecordCheck())}, nil
}

func domainFailure(err error) error {
	if refusal.Reason(err) == "DOMAIN_NOT_FOUND" {
		return withMessage(err, noDomain)
	}
	return err
}
