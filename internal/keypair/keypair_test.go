package keypair_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

const message = "From: Joe <joe@spamtrap.dk>\r\n" +
	"To: Suzie <suzie@example.net>\r\n" +
	"Subject: Is dinner ready?\r\n" +
	"\r\n" +
	"Hi.\r\n\r\nWe lost the game. Are you hungry yet?\r\n\r\nJoe.\r\n"

// checkWithVerifier signs a message with k and has go-msgauth verify it against the record of k.
func checkWithVerifier(t *testing.T, k *keypair.KeyPair) {
	t.Helper()
	var signed bytes.Buffer
	err := dkim.Sign(&signed, strings.NewReader(message), &dkim.SignOptions{
		Domain:   "spamtrap.dk",
		Selector: "selector1",
		Signer:   k.Signer(),
		Hash:     crypto.SHA256,
	})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(r dkimrecord.Record) error {
		verifications, err := dkim.VerifyWithOptions(bytes.NewReader(signed.Bytes()), &dkim.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) {
				if name != "selector1._domainkey.spamtrap.dk" {
					return nil, fmt.Errorf("unexpected look-up of %s", name)
				}
				parts, err := dkimrecord.Split(r.String())
				return []string{strings.Join(parts, "")}, err
			},
		})
		if err != nil {
			return err
		}
		if len(verifications) != 1 {
			return fmt.Errorf("%d signatures, want 1", len(verifications))
		}
		return verifications[0].Err
	}
	public := k.Public()
	good := dkimrecord.Record{KeyType: public.Algorithm.KeyType(), PublicKey: public.Octets}
	if err := verify(good); err != nil {
		t.Errorf("%v: the signature does not verify: %v", k, err)
	}
	good.SameDomain = true
	if err := verify(good); err != nil {
		t.Errorf("%v: the signature does not verify with t=s: %v", k, err)
	}
	if err := verify(dkimrecord.Record{KeyType: public.Algorithm.KeyType()}); err == nil {
		t.Errorf("%v: the signature verifies with a revoked key", k)
	}
	other, err := keypair.Generate(keypair.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(dkimrecord.Record{KeyType: dkimrecord.Ed25519, PublicKey: other.Public().Octets}); err == nil {
		t.Errorf("%v: the signature verifies with another key", k)
	}
}

func TestEveryAlgorithm(t *testing.T) {
	wantForm := map[keypair.Algorithm]int{keypair.RSA2048: 257, keypair.RSA3072: 385, keypair.RSA4096: 513, keypair.Ed25519: 33}
	wantOctets := map[keypair.Algorithm]int{keypair.RSA2048: 294, keypair.RSA3072: 422, keypair.RSA4096: 550, keypair.Ed25519: 32}
	for _, a := range keypair.Algorithms() {
		t.Run(a.String(), func(t *testing.T) {
			k, err := keypair.Generate(a)
			if err != nil {
				t.Fatal(err)
			}
			public := k.Public()
			if k.Algorithm() != a || public.Algorithm != a || len(public.Octets) != wantOctets[a] {
				t.Errorf("%v has algorithm %v, a public key of %v and %d octets", k, k.Algorithm(), public.Algorithm, len(public.Octets))
			}
			if got, err := keypair.ParsePublicKey([]byte(record(public))); err != nil || !cmp.Equal(got, public) {
				t.Errorf("ParsePublicKey refuses or changes what Generate made: %v, %v", got, err)
			}
			form := k.Marshal()
			if len(form) != wantForm[a] {
				t.Errorf("the stored form has %d octets, want %d", len(form), wantForm[a])
			}
			again, err := keypair.Unmarshal(form)
			if err != nil {
				t.Fatal(err)
			}
			if !cmp.Equal(again.Public(), public) || !bytes.Equal(again.Marshal(), form) {
				t.Error("the key that comes back from its stored form is another")
			}
			before, ok := private(t, k).(interface {
				Equal(other crypto.PrivateKey) bool
			})
			if !ok || !before.Equal(private(t, again)) {
				t.Error("the PKCS #8 form that comes back is another")
			}
			checkWithVerifier(t, again)
		})
	}
}

func TestGenerateUnknown(t *testing.T) {
	for _, a := range []keypair.Algorithm{0, 5} {
		if k, err := keypair.Generate(a); k != nil || reasonOf(t, err) != keypair.ReasonUnknownAlgorithm {
			t.Errorf("Generate(%v) = %v, %v", a, k, err)
		}
	}
}

func TestAlgorithm(t *testing.T) {
	tests := []struct {
		algorithm keypair.Algorithm
		name      string
		bits      int
		keyType   dkimrecord.KeyType
	}{
		{keypair.RSA2048, "rsa2048", 2048, dkimrecord.RSA},
		{keypair.RSA3072, "rsa3072", 3072, dkimrecord.RSA},
		{keypair.RSA4096, "rsa4096", 4096, dkimrecord.RSA},
		{keypair.Ed25519, "ed25519", 256, dkimrecord.Ed25519},
	}
	for _, tt := range tests {
		a, err := keypair.ParseAlgorithm(tt.name)
		if a != tt.algorithm || err != nil || !a.Valid() || a.String() != tt.name || a.Bits() != tt.bits || a.KeyType() != tt.keyType {
			t.Errorf("ParseAlgorithm(%q) = %v (%d bits, k=%v), %v", tt.name, a, a.Bits(), a.KeyType(), err)
		}
	}
	for _, name := range []string{"", "rsa", "rsa1024", "RSA2048", "Algorithm(0)"} {
		if a, err := keypair.ParseAlgorithm(name); a != 0 || reasonOf(t, err) != keypair.ReasonUnknownAlgorithm {
			t.Errorf("ParseAlgorithm(%q) = %v, %v", name, a, err)
		}
	}
	if a := keypair.Algorithm(9); a.Valid() || a.Bits() != 0 || a.String() != "Algorithm(9)" {
		t.Errorf("%v of %d bits is valid", a, a.Bits())
	}
}

// primes returns the stored form of an RSA-2048 key of p and q.
func primes(p, q *big.Int) []byte {
	form := make([]byte, 257)
	form[0] = byte(keypair.RSA2048)
	p.FillBytes(form[1:129])
	q.FillBytes(form[129:])
	return form
}

// prime returns the first prime of the series start, start+step and so on.
func prime(start, step *big.Int) *big.Int {
	for n := new(big.Int).Set(start); ; n.Add(n, step) {
		if n.ProbablyPrime(0) {
			return n
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	rsaForm, edForm := pair(t, keypair.RSA2048).Marshal(), pair(t, keypair.Ed25519).Marshal()
	one, two := big.NewInt(1), big.NewInt(2)
	p, q := new(big.Int).SetBytes(rsaForm[1:129]), new(big.Int).SetBytes(rsaForm[129:])
	half := new(big.Int).Lsh(one, 1022)
	large := new(big.Int).Add(half, new(big.Int).Lsh(one, 1023)) // two of these make 2 048 bits
	composite := new(big.Int).Mul(
		prime(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(7), 509), one), two),
		prime(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(15), 508), one), two))
	if composite.BitLen() != 1024 {
		t.Fatalf("composite of %d bits", composite.BitLen())
	}
	// One more than a multiple of the exponent, so that the exponent has no inverse.
	step := big.NewInt(2 * 65537)
	start := new(big.Int).Div(large, step)
	start.Mul(start.Add(start, one), step)
	noInverse := prime(start.Add(start, one), step)

	tests := []struct {
		name string
		form []byte
	}{
		{"nothing", nil},
		{"algorithm 0", append([]byte{0}, rsaForm[1:]...)},
		{"algorithm 5", append([]byte{5}, edForm[1:]...)},
		{"only the algorithm", rsaForm[:1]},
		{"rsa too short", rsaForm[:256]},
		{"rsa too long", append(rsaForm[:257:257], 0)},
		{"rsa of another size", append([]byte{byte(keypair.RSA3072)}, rsaForm[1:]...)},
		{"ed25519 too short", edForm[:32]},
		{"ed25519 too long", append(edForm[:33:33], 0)},
		{"zeros", append([]byte{1}, make([]byte, 256)...)},
		{"ones", append([]byte{1}, bytes.Repeat([]byte{0xff}, 256)...)},
		{"equal primes", primes(p, p)},
		{"primes next to each other", primes(p, prime(new(big.Int).Add(p, two), two))},
		{"even", primes(new(big.Int).Sub(p, one), q)},
		{"first not prime", primes(composite, q)},
		{"second not prime", primes(p, composite)},
		{"both not prime", primes(composite, new(big.Int).Add(composite, two))},
		{"first too small", primes(prime(new(big.Int).Add(half, one), two), q)},
		{"product too small", primes(prime(new(big.Int).Add(new(big.Int).Lsh(one, 1023), one), two), prime(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(9), 1020), one), two))},
		{"exponent without an inverse", primes(noInverse, q)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k, err := keypair.Unmarshal(tt.form)
			if k != nil || reasonOf(t, err) != keypair.ReasonBadStoredForm {
				t.Errorf("Unmarshal = %v, %v; want %s", k, err, keypair.ReasonBadStoredForm)
			}
		})
	}

	if _, err := keypair.Unmarshal(primes(q, p)); err != nil {
		t.Errorf("the primes the other way round: %v", err)
	}
}

func TestUnmarshalOwnsItsMemory(t *testing.T) {
	for _, a := range []keypair.Algorithm{keypair.RSA2048, keypair.Ed25519} {
		form := pair(t, a).Marshal()
		k, err := keypair.Unmarshal(form)
		if err != nil {
			t.Fatal(err)
		}
		clear(form)
		clear(k.Public().Octets)
		clear(k.Marshal())
		if !cmp.Equal(k.Public(), pair(t, a).Public()) || !bytes.Equal(k.Marshal(), pair(t, a).Marshal()) {
			t.Errorf("%v shares memory with what went in or came out", k)
		}
	}
}

func TestSeedRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.SliceOfN(rapid.Byte(), ed25519.SeedSize, ed25519.SeedSize).Draw(t, "seed")
		form := append([]byte{byte(keypair.Ed25519)}, seed...)
		k, err := keypair.Unmarshal(form)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(k.Marshal(), form) {
			t.Fatalf("Marshal gives another form than Unmarshal took")
		}
		if got, err := keypair.ParsePublicKey([]byte(record(k.Public()))); err != nil || !cmp.Equal(got, k.Public()) {
			t.Fatalf("ParsePublicKey refuses or changes a public key: %v, %v", got, err)
		}
		signature, err := k.Signer().Sign(nil, seed, crypto.Hash(0))
		if err != nil || !ed25519.Verify(k.Public().Octets, seed, signature) {
			t.Fatalf("signature does not verify: %v", err)
		}
	})
}

// TestNothingShowsTheKey prints, logs and encodes pairs in every way there is and looks for the private half.
func TestNothingShowsTheKey(t *testing.T) {
	for _, a := range []keypair.Algorithm{keypair.RSA2048, keypair.Ed25519} {
		k := pair(t, a)
		var outputs []string
		type holder struct {
			Pair  *keypair.KeyPair
			Value keypair.KeyPair
			Any   any
			pair  *keypair.KeyPair
			value keypair.KeyPair
		}
		values := []any{
			k, *k, k.Signer(), &k, []*keypair.KeyPair{k}, []keypair.KeyPair{*k}, map[string]any{"k": k, "s": k.Signer()},
			holder{Pair: k, Value: *k, Any: k, pair: k, value: *k}, &holder{Pair: k, Value: *k, pair: k, value: *k},
			fmt.Errorf("no %v", k), errors.Join(fmt.Errorf("no %+v", *k)),
		}
		for _, v := range values {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%e", "%t", "%p", "%T", "%z"} {
				outputs = append(outputs, fmt.Sprintf(verb, v))
			}
			if encoded, err := json.Marshal(v); err == nil {
				outputs = append(outputs, string(encoded))
			}
			var log bytes.Buffer
			slog.New(slog.NewTextHandler(&log, nil)).Info("made", slog.Any("pair", v))
			slog.New(slog.NewJSONHandler(&log, nil)).Info("made", slog.Any("pair", v))
			outputs = append(outputs, log.String())
		}
		output := strings.Join(outputs, "\n")
		if !strings.Contains(output, a.String()+" key pair ") {
			t.Errorf("%v: nothing tells what the key is: %s", a, output)
		}
		for _, secret := range secrets(t, k) {
			if strings.Contains(output, secret) {
				t.Errorf("%v: %q came out", a, secret)
			}
		}
	}
}

// secrets returns pieces of the private half of k in the notations that output could have.
func secrets(t *testing.T, k *keypair.KeyPair) []string {
	t.Helper()
	numbers := [][]byte{}
	switch key := private(t, k).(type) {
	case *rsa.PrivateKey:
		for _, n := range []*big.Int{key.D, key.Primes[0], key.Primes[1], key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv} {
			numbers = append(numbers, n.Bytes())
		}
	case ed25519.PrivateKey:
		numbers = append(numbers, key.Seed())
	}
	var pieces []string
	for _, n := range numbers {
		little := slices.Clone(n)
		slices.Reverse(little)
		for _, octets := range [][]byte{n, little} {
			first := octets[:6]
			pieces = append(pieces,
				string(first), fmt.Sprintf("%x", first), fmt.Sprintf("%X", first), fmt.Sprintf("% x", first), fmt.Sprintf("%#v", first)[len("[]byte{"):len("[]byte{")+30],
				strings.Trim(fmt.Sprint(first), "[]"), strings.ReplaceAll(strings.Trim(fmt.Sprint(first), "[]"), " ", ","), b64(first))
		}
		pieces = append(pieces, new(big.Int).SetBytes(n).String()[:15])
	}
	return pieces
}

func TestText(t *testing.T) {
	k := pair(t, keypair.RSA2048)
	fingerprint := k.Public().Fingerprint()
	want := fmt.Sprintf("rsa2048 key pair %x", fingerprint[:8])
	for _, got := range []string{k.String(), fmt.Sprint(k), fmt.Sprintf("%x", k), k.LogValue().String()} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, err := json.Marshal(k); string(got) != `"`+want+`"` || err != nil {
		t.Errorf("JSON %s, %v; want %q", got, err, want)
	}
	if got := fmt.Sprint(k.Signer()); got != "private key" {
		t.Errorf("the signer prints %q", got)
	}
}

func TestSignerForwardsOptions(t *testing.T) {
	k := pair(t, keypair.RSA2048)
	digest := sha256.Sum256([]byte(message))
	signature, err := k.Signer().Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	public, ok := k.Signer().Public().(*rsa.PublicKey)
	if !ok {
		t.Fatalf("public key is a %T", k.Signer().Public())
	}
	if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature); err != nil {
		t.Error(err)
	}
	if _, err := k.Signer().Sign(nil, digest[:20], crypto.SHA256); err == nil {
		t.Error("a digest of the wrong length is signed")
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(pair(f, keypair.RSA2048).Marshal())
	f.Add(pair(f, keypair.Ed25519).Marshal())
	f.Add([]byte{})
	f.Add(append([]byte{byte(keypair.RSA4096)}, bytes.Repeat([]byte{0xff}, 512)...))
	f.Fuzz(func(t *testing.T, form []byte) {
		k, err := keypair.Unmarshal(form)
		if err != nil {
			if reasonOf(t, err) != keypair.ReasonBadStoredForm {
				t.Errorf("Unmarshal: %v", err)
			}
			return
		}
		if !bytes.Equal(k.Marshal(), form) {
			t.Errorf("%v: Marshal gives another form than Unmarshal took", k)
		}
		if _, err := keypair.ParsePublicKey([]byte(record(k.Public()))); err != nil {
			t.Errorf("%v: the public half is refused: %v", k, err)
		}
		var opts crypto.SignerOpts = crypto.Hash(0)
		digest := sha256.Sum256(form)
		if k.Algorithm() != keypair.Ed25519 {
			opts = crypto.SHA256
		}
		if _, err := k.Signer().Sign(nil, digest[:], opts); err != nil {
			t.Errorf("%v does not sign: %v", k, err)
		}
		_, _ = fmt.Fprint(io.Discard, k)
	})
}
