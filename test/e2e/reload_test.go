package e2e_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/dkimzone/dkimzone/test/harness"
)

// Zones come and go in a running dkimd without a query being lost.
func TestZonesChangeWhileServing(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t)
	s.ctl(t, "brand", "create", "acme", "--zone", zone)
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk", "--wait", "--algorithm", "ed25519")
	k := s.key(t, "acme", "spamtrap.dk", "selector1")

	done := make(chan struct{})
	var askers sync.WaitGroup
	for _, network := range []string{"udp", "udp", "tcp"} {
		askers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					if n < 10 {
						t.Errorf("only %d queries over %s were made", n, network)
					}
					return
				default:
				}
				strs, err := txt(network, s.dns, k.GetOwnerName())
				if err != nil && network == "tcp" {
					// A server may close a connection at any time, resolvers ask again (RFC 7766 §6.2.4).
					strs, err = txt(network, s.dns, k.GetOwnerName())
				}
				if err != nil || strings.Join(strs, "") != k.GetRecord() {
					t.Errorf("query %d over %s: %q, %v", n, network, strs, err)
					return
				}
			}
		})
	}
	for i := range 5 {
		name := fmt.Sprintf("zone%d.example.net", i)
		s.ctl(t, "zone", "create", name, "--name-server", "ns1."+zone)
		harness.Eventually(t, startLimit, name+" is served", func() error {
			_, err := soaSerial(s.dns, name)
			return err
		})
		if i%2 == 0 {
			s.ctl(t, "zone", "delete", name, "--yes")
		}
	}
	close(done)
	askers.Wait()
}
