package dkimrecord_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
)

func BenchmarkAppendText(b *testing.B) {
	for _, bb := range []struct {
		name   string
		record dkimrecord.Record
	}{
		{"rsa2048", dkimrecord.Record{PublicKey: bytes.Repeat([]byte{1}, 294)}},
		{"rsa4096", dkimrecord.Record{PublicKey: bytes.Repeat([]byte{1}, 550)}},
		{"ed25519", dkimrecord.Record{KeyType: dkimrecord.Ed25519, PublicKey: bytes.Repeat([]byte{1}, 32)}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			dst := make([]byte, 0, 1024)
			for b.Loop() {
				bb.record.AppendText(dst)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	text := strings.Join(golden(b), "")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := dkimrecord.Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	text := strings.Join(golden(b), "")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := dkimrecord.Split(text); err != nil {
			b.Fatal(err)
		}
	}
}
