package e2e_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
)

// wanted are secrets that are looked for, each in all forms in which it may stand
// in a text or a file, by what they belong to.
type wanted map[string][][]byte

// minForm is how long a form is at least. Shorter ones stand in files by chance.
const minForm = 16

func (w wanted) add(what string, form []byte) {
	if len(form) >= minForm {
		w[what] = append(w[what], form)
	}
}

// addOctets adds octets as they are, in hex and in base64. In base64 the octets
// before them shift them, so there are three forms, less their ends.
func (w wanted) addOctets(what string, secret []byte) {
	if len(secret) < minForm {
		return
	}
	w.add(what, secret)
	w.add(what, []byte(hex.EncodeToString(secret)))
	w.add(what, []byte(strings.ToUpper(hex.EncodeToString(secret))))
	for shift := range 3 {
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString(append(make([]byte, shift), secret...))
			w.add(what, []byte(text[4:len(text)-4]))
		}
	}
}

// addKey adds a private key: its secret numbers, and the lines of PEM that hold
// them.
func (w wanted) addKey(t *testing.T, name string, key crypto.PrivateKey) {
	t.Helper()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encoded := [][]byte{pkcs8}
	switch k := key.(type) {
	case ed25519.PrivateKey:
		w.addOctets("seed of "+name, k.Seed())
	case *rsa.PrivateKey:
		w.addOctets("first prime of "+name, k.Primes[0].Bytes())
		w.addOctets("second prime of "+name, k.Primes[1].Bytes())
		w.addOctets("exponent of "+name, k.D.Bytes())
		encoded = append(encoded, x509.MarshalPKCS1PrivateKey(k))
	default:
		t.Fatalf("%s is a %T", name, key)
	}
	for _, der := range encoded {
		w.add("DER of "+name, der)
		lines := bytes.Split(bytes.TrimSpace(pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: der})), []byte("\n"))
		lines = lines[1 : len(lines)-1]
		for _, line := range lines[(len(lines)+1)/2:] { // the public half is in front
			w.add("PEM of "+name, line)
		}
	}
}

// randomLen is how many characters of a token or secret are random: the last.
const randomLen = 32

// addText adds a secret that is text.
func (w wanted) addText(what, secret string) {
	w.addOctets(what, []byte(secret))
	if len(secret) > randomLen {
		w.add(what, []byte(secret[len(secret)-randomLen:])) // without the id before it
	}
}

// checkAbsent fails the test for each secret that is in one of some places.
func (w wanted) checkAbsent(t *testing.T, places map[string][]byte) {
	t.Helper()
	if len(w) == 0 || len(places) == 0 {
		t.Fatal("nothing to look for, or nowhere")
	}
	s := w.searcher()
	for place, data := range places {
		for what := range s.find(data) {
			t.Errorf("%s is in %s", what, place)
		}
		// No file of a program has that, but those of the certificates.
		if bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s has a PEM marker of a private key", place)
		}
	}
}

type form struct {
	what  string
	octet []byte
}

// searcher looks for many forms in one pass, since the files of etcd are large.
type searcher struct {
	begins [1 << 18]uint64   // which three octets a form begins with
	index  map[uint64][]form // by their first eight octets
}

func (w wanted) searcher() *searcher {
	s := &searcher{index: make(map[uint64][]form)}
	for what, forms := range w {
		for _, f := range forms {
			s.add(what, f)
		}
	}
	return s
}

func (s *searcher) add(what string, octets []byte) {
	b := uint32(octets[0]) | uint32(octets[1])<<8 | uint32(octets[2])<<16
	s.begins[b>>6] |= 1 << (b & 63)
	key := binary.LittleEndian.Uint64(octets)
	s.index[key] = append(s.index[key], form{what, octets})
}

func (s *searcher) find(data []byte) map[string]bool {
	found := make(map[string]bool)
	for i := 0; i+minForm <= len(data); i++ {
		b := uint32(data[i]) | uint32(data[i+1])<<8 | uint32(data[i+2])<<16
		if s.begins[b>>6]&(1<<(b&63)) == 0 {
			continue
		}
		for _, f := range s.index[binary.LittleEndian.Uint64(data[i:])] {
			if bytes.HasPrefix(data[i:], f.octet) {
				found[f.what] = true
			}
		}
	}
	return found
}

// The search finds each form, at the beginning, within and at the end.
func TestWanted(t *testing.T) {
	t.Parallel()
	w := make(wanted)
	w.addKey(t, "RSA", newRSA(t, 2048))
	w.addKey(t, "Ed25519", newEd25519(t))
	w.addText("token", "dkz_abcdefghijkl_"+strings.Repeat("0123", 8))
	s := w.searcher()
	for what, forms := range w {
		for _, f := range forms {
			for _, data := range [][]byte{f, slices.Concat([]byte("before "), f), slices.Concat(f, []byte("behind"))} {
				if !s.find(data)[what] {
					t.Errorf("%s is not found in %q", what, data)
				}
			}
		}
	}
	for _, text := range []string{"-----BEGIN X-----", strings.Repeat("\x00", 1000), "dkz_abcdefghijkl_" + strings.Repeat("0124", 8)} {
		if found := s.find([]byte(text)); len(found) > 0 {
			t.Errorf("%v in %q", found, text)
		}
	}
	// As people keep keys.
	for name, text := range privateKeys(t) {
		w, block := make(wanted), []byte(nil)
		if b, _ := pem.Decode([]byte(text[max(0, strings.LastIndex(text, "-----BEGIN")):])); b != nil {
			block = b.Bytes
		} else if block, _ = base64.StdEncoding.DecodeString(text); block == nil {
			t.Fatal(name)
		}
		key, err := x509.ParsePKCS8PrivateKey(block)
		if err != nil {
			if key, err = x509.ParsePKCS1PrivateKey(block); err != nil {
				t.Fatal(err)
			}
		}
		w.addKey(t, name, key)
		s := w.searcher()
		for _, form := range [][]byte{[]byte(text), block, []byte(hex.EncodeToString(block)), []byte("x=" + base64.URLEncoding.EncodeToString(block))} {
			if len(s.find(form)) == 0 {
				t.Errorf("%s is not found in %q", name, form)
			}
		}
	}
}
