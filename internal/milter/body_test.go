package milter

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
)

var bodyTag = regexp.MustCompile(`bh=([^;]*);`)

// theirs is the hash of a body by go-msgauth.
func theirs(t *testing.T, key crypto.Signer, body []byte) string {
	t.Helper()
	s, err := dkim.NewSigner(&dkim.SignOptions{
		Domain: "example.org", Selector: "s", Signer: key, HeaderKeys: []string{"From"},
		HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(append([]byte("From: a@example.org\r\n\r\n"), body...)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return bodyTag.FindStringSubmatch(s.Signature())[1]
}

// The hash of a body is that of go-msgauth, however it comes in pieces.
func TestBodyHash(t *testing.T) {
	t.Parallel()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"\r\n", "\n", " ", "\t", "a", "bc", "\xe4", "\x00", ".", strings.Repeat("x", 5000), "\r\n\r\n\r\n", " \r\n"}
	bodies := []string{"", "\r\n", " \r\n", "a", "a\r\n", "a \r\n\r\n", "\r\n\r\na", " a\t b \r\n", strings.Repeat("\r\n", 9000) + "z"}
	for range 300 {
		var b strings.Builder
		for range rng.IntN(40) {
			b.WriteString(pieces[rng.IntN(len(pieces))])
		}
		bodies = append(bodies, b.String())
	}
	for _, body := range bodies {
		h := newBodyHash(998, false)
		for rest := []byte(body); len(rest) > 0; {
			n := 1 + rng.IntN(min(len(rest), 7000))
			if _, err := h.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if got, want := base64.StdEncoding.EncodeToString(h.sum()), theirs(t, key, []byte(body)); got != want {
			t.Errorf("%.200q: hash %s, want %s", body, got, want)
		}
	}
}

// A bare CR is an octet like others, in the middle and at the end.
func TestBodyBareCR(t *testing.T) {
	t.Parallel()
	for body, canonical := range map[string]string{"a\rb\r\n": "a\rb\r\n", "a\r": "a\r\r\n", "a \r\r\n": "a \r\r\n", "\r": "\r\r\n"} {
		h := newBodyHash(998, false)
		for _, c := range []byte(body) {
			if _, err := h.Write([]byte{c}); err != nil {
				t.Fatal(err)
			}
		}
		if want := sha256.Sum256([]byte(canonical)); !bytes.Equal(h.sum(), want[:]) {
			t.Errorf("%q is not hashed as %q", body, canonical)
		}
	}
}

// A bare CR counts as an octet of its line.
func TestBrokenAtBareCR(t *testing.T) {
	t.Parallel()
	for body, canonical := range map[string]string{
		"abcdefgh\ri\r\n": "abcdefgh\r\n \ri\r\n", "abcdefg\rhi\r\n": "abcdefg\r\r\n hi\r\n",
		"abcdefgh\r": "abcdefgh\r\n \r\r\n", "abcdefgh\r\n": "abcdefgh\r\n", "abcdefghijklmnop\n": "abcdefgh\r\n ijklmno\r\n p\r\n",
	} {
		h := newBodyHash(8, true)
		for _, c := range []byte(body) {
			if _, err := h.Write([]byte{c}); err != nil {
				t.Fatal(err)
			}
		}
		if want := sha256.Sum256([]byte(canonical)); !bytes.Equal(h.sum(), want[:]) || h.long != (body != "abcdefgh\r\n") {
			t.Errorf("%q is not hashed as %q", body, canonical)
		}
	}
}

func TestSenderDomain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		fields []field
		want   string // "" for none
	}{
		{"plain", []field{{name: "subject", value: "x"}, {name: "from", value: "joe@Example.ORG"}}, "example.org"},
		{"named", []field{{name: "from", value: `"Joe, the @ first" <joe@example.org>`}}, "example.org"},
		{"folded", []field{{name: "from", value: "Joe\n\t<joe@example.org>"}}, "example.org"},
		{"name in an unknown charset", []field{{name: "from", value: "=?x-odd?Q?Jo=E9?= <joe@example.org>"}}, "example.org"},
		{"name that should be quoted", []field{{name: "from", value: "Joe [sales], Ltd: <joe@example.org>"}}, "example.org"},
		{"name that is the address, not quoted", []field{{name: "from", value: "joe@example.org <joe@Example.org>"}}, "example.org"},
		{"name with an address of the domain", []field{{name: "from", value: "Joe (joe@example.org): <joe@example.org>"}}, "example.org"},
		{"name with two at signs", []field{{name: "from", value: "joe@example.org@bank.example <joe@example.org>"}}, ""},
		{"several angles", []field{{name: "from", value: "joe@example.org <joe@example.org> <joe@example.org>"}}, ""},
		{"name with an address, not quoted", []field{{name: "from", value: "joe@bank.example <joe@example.org>"}}, ""},
		{"Unicode domain", []field{{name: "from", value: "joe@bücher.example"}}, "xn--bcher-kva.example"},
		{"two of one domain", []field{{name: "from", value: "a@example.org, b@EXAMPLE.org"}}, "example.org"},
		{"two domains", []field{{name: "from", value: "a@example.org, b@example.com"}}, ""},
		{"two fields", []field{{name: "from", value: "a@example.org"}, {name: "from", value: "a@example.org"}}, ""},
		{"none", []field{{name: "to", value: "a@example.org"}}, ""},
		{"empty", []field{{name: "from", value: ""}}, ""},
		{"no domain", []field{{name: "from", value: "joe"}}, ""},
		{"address literal", []field{{name: "from", value: "joe@[192.0.2.1]"}}, ""},
		{"nothing after the address", []field{{name: "from", value: "Joe: [x] <joe@example.org> (of bank.example)"}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := senderDomain(tt.fields)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
