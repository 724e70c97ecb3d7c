package service

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

const maxFilter = 1000

var (
	filterTerm    = regexp.MustCompile(`^\s*([a-z_]+)\s*=\s*(?:"([^"]*)"|([A-Za-z0-9_.*-]+))\s*`)
	filterAnd     = regexp.MustCompile(`^AND\s+`)
	domainPattern = regexp.MustCompile(`^\*?[A-Za-z0-9.-]*\*?$`)
)

// parseFilter compiles the subset of AIP-160 that ListDomains takes.
func parseFilter(filter string) (func(keystore.Domain) bool, error) {
	if len(filter) > maxFilter {
		return nil, badFilter("it is longer than %d octets", maxFilter)
	}
	var terms []func(keystore.Domain) bool
	for rest := filter; strings.TrimSpace(rest) != ""; {
		if len(terms) > 0 {
			and := filterAnd.FindString(rest)
			if and == "" {
				return nil, badFilter("%.40q: join terms with AND", rest)
			}
			rest = rest[len(and):]
		}
		m := filterTerm.FindStringSubmatch(rest)
		if m == nil {
			return nil, badFilter("%.40q is not of the form field = \"value\"", rest)
		}
		term, err := parseTerm(m[1], m[2]+m[3])
		if err != nil {
			return nil, err
		}
		terms = append(terms, term)
		rest = rest[len(m[0]):]
	}
	return func(d keystore.Domain) bool {
		for _, term := range terms {
			if !term(d) {
				return false
			}
		}
		return true
	}, nil
}

func parseTerm(field, value string) (func(keystore.Domain) bool, error) {
	switch field {
	case "domain":
		if !strings.Contains(value, "*") {
			name, err := dnsname.ParseDomain(value)
			if err != nil {
				return nil, badFilter("%v", err)
			}
			return func(d keystore.Domain) bool { return d.Name == name }, nil
		}
		if !domainPattern.MatchString(value) {
			return nil, badFilter("domain = %.60q: \"*\" may stand at the beginning and at the end of letters, digits, dots and dashes, and labels in other scripts must be whole", value)
		}
		value = strings.ToLower(value)
		return func(d keystore.Domain) bool {
			ok, _ := path.Match(value, string(d.Name)) // names have no slash
			return ok
		}, nil
	case "host_label":
		return func(d keystore.Domain) bool { return string(d.HostLabel) == value }, nil
	case "algorithm":
		a, ok := algorithms[dkimv1.KeyAlgorithm(dkimv1.KeyAlgorithm_value["KEY_ALGORITHM_"+strings.TrimPrefix(value, "KEY_ALGORITHM_")])]
		if !ok {
			return nil, badFilter("algorithm = %q: use RSA_2048, RSA_3072, RSA_4096 or ED25519", value)
		}
		return anyKey(func(k keystore.Key) bool { return k.Algorithm == a }), nil
	case "key_state":
		for s, api := range states {
			if strings.TrimPrefix(value, "KEY_STATE_") == strings.TrimPrefix(api.String(), "KEY_STATE_") {
				return anyKey(func(k keystore.Key) bool { return k.State == s }), nil
			}
		}
		return nil, badFilter("key_state = %q: use PREPARED, ACTIVE, RETIRING, REVOKED or DESTROYED", value)
	case "kind":
		for kind, api := range kinds {
			if strings.TrimPrefix(value, "DOMAIN_KIND_") == strings.TrimPrefix(api.String(), "DOMAIN_KIND_") {
				return func(d keystore.Domain) bool { return d.Kind == kind }, nil
			}
		}
		return nil, badFilter("kind = %q: use CUSTOMER, BRAND_DEFAULT or BRAND_SHARED", value)
	}
	return nil, badFilter("%q is no field of a filter: use domain, host_label, algorithm, key_state or kind", field)
}

func anyKey(match func(keystore.Key) bool) func(keystore.Domain) bool {
	return func(d keystore.Domain) bool {
		return slices.ContainsFunc(d.Keys, match)
	}
}

func badFilter(format string, args ...any) error {
	return invalid("filter", "INVALID_FILTER", fmt.Sprintf(format, args...))
}
