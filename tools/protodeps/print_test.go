package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestSourcesCompileToTheSameDescriptors is the printer's whole contract.
func TestSourcesCompileToTheSameDescriptors(t *testing.T) {
	dir := t.TempDir()
	if err := writeAll(dir); err != nil {
		t.Fatal(err)
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
	}
	files := registered()
	if len(files) < 9 {
		t.Fatalf("%d files registered, want at least 9", len(files))
	}
	for _, fd := range files {
		t.Run(fd.Path(), func(t *testing.T) {
			got, err := compiler.Compile(context.Background(), fd.Path())
			if err != nil {
				src, _ := os.ReadFile(filepath.Join(dir, fd.Path()))
				t.Fatalf("%v\n%s", err, src)
			}
			if g, w := descriptor(t, got[0]), descriptor(t, fd); !proto.Equal(g, w) {
				t.Errorf("got\n%s\nwant\n%s", prototext.Format(g), prototext.Format(w))
			}
		})
	}
}

// descriptor returns fd as a message whose options went through the wire once, so that both sides resolve extensions alike.
func descriptor(t *testing.T, fd protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	t.Helper()
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(protodesc.ToFileDescriptorProto(fd))
	if err != nil {
		t.Fatal(err)
	}
	d := &descriptorpb.FileDescriptorProto{}
	if err := proto.Unmarshal(wire, d); err != nil {
		t.Fatal(err)
	}
	d.SourceCodeInfo = nil
	return d
}

func TestUnsupportedConstructsAreErrors(t *testing.T) {
	tests := []struct {
		name, src, want string
	}{
		{"proto2", `syntax = "proto2"; package t;`, "syntax proto2"},
		{"service", `syntax = "proto3"; package t; message M {} service S { rpc R(M) returns (M); }`, "services"},
		{"reserved enum value", `syntax = "proto3"; package t; enum E { A = 0; reserved 3; }`, "reserved values"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			compiler := protocompile.Compiler{Resolver: &protocompile.SourceResolver{
				Accessor: protocompile.SourceAccessorFromMap(map[string]string{"t.proto": tt.src}),
			}}
			fds, err := compiler.Compile(context.Background(), "t.proto")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := printFile(fds[0]); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}
