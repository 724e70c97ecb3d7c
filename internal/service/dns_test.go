package service_test

import (
	"context"
	"sync"

	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// fakeDNS is the DNS as the service sees it: all is as it should be, unless a
// test says otherwise.
type fakeDNS struct {
	mu         sync.Mutex
	aliases    map[string]prober.AliasReport  // by owner
	served     map[string]prober.ServedReport // by owner
	challenges map[string]string              // TXT data by domain
	asked      []string                       // owners, and domains of challenges
	during     func()                         // runs while a question is answered
}

func (f *fakeDNS) answering(name string) {
	f.mu.Lock()
	f.asked = append(f.asked, name)
	during := f.during
	f.mu.Unlock()
	if during != nil {
		during()
	}
}

func (f *fakeDNS) Alias(_ context.Context, q prober.AliasQuestion) prober.AliasReport {
	f.answering(q.Owner)
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := f.aliases[q.Owner]; ok {
		return r
	}
	return prober.AliasReport{
		Finding: rotation.Proven, Found: []string{q.Owner + ". CNAME " + q.Target + "."},
		Servers: []prober.ServerAnswer{{Host: "ns1.customer.example", Addr: "192.0.2.53:53", Rcode: "NOERROR", Got: "CNAME " + q.Target + "."}},
	}
}

func (f *fakeDNS) Served(_ context.Context, _ string, _ []prober.NameServer, owner, want string) prober.ServedReport {
	f.answering(owner)
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := f.served[owner]; ok {
		return r
	}
	return prober.ServedReport{Finding: rotation.Proven, Servers: []prober.ServerAnswer{{Host: "ns1.example.org", Rcode: "NOERROR", Got: want}}}
}

func (f *fakeDNS) Challenge(_ context.Context, domain, token string) (bool, []prober.ServerAnswer) {
	f.answering(domain)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.challenges[domain] == token, nil
}

// showAlias makes a CNAME look in some way.
func (f *fakeDNS) showAlias(owner string, r prober.AliasReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.aliases == nil {
		f.aliases = make(map[string]prober.AliasReport)
	}
	f.aliases[owner] = r
}

// showChallenge adds a TXT record at a domain's challenge.
func (f *fakeDNS) showChallenge(domain, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.challenges == nil {
		f.challenges = make(map[string]string)
	}
	f.challenges[domain] = value
}
