// Command protodeps writes the google/api and google/rpc .proto sources that this project's .proto files import.
//
// The sources are printed from the descriptors compiled into google.golang.org/genproto, so the module sum pins them, and
// generating needs neither a copy in the repository nor a schema registry.
//
//	protodeps DIR
//
// DIR is replaced. Files of google/protobuf are left out, since buf brings its own.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "google.golang.org/genproto/googleapis/api/annotations"
	_ "google.golang.org/genproto/googleapis/api/httpbody"
	_ "google.golang.org/genproto/googleapis/rpc/code"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	_ "google.golang.org/genproto/googleapis/rpc/status"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protodeps DIR")
		os.Exit(2)
	}
	if err := writeAll(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

// writeAll replaces dir with the sources of every file that wanted selects.
func writeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, fd := range registered() {
		path := filepath.Join(dir, filepath.FromSlash(fd.Path()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		src, err := printFile(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", fd.Path(), err)
		}
		if err := os.WriteFile(path, src, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// registered returns the linked-in files to write: all but those of google/protobuf.
func registered() []protoreflect.FileDescriptor {
	var files []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(fd.Path(), "google/protobuf/") {
			files = append(files, fd)
		}
		return true
	})
	return files
}
