// Package authz says who may call which method, and about what. It decides by
// the names in the request alone, before anything is looked up, so that a
// refusal does not tell whether something is there. What is not in its table is
// denied.
package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

// ReasonDenied is the reason of every refusal, in its ErrorInfo.
const ReasonDenied = "PERMISSION_DENIED"

// Method reports, by nil or a refusal for the caller, whether id may call a
// method, given as "/package.Service/Method", at all.
func Method(id authn.Identity, method string) error {
	r, ok := table[method]
	switch {
	case !ok || !slices.Contains(r.roles, id.Role) || id.Check() != nil:
		return denied(fmt.Sprintf("%s may not call %s", id, method))
	case r.exportKeys && !id.ExportKeys:
		return denied(fmt.Sprintf("%s may not export keys", id))
	case id.Brand != "" && len(r.brand) == 0 && !r.filtered:
		return denied(fmt.Sprintf("%s is bound to brand %s and may not call %s", id, id.Brand, method))
	}
	return nil
}

// Request is Method for a request.
func Request(id authn.Identity, method string, req proto.Message) error {
	if err := Method(id, method); err != nil {
		return err
	}
	if id.Brand == "" {
		return nil
	}
	r := table[method]
	for _, path := range r.brand {
		names, err := fieldValues(req.ProtoReflect(), path)
		if err != nil {
			return denied(err.Error())
		}
		for _, name := range names {
			if !within(name, id.Brand) && (!r.filtered || !open(name)) {
				return denied(fmt.Sprintf("%s is bound to brand %s: %s must be in brands/%s", id, id.Brand, path, id.Brand))
			}
		}
	}
	return nil
}

// within reports whether a resource name is that of a brand or of something in
// it.
func within(name, brand string) bool {
	rest, ok := strings.CutPrefix(name, "brands/"+brand)
	return ok && (rest == "" || rest[0] == '/')
}

// open reports whether a name leaves the brand open.
func open(name string) bool { return name == "" || within(name, "-") }

// fieldValues are the strings in a field, which a path of field names gives.
// Those of an absent message are empty; a list has as many as it has elements.
func fieldValues(m protoreflect.Message, path string) ([]string, error) {
	name, rest, deeper := strings.Cut(path, ".")
	field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	if field == nil || field.IsMap() || (field.Message() != nil) != deeper || !deeper && field.Kind() != protoreflect.StringKind {
		return nil, fmt.Errorf("%s has no field %s to judge by", m.Descriptor().FullName(), path)
	}
	value := m.Get(field)
	if !field.IsList() {
		if deeper {
			return fieldValues(value.Message(), rest)
		}
		return []string{value.String()}, nil
	}
	var values []string
	for i := range value.List().Len() {
		element := value.List().Get(i)
		if !deeper {
			values = append(values, element.String())
			continue
		}
		inner, err := fieldValues(element.Message(), rest)
		if err != nil {
			return nil, err
		}
		values = append(values, inner...)
	}
	return values, nil
}

func denied(message string) error {
	return refusal.New(codes.PermissionDenied, ReasonDenied, message).Err()
}

// UnaryInterceptor lets only those calls through that the caller whom authn
// recognised may make.
func UnaryInterceptor(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	m, ok := req.(proto.Message)
	caller, known := authn.FromContext(ctx)
	if !ok || !known {
		return nil, denied("nobody may call " + info.FullMethod + " so")
	}
	if err := Request(caller.Identity, info.FullMethod, m); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// StreamInterceptor is UnaryInterceptor for streams, each request of which is
// judged.
func StreamInterceptor(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	caller, known := authn.FromContext(stream.Context())
	if !known {
		return denied("nobody may call " + info.FullMethod + " so")
	}
	if err := Method(caller.Identity, info.FullMethod); err != nil {
		return err
	}
	return handler(srv, judgedStream{stream, caller.Identity, info.FullMethod})
}

type judgedStream struct {
	grpc.ServerStream

	id     authn.Identity
	method string
}

// RecvMsg implements grpc.ServerStream.
func (s judgedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	req, ok := m.(proto.Message)
	if !ok {
		return denied("nobody may call " + s.method + " so")
	}
	return Request(s.id, s.method, req)
}
