// Package schema is the layout of etcd: which key holds what, and the form of
// the public values that DNS nodes read.
//
//	/dkim/v1/pub/<zone>/apex                      Apex; its mod_revision makes the zone's serial
//	/dkim/v1/pub/<zone>/rr/<relative owner name>  PublicRecord
//	/dkim/v1/meta/brands/<brand>
//	/dkim/v1/meta/domains/<brand>/<domain>
//	/dkim/v1/meta/labels/<zone>/<label>           claim or tombstone
//	/dkim/v1/meta/fingerprints/<zone>/<16 octets> owner name that carries the public key
//	/dkim/v1/meta/status/<brand>/<domain>         what was observed of the domain
//	/dkim/v1/meta/due/<second>/<brand>/<domain>   when to look at the domain; no value
//	/dkim/v1/meta/history/<brand>/<domain>/<n>    a block of older events
//	/dkim/v1/meta/signers/<id>
//	/dkim/v1/meta/tally/<brand>/made              how many domains came to be under a quota, by its version
//	/dkim/v1/meta/tally/<brand>/gone              how many went, by its version; no value
//	/dkim/v1/meta/reports/<brand>/<domain>/<signer id>
//	/dkim/v1/meta/disclosed/<brand>/<domain>/<key id>  disclosed private key
//	/dkim/v1/meta/tokens/<id>                     hash of a bearer token, and whose it is
//	/dkim/v1/meta/secrets/<brand>/<id>            hash of a brand's secret
//	/dkim/v1/meta/leader/                         election of the controller's leader
//	/dkim/v1/meta/restore                         there while a backup is being restored
//	/dkim/v1/priv/kek                             which key-encryption key wraps the data keys
//	/dkim/v1/priv/kek-rotation                    how far the last rotation of it is
//	/dkim/v1/priv/deks/<brand>/<n>                wrapped data key
//	/dkim/v1/priv/keys/<brand>/<domain>/<key id>  sealed private key
//	/dkim/v1/priv/retained/<brand>/<domain>/<key id>  sealed private key that is to be disclosed
//
// Everything under pub/ may be read by a DNS node, nothing else may.
package schema

import (
	"fmt"
	"strconv"
	"strings"
)

// Root is the prefix of every key of this project.
const Root = "/dkim/v1/"

// PubPrefix is the only prefix a DNS node's etcd role may read.
const PubPrefix = Root + "pub/"

const (
	brandPrefix       = Root + "meta/brands/"
	domainPrefix      = Root + "meta/domains/"
	labelPrefix       = Root + "meta/labels/"
	fingerprintPrefix = Root + "meta/fingerprints/"
	tallyPrefix       = Root + "meta/tally/"
	dataKeyPrefix     = Root + "priv/deks/"
	sealedKeyPrefix   = Root + "priv/keys/"

	keyEncryptionKey         = Root + "priv/kek"
	keyEncryptionRotationKey = Root + "priv/kek-rotation"
	restoreKey               = Root + "meta/restore"
)

// FingerprintLen is the number of octets of a public key's SHA-256 digest that
// stand in a fingerprint key: enough against accidents and against a forger
// (2^64 work for a collision of two keys of his own, which gains nothing).
const FingerprintLen = 16

// ApexKey is where the zone object stands.
func ApexKey(zone string) string { return PubPrefix + zone + "/apex" }

// RecordPrefix is the prefix of the zone's records.
func RecordPrefix(zone string) string { return PubPrefix + zone + "/rr/" }

// ZonePrefix is the prefix of all a DNS node reads of the zone.
func ZonePrefix(zone string) string { return PubPrefix + zone + "/" }

// RecordKey is where the record of an owner name stands; relative is the owner
// name without the zone, "selector1-spamtrap-dk._domainkey".
func RecordKey(zone, relative string) string { return RecordPrefix(zone) + relative }

// ParsePubKey takes apart a key below PubPrefix. For the apex, relative is
// empty and apex is true. It reports ok == false for any other key.
func ParsePubKey(key string) (zone, relative string, apex, ok bool) {
	rest, found := strings.CutPrefix(key, PubPrefix)
	if !found {
		return "", "", false, false
	}
	zone, rest, found = strings.Cut(rest, "/")
	if !found || zone == "" {
		return "", "", false, false
	}
	if rest == "apex" {
		return zone, "", true, true
	}
	relative, found = strings.CutPrefix(rest, "rr/")
	if !found || relative == "" || strings.Contains(relative, "/") {
		return "", "", false, false
	}
	return zone, relative, false, true
}

// BrandPrefix is the prefix of all brands.
func BrandPrefix() string { return brandPrefix }

// BrandKey is where a brand stands.
func BrandKey(brand string) string { return brandPrefix + brand }

// TallyPrefix is the prefix of the keys that count a brand's domains.
func TallyPrefix(brand string) string { return tallyPrefix + brand + "/" }

// TallyMadeKey is the key whose version counts the domains that a brand got.
func TallyMadeKey(brand string) string { return TallyPrefix(brand) + "made" }

// TallyGoneKey is the key whose version counts the domains that a brand lost.
func TallyGoneKey(brand string) string { return TallyPrefix(brand) + "gone" }

// AllDomainsPrefix is the prefix of the domains of all brands.
func AllDomainsPrefix() string { return domainPrefix }

// DomainPrefix is the prefix of a brand's domains.
func DomainPrefix(brand string) string { return domainPrefix + brand + "/" }

// DomainKey is where a domain stands.
func DomainKey(brand, domain string) string { return DomainPrefix(brand) + domain }

// ParseDomainKey is the inverse of DomainKey.
func ParseDomainKey(key string) (brand, domain string, ok bool) {
	rest, found := strings.CutPrefix(key, domainPrefix)
	if !found {
		return "", "", false
	}
	brand, domain, found = strings.Cut(rest, "/")
	if !found || brand == "" || domain == "" || strings.Contains(domain, "/") {
		return "", "", false
	}
	return brand, domain, true
}

// LabelPrefix is the prefix of a zone's label claims.
func LabelPrefix(zone string) string { return labelPrefix + zone + "/" }

// LabelKey is where the claim of a host label stands.
func LabelKey(zone, label string) string { return LabelPrefix(zone) + label }

// FingerprintPrefix is the prefix of a zone's public-key fingerprints.
func FingerprintPrefix(zone string) string { return fingerprintPrefix + zone + "/" }

// FingerprintKey is where it stands which owner name carries a public key.
func FingerprintKey(zone string, fingerprint []byte) string {
	return FingerprintPrefix(zone) + string(fingerprint)
}

// DataKeyPrefix is the prefix of a brand's wrapped data keys, or of those of
// all brands when brand is empty.
func DataKeyPrefix(brand string) string {
	if brand == "" {
		return dataKeyPrefix
	}
	return dataKeyPrefix + brand + "/"
}

// DataKeyKey is where the brand's data key number n stands. Numbers have ten
// digits, so that key order is number order.
func DataKeyKey(brand string, n uint32) string {
	return DataKeyPrefix(brand) + fmt.Sprintf("%010d", n)
}

// ParseDataKeyKey is the inverse of DataKeyKey.
func ParseDataKeyKey(key string) (brand string, n uint32, ok bool) {
	rest, found := strings.CutPrefix(key, dataKeyPrefix)
	if !found {
		return "", 0, false
	}
	brand, digits, found := strings.Cut(rest, "/")
	if !found || brand == "" || len(digits) != 10 {
		return "", 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return "", 0, false
	}
	return brand, uint32(v), true
}

// KeyEncryptionKey is where it stands which key-encryption key wraps.
func KeyEncryptionKey() string { return keyEncryptionKey }

// KeyEncryptionRotationKey is where the last rotation of the key-encryption key
// stands.
func KeyEncryptionRotationKey() string { return keyEncryptionRotationKey }

// RestoreKey is where it stands that a backup is being restored.
func RestoreKey() string { return restoreKey }

// AllSealedKeysPrefix is the prefix of the sealed private keys of all domains.
func AllSealedKeysPrefix() string { return sealedKeyPrefix }

// ParseSealedKeyKey is the inverse of SealedKeyKey.
func ParseSealedKeyKey(key string) (brand, domain, keyID string, ok bool) {
	return cutKey(key, sealedKeyPrefix)
}

// SealedKeyPrefix is the prefix of a domain's sealed private keys.
func SealedKeyPrefix(brand, domain string) string {
	return sealedKeyPrefix + brand + "/" + domain + "/"
}

// SealedKeyKey is where a key's sealed private half stands.
func SealedKeyKey(brand, domain, keyID string) string {
	return SealedKeyPrefix(brand, domain) + keyID
}

// Serial is the SOA serial of a zone whose apex was last touched at revision and
// that has no SerialOffset: its low 32 bits, which keep RFC 1982 order, with 0 left
// out because some secondaries take it for "unknown".
func Serial(revision int64) uint32 {
	if s := uint32(revision); s != 0 { //nolint:gosec // the low 32 bits are meant
		return s
	}
	return 1
}
