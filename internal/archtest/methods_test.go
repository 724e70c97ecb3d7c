package archtest

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/dkimzone/dkimzone/api/dkim/v1" // registers the services
	"github.com/dkimzone/dkimzone/internal/audit"
)

// A new method cannot be forgotten: what the audit log says of its calls stands in
// the table of package audit.
func TestEveryMethodIsAudited(t *testing.T) {
	methods := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for k := range s.Methods().Len() {
				methods++
				if name := fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(k).Name()); !audit.HasRow(name) {
					t.Errorf("%s has no row in internal/audit/table.go", name)
				}
			}
		}
		return true
	})
	if methods < 30 {
		t.Fatalf("looked at %d methods only", methods)
	}
}
