package signer_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"strings"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/dkimzone/dkimzone/signer"
)

// A mail server signs each message with all keys of its sender's domain, with
// go-msgauth. The keys stay in dkimd.
func Example() {
	client, err := signer.New(signer.Options{
		Addresses: []string{"dkimd1.example.net:9443", "dkimd2.example.net:9443"},
		TLS:       &tls.Config{MinVersion: tls.VersionTLS13}, // with the certificate of role signer, and the CA
		Watch:     true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() {
		if err := client.Close(); err != nil {
			fmt.Println(err)
		}
	}()

	sign := func(ctx context.Context, domain, message string) (string, error) {
		var signed string
		err := client.Sign(ctx, domain, func(a signer.Answer) error {
			signed = message
			for _, k := range a.Keys { // none: the message goes as it is
				var out bytes.Buffer
				if err := dkim.Sign(&out, strings.NewReader(signed), &dkim.SignOptions{Domain: k.Domain, Selector: k.Selector, Signer: k}); err != nil {
					return err
				}
				signed = out.String()
			}
			return nil
		})
		return signed, err
	}
	_ = sign // once for each message
}
