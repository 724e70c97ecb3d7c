package service

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// anyBrand stands for all brands in the parent of a list (AIP-159).
const anyBrand = "-"

const maxBrandLen = 40

var (
	brandPattern = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)
	keyIDPattern = regexp.MustCompile(`^[a-z0-9]{1,40}$`)
)

// collections splits a resource name into the values of its collections, which
// must be the wanted ones in order.
func collections(field, name string, want ...string) ([]string, error) {
	parts := strings.Split(name, "/")
	values := make([]string, 0, len(want))
	ok := len(parts) == 2*len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = parts[2*i] == want[i] && parts[2*i+1] != ""
		values = append(values, parts[2*i+1])
	}
	if !ok {
		pattern := make([]string, len(want))
		for i, w := range want {
			pattern[i] = w + "/{" + strings.TrimSuffix(w, "s") + "}"
		}
		return nil, invalid(field, "INVALID_NAME", fmt.Sprintf("%.100q is not of the form %s", name, strings.Join(pattern, "/")))
	}
	return values, nil
}

func parseZoneName(field, name string) (dnsname.Zone, error) {
	v, err := collections(field, name, "zones")
	if err != nil {
		return "", err
	}
	z, err := dnsname.ParseZone(v[0])
	if err != nil {
		return "", nameFailure(field, "INVALID_ZONE", err)
	}
	return z, nil
}

func parseBrandName(field, name string) (string, error) {
	v, err := collections(field, name, "brands")
	if err != nil {
		return "", err
	}
	return v[0], checkBrandID(field, v[0])
}

func checkBrandID(field, id string) error {
	if len(id) > maxBrandLen || !brandPattern.MatchString(id) {
		return invalid(field, "INVALID_BRAND", fmt.Sprintf(
			"%.60q is no brand: use 1 to %d of a-z, 0-9 and \"-\", a letter first, no \"-\" at the end", id, maxBrandLen))
	}
	return nil
}

// domainName is a parsed brands/{brand}/domains/{domain}.
type domainName struct {
	brand  string
	domain dnsname.Domain
}

func (n domainName) String() string {
	return "brands/" + n.brand + "/domains/" + string(n.domain)
}

func (n domainName) key(id string) string { return n.String() + "/keys/" + id }

// parseDomainName parses the name of a domain that may be made.
func parseDomainName(field, name string) (domainName, error) {
	return parseDomainNameBy(dnsname.ParseDomain, field, name)
}

// parseExistingDomainName parses the name of a domain that is there or not.
func parseExistingDomainName(field, name string) (domainName, error) {
	return parseDomainNameBy(dnsname.ParseExistingDomain, field, name)
}

func parseDomainNameBy(parse func(string) (dnsname.Domain, error), field, name string) (domainName, error) {
	// An empty domain is a bad domain, not a bad name: say so.
	if rest, ok := strings.CutSuffix(name, "/domains/"); ok {
		name = rest + "/domains/ "
	}
	v, err := collections(field, name, "brands", "domains")
	if err != nil {
		return domainName{}, err
	}
	if err := checkBrandID(field, v[0]); err != nil {
		return domainName{}, err
	}
	if v[1] == " " {
		v[1] = ""
	}
	d, err := parse(v[1])
	if err != nil {
		return domainName{}, nameFailure(field, "INVALID_DOMAIN", err)
	}
	return domainName{v[0], d}, nil
}

func parseKeyName(field, name string) (domainName, string, error) {
	v, err := collections(field, name, "brands", "domains", "keys")
	if err != nil {
		return domainName{}, "", err
	}
	n, err := parseExistingDomainName(field, "brands/"+v[0]+"/domains/"+v[1])
	if err != nil {
		return domainName{}, "", err
	}
	if !keyIDPattern.MatchString(v[2]) {
		return domainName{}, "", invalid(field, "INVALID_NAME", fmt.Sprintf("%.60q is no key id: take it from ListKeys", v[2]))
	}
	return n, v[2], nil
}

// parseParentBrand parses brands/{brand}, or brands/- as "".
func parseParentBrand(field, parent string) (string, error) {
	if parent == "brands/"+anyBrand {
		return "", nil
	}
	return parseBrandName(field, parent)
}
