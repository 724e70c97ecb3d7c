package keystore

import "github.com/dkimzone/dkimzone/internal/dnsname"

// DefaultDomainName is the name of the domain that holds a brand's default keys:
// d= of mail that no key of the sender's domain can sign.
func DefaultDomainName(b Brand) dnsname.Domain {
	return dnsname.Domain(b.Name + "." + string(b.Zone))
}

// SharedDomainName is the name of the domain that holds the keys that a brand's
// customers share. It is never a d=.
func SharedDomainName(b Brand) dnsname.Domain { return "shared." + DefaultDomainName(b) }
