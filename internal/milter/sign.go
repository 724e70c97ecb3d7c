package milter

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/signer"
)

// field is a header field of a message, as the mail server told it.
type field struct {
	name, value string
	indent      int // octets before the value in its first line
}

// long reports whether a line of the field has more than limit octets.
func (f field) long(limit int) bool {
	at := f.indent
	for line := range strings.SplitSeq(f.value, "\n") {
		if at+len(strings.TrimSuffix(line, "\r")) > limit {
			return true
		}
		at = 0
	}
	return false
}

// broken is the value of the field with a line ending and a space after each limit
// octets of a line.
func (f field) broken(limit int) string {
	var b strings.Builder
	at := f.indent
	for i, c := range []byte(f.value) {
		switch {
		case c == '\n':
			at = -1
		case c == '\r' && strings.HasPrefix(f.value[i+1:], "\n"):
			at--
		case at == limit:
			b.WriteString("\n ")
			at = 1
		}
		b.WriteByte(c)
		at++
	}
	return b.String()
}

// signedNames are the names of h=, with each field that is there and one more of
// those that nobody may add.
func signedNames(fields []field, sign, oversign []string) []string {
	count := make(map[string]int)
	for _, f := range fields {
		count[f.name]++
	}
	for _, name := range oversign {
		count[name]++
	}
	var names []string
	for _, name := range sign {
		for range count[name] {
			names = append(names, name)
		}
	}
	return names
}

// relaxed is a value in relaxed canonicalization (RFC 6376 §3.4.2).
func relaxed(value string) string {
	return strings.Join(strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == '\n' }), " ")
}

// message is what of a message goes into its signatures.
type message struct {
	fields []field  // those that may be signed, with names in lower case
	names  []string // h=
	body   []byte   // the hash
}

// signature is the value of a DKIM-Signature field, folded with LF.
func (m *message) signature(ctx context.Context, k *signer.Key, now time.Time) (string, error) {
	var hashed strings.Builder
	left := make(map[string]int) // below which field the ones of a name are taken
	for _, name := range m.names {
		at, again := left[name]
		if !again {
			at = len(m.fields)
		}
		at--
		for at >= 0 && m.fields[at].name != name {
			at--
		}
		left[name] = max(at, 0)
		if at >= 0 {
			hashed.WriteString(name + ":" + relaxed(m.fields[at].value) + "\r\n")
		}
	}
	value := "v=1; a=" + k.Algorithm() + "; c=relaxed/relaxed; d=" + k.Domain + ";\n\ts=" + k.Selector +
		"; t=" + strconv.FormatInt(now.Unix(), 10) + ";\n\th=" + foldNames(m.names) +
		";\n\tbh=" + base64.StdEncoding.EncodeToString(m.body) + ";\n\tb="
	hashed.WriteString("dkim-signature:" + relaxed(value))
	digest := sha256.Sum256([]byte(hashed.String()))
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := k.Public().(ed25519.PublicKey); ok {
		opts = crypto.Hash(0)
	}
	sig, err := k.SignContext(ctx, digest[:], opts)
	if err != nil {
		return "", fmt.Errorf("sign with %s: %w", k.Name, err)
	}
	return value + foldBase64(base64.StdEncoding.EncodeToString(sig)), nil
}

const lineLength = 72

// foldNames joins the names of h= in lines of bearable length.
func foldNames(names []string) string {
	var b strings.Builder
	line := len("\th=")
	for i, name := range names {
		if i > 0 {
			b.WriteByte(':')
			line++
		}
		if line+len(name) > lineLength {
			b.WriteString("\n\t ")
			line = len("\t ")
		}
		b.WriteString(name)
		line += len(name)
	}
	return b.String()
}

func foldBase64(s string) string {
	var b strings.Builder
	for first := true; len(s) > 0; first = false {
		if !first {
			b.WriteString("\n\t ")
		}
		n := min(lineLength-len("\tb="), len(s))
		b.WriteString(s[:n])
		s = s[n:]
	}
	return b.String()
}
