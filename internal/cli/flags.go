package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// String, Set and Type make the types of this file values of flags
// (pflag.Value).

func (f *format) String() string { return string(*f) }

func (f *format) Set(s string) error {
	if !slices.Contains([]format{formatTable, formatJSON, formatYAML}, format(s)) {
		return errors.New("use table, json or yaml")
	}
	*f = format(s)
	return nil
}

func (*format) Type() string { return "format" }

// limit is a time span that is longer than nothing.
type limit time.Duration

func (l *limit) String() string { return time.Duration(*l).String() }

func (l *limit) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return errors.New("use a time span such as 30s or 5m")
	}
	*l = limit(d)
	return nil
}

func (*limit) Type() string { return "duration" }

// algorithmFlag is a keypair.Algorithm, 0 while not given.
type algorithmFlag keypair.Algorithm

func (a *algorithmFlag) String() string {
	if *a == 0 {
		return ""
	}
	return keypair.Algorithm(*a).String()
}

func (a *algorithmFlag) Set(s string) error {
	parsed, err := keypair.ParseAlgorithm(s)
	*a = algorithmFlag(parsed)
	return err
}

func (*algorithmFlag) Type() string { return "algorithm" }

// algorithms are the API's algorithms in the words of dkimctl.
var algorithms = map[dkimv1.KeyAlgorithm]keypair.Algorithm{
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048: keypair.RSA2048,
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_3072: keypair.RSA3072,
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_4096: keypair.RSA4096,
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519:  keypair.Ed25519,
}

func algorithmMessage(a keypair.Algorithm) dkimv1.KeyAlgorithm {
	for m, known := range algorithms {
		if known == a {
			return m
		}
	}
	return dkimv1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED
}

func algorithmText(m dkimv1.KeyAlgorithm) string {
	if a, ok := algorithms[m]; ok {
		return a.String()
	}
	return strings.TrimPrefix(m.String(), "KEY_ALGORITHM_") // of a newer dkimd
}

func stateText(s dkimv1.KeyState) string { return strings.TrimPrefix(s.String(), "KEY_STATE_") }

func custodyText(c dkimv1.KeyCustody) string { return strings.TrimPrefix(c.String(), "KEY_CUSTODY_") }

// selectorFlags collects NAME[:ALGORITHM].
type selectorFlags []*dkimv1.SelectorSpec

func (f *selectorFlags) String() string {
	var all []string
	for _, s := range *f {
		text := s.GetSelector()
		if s.GetAlgorithm() != 0 {
			text += ":" + algorithmText(s.GetAlgorithm())
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

func (f *selectorFlags) Set(s string) error {
	name, algorithm, named := strings.Cut(s, ":")
	spec := &dkimv1.SelectorSpec{Selector: name}
	if name == "" {
		return errors.New("use NAME or NAME:ALGORITHM")
	}
	if named {
		a, err := keypair.ParseAlgorithm(algorithm)
		if err != nil {
			return err
		}
		spec.Algorithm = algorithmMessage(a)
	}
	*f = append(*f, spec)
	return nil
}

func (*selectorFlags) Type() string { return "name[:algorithm]" }

// nameServerFlags collects a zone's name servers: HOST[=ADDRESS[,ADDRESS]…].
type nameServerFlags []*dkimv1.NameServer

func (f *nameServerFlags) String() string {
	var all []string
	for _, ns := range *f {
		all = append(all, nameServerText(ns))
	}
	return strings.Join(all, " ")
}

func (f *nameServerFlags) Set(s string) error {
	host, addresses, has := strings.Cut(s, "=")
	ns := &dkimv1.NameServer{Host: host}
	if has {
		ns.Addresses = strings.Split(addresses, ",")
	}
	if host == "" || has && slices.Contains(ns.Addresses, "") {
		return errors.New("use HOST or HOST=ADDRESS,ADDRESS")
	}
	*f = append(*f, ns)
	return nil
}

func (*nameServerFlags) Type() string { return "host[=address,…]" }

func nameServerText(ns *dkimv1.NameServer) string {
	return strings.Join(append([]string{ns.GetHost()}, ns.GetAddresses()...), " ")
}

// placeFlags says where name servers are asked: HOST=ADDRESS:PORT.
type placeFlags map[string][]netip.AddrPort

func (f *placeFlags) String() string {
	if len(*f) == 0 {
		return ""
	}
	return fmt.Sprint(map[string][]netip.AddrPort(*f))
}

func (f *placeFlags) Set(s string) error {
	host, place, _ := strings.Cut(s, "=")
	addr, err := netip.ParseAddrPort(place)
	if err != nil || host == "" {
		return errors.New("use HOST=ADDRESS:PORT, such as ns1.keys.example.net=127.0.0.1:1053")
	}
	if *f == nil {
		*f = make(placeFlags)
	}
	host = config.NameServerKey(host)
	(*f)[host] = append((*f)[host], addr)
	return nil
}

func (*placeFlags) Type() string { return "host=address:port" }
