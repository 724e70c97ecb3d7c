package schema

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Keys of what moves a domain's keys through their lives. None is read by a DNS
// node.
const (
	statusPrefix    = Root + "meta/status/"
	duePrefix       = Root + "meta/due/"
	historyPrefix   = Root + "meta/history/"
	signerPrefix    = Root + "meta/signers/"
	reportPrefix    = Root + "meta/reports/"
	disclosedPrefix = Root + "meta/disclosed/"
	retainedPrefix  = Root + "priv/retained/"
	leaderPrefix    = Root + "meta/leader"
)

// LeaderPrefix is the name of the election of the controller's leader.
func LeaderPrefix() string { return leaderPrefix }

// AllStatusPrefix is the prefix of the status of all domains. Its keys stand in
// the order of those under AllDomainsPrefix.
func AllStatusPrefix() string { return statusPrefix }

// StatusKey is where a domain's status stands.
func StatusKey(brand, domain string) string { return statusPrefix + brand + "/" + domain }

// ParseStatusKey is the inverse of StatusKey.
func ParseStatusKey(key string) (brand, domain string, ok bool) {
	return cutDomain(key, statusPrefix)
}

// DuePrefix is the prefix of the due index, whose keys are in order of time.
func DuePrefix() string { return duePrefix }

// DueKey is where it stands that a domain is to be looked at, a second's
// precision. Times have ten digits, so that key order is time order; those
// before 1970 and after 2286 are cut to these years.
func DueKey(at time.Time, brand, domain string) string {
	return DueTimePrefix(at) + brand + "/" + domain
}

// DueTimePrefix is the prefix of the entries of one second.
func DueTimePrefix(at time.Time) string {
	const last = 9_999_999_999
	return duePrefix + fmt.Sprintf("%010d", min(max(at.Unix(), 0), last)) + "/"
}

// ParseDueKey is the inverse of DueKey; the time is in UTC.
func ParseDueKey(key string) (at time.Time, brand, domain string, ok bool) {
	rest, found := strings.CutPrefix(key, duePrefix)
	if !found {
		return time.Time{}, "", "", false
	}
	digits, rest, found := strings.Cut(rest, "/")
	if !found || len(digits) != 10 {
		return time.Time{}, "", "", false
	}
	seconds, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return time.Time{}, "", "", false
	}
	brand, domain, ok = cutDomain(rest, "")
	if !ok {
		return time.Time{}, "", "", false
	}
	return time.Unix(int64(seconds), 0).UTC(), brand, domain, true
}

// HistoryPrefix is the prefix of what is known of a domain's past beyond what
// its own value holds.
func HistoryPrefix(brand, domain string) string { return historyPrefix + brand + "/" + domain + "/" }

// HistoryKey is where a block of a domain's past stands; slot is below 10.
func HistoryKey(brand, domain string, slot uint32) string {
	return HistoryPrefix(brand, domain) + strconv.FormatUint(uint64(slot), 10)
}

// SignerPrefix is the prefix of all signers.
func SignerPrefix() string { return signerPrefix }

// SignerKey is where a signer stands.
func SignerKey(id string) string { return signerPrefix + id }

// ReportPrefix is the prefix of the signers' reports of a domain.
func ReportPrefix(brand, domain string) string { return reportPrefix + brand + "/" + domain + "/" }

// ReportKey is where a signer's report of a domain stands.
func ReportKey(brand, domain, signer string) string { return ReportPrefix(brand, domain) + signer }

// DisclosedPrefix is the prefix of a domain's disclosed private keys.
func DisclosedPrefix(brand, domain string) string {
	return disclosedPrefix + brand + "/" + domain + "/"
}

// DisclosedKey is where a disclosed private key stands.
func DisclosedKey(brand, domain, keyID string) string { return DisclosedPrefix(brand, domain) + keyID }

// RetainedPrefix is the prefix of the sealed private keys that wait for their
// disclosure: of a brand, or of all brands when brand is empty.
func RetainedPrefix(brand string) string {
	if brand == "" {
		return retainedPrefix
	}
	return retainedPrefix + brand + "/"
}

// RetainedDomainPrefix is the prefix of those of one domain.
func RetainedDomainPrefix(brand, domain string) string { return RetainedPrefix(brand) + domain + "/" }

// RetainedKey is where a sealed private key waits for its disclosure.
func RetainedKey(brand, domain, keyID string) string {
	return RetainedDomainPrefix(brand, domain) + keyID
}

// ParseRetainedKey is the inverse of RetainedKey.
func ParseRetainedKey(key string) (brand, domain, keyID string, ok bool) {
	return cutKey(key, retainedPrefix)
}

// cutKey takes apart prefix + "brand/domain/key id".
func cutKey(key, prefix string) (brand, domain, keyID string, ok bool) {
	rest, found := strings.CutPrefix(key, prefix)
	i := strings.LastIndexByte(rest, '/')
	if !found || i < 0 || i == len(rest)-1 {
		return "", "", "", false
	}
	brand, domain, ok = cutDomain(rest[:i], "")
	if !ok {
		return "", "", "", false
	}
	return brand, domain, rest[i+1:], true
}

// cutDomain takes apart prefix + "brand/domain".
func cutDomain(key, prefix string) (brand, domain string, ok bool) {
	rest, found := strings.CutPrefix(key, prefix)
	if !found {
		return "", "", false
	}
	brand, domain, found = strings.Cut(rest, "/")
	if !found || brand == "" || domain == "" || strings.Contains(domain, "/") {
		return "", "", false
	}
	return brand, domain, true
}

// Seconds is t as stored where a second's precision does: seconds since the
// Unix epoch, 0 for no time.
func Seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// FromSeconds is the inverse of Seconds; times are in UTC.
func FromSeconds(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}
