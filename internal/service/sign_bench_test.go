package service_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"testing"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/service"
)

// BenchmarkSign is a signature through gRPC with TLS, in the same process, beside
// one of crypto/rsa alone.
func BenchmarkSign(b *testing.B) {
	for _, a := range []dkimv1.KeyAlgorithm{rsa2048, ed25519} {
		f := newSigningFixture(b, service.SigningOptions{})
		must(f.api.ProvisionDomain(b.Context(), &dkimv1.ProvisionDomainRequest{Name: acme + "spamtrap.dk", Algorithm: a}))(b)
		key := f.rotate(b, acme+"spamtrap.dk").GetSelectors()[0].GetKey()
		f.await(b, "the key", f.signs("acme", "spamtrap.dk", key))
		for _, n := range []int{1, 32} {
			req := &dkimv1.SignRequest{}
			for i := range n {
				req.Digests = append(req.Digests, &dkimv1.SignRequest_Digest{Key: key, Digest: digestOf(fmt.Sprint(i))})
			}
			b.Run(fmt.Sprintf("%s/batch=%d", a, n), func(b *testing.B) {
				for b.Loop() {
					resp, err := f.signer.Sign(b.Context(), req)
					if err != nil || resp.GetResults()[0].GetError() != nil {
						b.Fatal(resp, err)
					}
				}
				b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "signatures/s")
			})
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	digest := digestOf("x")
	b.Run("crypto/rsa", func(b *testing.B) {
		for b.Loop() {
			if _, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
	})
}

// BenchmarkResolve is a question about a domain through gRPC with TLS, in the same
// process.
func BenchmarkResolve(b *testing.B) {
	f := newSigningFixture(b, service.SigningOptions{})
	f.active(b, "spamtrap.dk")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := f.signer.ResolveSigningKeys(b.Context(), &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/spamtrap.dk"}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
