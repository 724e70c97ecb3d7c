package dkimrecord_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
)

// golden returns the character-strings of testdata/golden.txt.
func golden(tb testing.TB) []string {
	tb.Helper()
	data, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		tb.Fatal(err)
	}
	var parts []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, `"`) {
			parts = append(parts, strings.Trim(line, `"`))
		}
	}
	if len(parts) != 2 || len(parts[0]) != 255 || len(parts[1]) != 155 {
		tb.Fatalf("testdata/golden.txt has not two strings of 255 and 155 octets: %q", parts)
	}
	return parts
}

func TestGolden(t *testing.T) {
	want := golden(t)
	_, encoded, _ := strings.Cut(strings.Join(want, ""), "; p=")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	record := dkimrecord.Record{KeyType: dkimrecord.RSA, PublicKey: key}
	got, err := dkimrecord.Split(record.String())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("strings differ (-want +got):\n%s", diff)
	}
	for _, end := range []string{"", ";", "; "} {
		parsed, err := dkimrecord.Parse(strings.Join(want, "") + end)
		if diff := cmp.Diff(record, parsed); diff != "" || err != nil {
			t.Errorf("Parse with %q at the end: %v; differs (-want +got):\n%s", end, err, diff)
		}
	}
}

func TestAppendText(t *testing.T) {
	key := []byte{0, 1, 2, 3}
	tests := []struct {
		name string
		in   dkimrecord.Record
		want string
	}{
		{"rsa", dkimrecord.Record{KeyType: dkimrecord.RSA, PublicKey: key}, "v=DKIM1; k=rsa; p=AAECAw=="},
		{"ed25519", dkimrecord.Record{KeyType: dkimrecord.Ed25519, PublicKey: key}, "v=DKIM1; k=ed25519; p=AAECAw=="},
		{"testing", dkimrecord.Record{PublicKey: key, Testing: true}, "v=DKIM1; k=rsa; t=y; p=AAECAw=="},
		{"same domain", dkimrecord.Record{PublicKey: key, SameDomain: true}, "v=DKIM1; k=rsa; t=s; p=AAECAw=="},
		{"both flags", dkimrecord.Record{PublicKey: key, Testing: true, SameDomain: true}, "v=DKIM1; k=rsa; t=y:s; p=AAECAw=="},
		{"revoked", dkimrecord.Record{}, "v=DKIM1; k=rsa; p="},
		{"revoked ed25519", dkimrecord.Record{KeyType: dkimrecord.Ed25519, PublicKey: []byte{}}, "v=DKIM1; k=ed25519; p="},
		{
			"all tags",
			dkimrecord.Record{
				PublicKey: key, Testing: true,
				HashAlgorithms: []string{"sha256", "sha1"}, ServiceTypes: []string{"*", "email"}, Notes: "see http://example.com/?a=b; é",
			},
			"v=DKIM1; k=rsa; h=sha256:sha1; s=*:email; n=see http://example.com/?a=3Db=3B =C3=A9; t=y; p=AAECAw==",
		},
		{"blanks around notes", dkimrecord.Record{Notes: " a\tb\n"}, "v=DKIM1; k=rsa; n==20a\tb=0A; p="},
		{"unknown key type", dkimrecord.Record{KeyType: 7}, "v=DKIM1; k=KeyType(7); p="},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.in.String(); got != tt.want {
				t.Errorf("String() = %q, want %q", got, tt.want)
			}
			if got := string(tt.in.AppendText([]byte("x: "))); got != "x: "+tt.want {
				t.Errorf("AppendText = %q, want %q", got, "x: "+tt.want)
			}
		})
	}
}

func TestAppendTextAllocations(t *testing.T) {
	record := dkimrecord.Record{PublicKey: bytes.Repeat([]byte{1}, 550), Testing: true, SameDomain: true}
	dst := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() { record.AppendText(dst) }); n != 0 {
		t.Errorf("%v allocations with room in dst, want 0", n)
	}
}

func TestRevoked(t *testing.T) {
	if !(dkimrecord.Record{}).Revoked() {
		t.Error("a record without a key is not revoked")
	}
	if (dkimrecord.Record{PublicKey: []byte{1}}).Revoked() {
		t.Error("a record with a key is revoked")
	}
}

func TestSplit(t *testing.T) {
	text := strings.Repeat("0123456789", 60)
	tests := map[int][]int{
		1:   {1},
		254: {254},
		255: {255},
		256: {255, 1},
		509: {255, 254},
		510: {255, 255},
		511: {255, 255, 1},
	}
	for n, want := range tests {
		parts, err := dkimrecord.Split(text[:n])
		if err != nil {
			t.Errorf("Split of %d octets: %v", n, err)
		}
		var got []int
		for _, part := range parts {
			got = append(got, len(part))
		}
		if diff := cmp.Diff(want, got); diff != "" || strings.Join(parts, "") != text[:n] {
			t.Errorf("Split of %d octets = %q; lengths differ (-want +got):\n%s", n, parts, diff)
		}
	}
	if parts, err := dkimrecord.Split(""); !errors.Is(err, dkimrecord.ErrEmpty) || parts != nil {
		t.Errorf("Split(\"\") = %q, %v; want ErrEmpty", parts, err)
	}
}

// recordGen makes any record that can be written.
var recordGen = rapid.Custom(func(t *rapid.T) dkimrecord.Record {
	word := rapid.StringMatching(`[a-zA-Z]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?`)
	return dkimrecord.Record{
		KeyType:        rapid.SampledFrom([]dkimrecord.KeyType{dkimrecord.RSA, dkimrecord.Ed25519}).Draw(t, "k"),
		PublicKey:      rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(t, "p"),
		Testing:        rapid.Bool().Draw(t, "t=y"),
		SameDomain:     rapid.Bool().Draw(t, "t=s"),
		HashAlgorithms: rapid.SliceOfN(word, 0, 3).Draw(t, "h"),
		ServiceTypes:   rapid.SliceOfN(rapid.OneOf(word, rapid.Just("*")), 0, 3).Draw(t, "s"),
		Notes:          string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "n")),
	}
})

func TestWriteThenParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		record := recordGen.Draw(t, "record")
		text := record.String()
		parsed, err := dkimrecord.Parse(text)
		if err != nil {
			t.Fatalf("Parse(%q): %v", text, err)
		}
		if diff := cmp.Diff(record, parsed, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("Parse(%q) differs (-want +got):\n%s", text, diff)
		}
	})
}
