package main

import (
	"math/rand/v2"
	"strings"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/dataset"
)

// query is a question and how it is asked.
type query struct {
	*dns.Msg
	text string
}

var (
	types = []uint16{
		dns.TypeTXT, dns.TypeTXT, dns.TypeTXT, dns.TypeTXT, dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeCNAME, dns.TypeMX,
		dns.TypeDS, dns.TypeCAA, dns.TypeSRV, dns.TypeHTTPS, dns.TypePTR, dns.TypeANY, 1000, 65280,
	}
	sizes = []uint16{0, 511, 512, 1232, 4096, 65535}
)

// generate makes query n of a seed.
func generate(random *rand.Rand, set dataset.Set) query {
	name := owner(random, set)
	if random.IntN(4) == 0 {
		name = mixCase(random, name)
	}
	q := query{Msg: new(dns.Msg).SetQuestion(name, types[random.IntN(len(types))])}
	q.RecursionDesired = random.IntN(4) == 0
	q.CheckingDisabled = random.IntN(8) == 0
	if random.IntN(4) > 0 {
		q.SetEdns0(sizes[random.IntN(len(sizes))], random.IntN(3) == 0)
	}
	q.text = strings.ReplaceAll(q.String(), "\n", " ")
	return q
}

// owner is a name at, above, below or beside a record.
func owner(random *rand.Rand, set dataset.Set) string {
	const zone = "." + dataset.Zone + "."
	record := set.Owner(random.IntN(set.Len()))
	label, _, _ := strings.Cut(record, ".")
	switch random.IntN(12) {
	case 0, 1, 2, 3, 4:
		return record + zone
	case 5:
		return "x." + record + zone
	case 6:
		return label + zone // without _domainkey
	case 7:
		return label[:len(label)-1] + "._domainkey" + zone
	case 8:
		return label + "x._domainkey" + zone
	case 9:
		return []string{"_domainkey" + zone, "x._domainkey" + zone, "_dmarc" + zone, "_domainkey._domainkey" + zone}[random.IntN(4)]
	case 10:
		return []string{zone[1:], "ns1" + zone, "ns2" + zone, "x.ns1" + zone, "*" + zone, "*._domainkey" + zone}[random.IntN(6)]
	default:
		return strings.Repeat("a", 1+random.IntN(63)) + "." + strings.Repeat("b", 1+random.IntN(63)) + zone
	}
}

func mixCase(random *rand.Rand, name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && random.IntN(2) == 0 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}
