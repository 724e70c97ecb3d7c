// Package zonefile writes a hosting zone in master-file format (RFC 1035 §5): one record on each line, owner names and
// names in the data absolute, so that any piece of a file that ends with a line stands for itself.
//
// All functions are pure and safe for concurrent use. Names are those of package dnsname, in their stored form: they hold
// nothing that a master file would need escaped.
package zonefile

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
)

// NameServer is one of the zone's name servers. Its addresses are written only if its name lies inside the zone.
type NameServer struct {
	Name      string
	Addresses []netip.Addr
}

// Apex is what a zone consists of besides its key records. Times are in seconds.
type Apex struct {
	Zone        string
	Serial      uint32
	Mailbox     string       // SOA RNAME as a name
	NameServers []NameServer // at least one; the first is the SOA's MNAME
	TTL         uint32       // of SOA, NS and addresses
	Refresh     uint32
	Retry       uint32
	Expire      uint32
	NegativeTTL uint32 // SOA MINIMUM
}

// AppendApex appends SOA, NS and the addresses of name servers inside the zone to dst and returns the longer slice.
func AppendApex(dst []byte, a Apex) []byte {
	dst = appendHead(dst, a.Zone, "", a.TTL, "SOA")
	dst = append(dst, a.NameServers[0].Name...)
	dst = append(dst, ". "...)
	dst = append(dst, a.Mailbox...)
	dst = append(dst, '.')
	for _, n := range []uint32{a.Serial, a.Refresh, a.Retry, a.Expire, a.NegativeTTL} {
		dst = append(dst, ' ')
		dst = strconv.AppendUint(dst, uint64(n), 10)
	}
	dst = append(dst, '\n')
	for _, ns := range a.NameServers {
		dst = appendHead(dst, a.Zone, "", a.TTL, "NS")
		dst = append(dst, ns.Name...)
		dst = append(dst, ".\n"...)
	}
	for _, ns := range a.NameServers {
		if ns.Name != a.Zone && !strings.HasSuffix(ns.Name, "."+a.Zone) {
			continue
		}
		for _, addr := range ns.Addresses {
			addr = addr.Unmap()
			kind := "AAAA"
			if addr.Is4() {
				kind = "A"
			}
			dst = appendHead(dst, ns.Name, "", a.TTL, kind)
			dst = addr.AppendTo(dst)
			dst = append(dst, '\n')
		}
	}
	return dst
}

// AppendTXT appends a TXT record to dst and returns the longer slice. relative is the owner name without the zone. text,
// of one octet at least, is cut into character-strings as dkimrecord.Split cuts it.
func AppendTXT(dst []byte, relative, zone string, ttl uint32, text []byte) []byte {
	dst = appendHead(dst, relative, zone, ttl, "TXT")
	for first := true; first || len(text) > 0; first = false {
		if !first {
			dst = append(dst, ' ')
		}
		n := min(len(text), dkimrecord.MaxString)
		dst = appendQuoted(dst, text[:n])
		text = text[n:]
	}
	return append(dst, '\n')
}

// AppendComment appends a line of comment. text must be one line.
func AppendComment(dst []byte, text string) []byte {
	dst = append(dst, "; "...)
	dst = append(dst, text...)
	return append(dst, '\n')
}

// appendHead begins a line: the owner name name.zone, or name alone if zone is empty, TTL, class and type.
func appendHead(dst []byte, name, zone string, ttl uint32, kind string) []byte {
	dst = append(dst, name...)
	if zone != "" {
		dst = append(dst, '.')
		dst = append(dst, zone...)
	}
	dst = append(dst, ".\t"...)
	dst = strconv.AppendUint(dst, uint64(ttl), 10)
	dst = append(dst, "\tIN\t"...)
	dst = append(dst, kind...)
	return append(dst, '\t')
}

// appendQuoted appends a character-string. What is not printable ASCII is written as \DDD (RFC 1035 §5.1).
func appendQuoted(dst, s []byte) []byte {
	dst = append(dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ' || c > '~':
			dst = append(dst, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
