package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	routes "github.com/dkimzone/dkimzone/internal/gateway/dkim/v1"
)

// newRoutes returns the resources of the API, as its google.api.http rules place
// them. A service that is added to the API is added here.
func newRoutes(conn grpc.ClientConnInterface) (http.Handler, error) {
	mux := runtime.NewServeMux(
		runtime.SetQueryParameterParser(queryParser{}),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, newForm()),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithDisableChunkedEncoding(),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(outgoingHeader),
		runtime.WithOutgoingTrailerMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithErrorHandler(routeError),
		runtime.WithStreamErrorHandler(runtime.DefaultStreamErrorHandler),
		runtime.WithRoutingErrorHandler(noRoute),
		runtime.WithForwardResponseOption(entityTag),
		runtime.WithMiddlewares(answerProbes, withoutQuery(queryless())),
	)
	ctx := context.Background() // the routes end with the process
	return mux, errors.Join(
		routes.RegisterKeyManagementHandlerClient(ctx, mux, dkimv1.NewKeyManagementClient(conn)),
		routes.RegisterSignerHandlerClient(ctx, mux, dkimv1.NewSignerClient(conn)),
		routes.RegisterAccessControlHandlerClient(ctx, mux, dkimv1.NewAccessControlClient(conn)),
		routes.RegisterCallersHandlerClient(ctx, mux, dkimv1.NewCallersClient(conn)),
		routes.RegisterCustodyHandlerClient(ctx, mux, dkimv1.NewCustodyClient(conn)),
	)
}

// form is the JSON form of protobuf. A stream is one object on each line.
type form struct{ runtime.JSONPb }

func newForm() *form {
	return &form{runtime.JSONPb{UnmarshalOptions: protojson.UnmarshalOptions{RecursionLimit: maxDepth}}}
}

// StreamContentType implements runtime.StreamContentType.
func (*form) StreamContentType(any) string { return "application/x-ndjson" }

// outgoingHeader lets what the service says of the call into the reply.
func outgoingHeader(key string) (string, bool) {
	if key == "x-request-id" {
		return "X-Request-Id", true
	}
	return "", false
}

func routeError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if probing(r) != nil {
		return
	}
	if md, ok := runtime.ServerMetadataFromContext(ctx); ok {
		for _, id := range md.HeaderMD.Get("x-request-id") {
			w.Header().Set("X-Request-Id", id)
		}
	}
	writeError(w, err)
}

func noRoute(_ context.Context, mux *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpStatus int) {
	switch {
	case probing(r) != nil:
	case httpStatus == http.StatusMethodNotAllowed:
		writeError(w, notAllowed(r, methodsOf(mux, r)...))
	default:
		writeError(w, nothingHere())
	}
}

// probe is in the context of a request that only asks whether there is a route.
type probe struct{ found bool }

type probeKey struct{}

func probing(r *http.Request) *probe {
	p, _ := r.Context().Value(probeKey{}).(*probe)
	return p
}

// methodsOf are the methods that the path of r has.
func methodsOf(mux *runtime.ServeMux, r *http.Request) []string {
	var methods []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		p := &probe{}
		asked := r.Clone(context.WithValue(r.Context(), probeKey{}, p))
		asked.Method, asked.Body = method, http.NoBody
		mux.ServeHTTP(nil, asked) // whatever answers a probe writes nothing
		if p.found {
			methods = append(methods, method)
		}
	}
	return methods
}

// answerProbes ends a request that only asks whether there is a route.
func answerProbes(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
		if p := probing(r); p != nil {
			p.found = true
			return
		}
		next(w, r, params)
	}
}

// entityTag sets the ETag of a resource.
func entityTag(_ context.Context, w http.ResponseWriter, m proto.Message) error {
	if tagged, ok := m.(interface{ GetEtag() string }); ok && tagged.GetEtag() != "" {
		w.Header().Set("ETag", `"`+tagged.GetEtag()+`"`)
	}
	return nil
}

// queryless are the routes without a parameter in the query, as "POST /v1/…".
func queryless() map[string]bool {
	found := make(map[string]bool)
	protoregistry.GlobalFiles.RangeFilesByPackage(dkimv1.File_dkim_v1_resources_proto.Package(), func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
				if ok && !hasQuery(m.Input(), rule) {
					for verb, path := range map[string]string{
						http.MethodGet: rule.GetGet(), http.MethodPost: rule.GetPost(), http.MethodPut: rule.GetPut(),
						http.MethodPatch: rule.GetPatch(), http.MethodDelete: rule.GetDelete(),
					} {
						found[verb+" "+path] = true
					}
				}
			}
		}
		return true
	})
	return found
}

// pathVariable is the field that a part of a path is.
var pathVariable = regexp.MustCompile(`\{([a-z_]+)`)

// hasQuery reports whether a field of a request is neither in the path nor in the
// body.
func hasQuery(request protoreflect.MessageDescriptor, rule *annotations.HttpRule) bool {
	if rule.GetBody() == "*" {
		return false
	}
	elsewhere := map[string]bool{rule.GetBody(): true}
	for _, m := range pathVariable.FindAllStringSubmatch(rule.String(), -1) {
		elsewhere[m[1]] = true
	}
	for i := range request.Fields().Len() {
		if !elsewhere[string(request.Fields().Get(i).Name())] {
			return true
		}
	}
	return false
}

// withoutQuery refuses parameters in the query where they would be ignored.
func withoutQuery(queryless map[string]bool) runtime.Middleware {
	return func(next runtime.HandlerFunc) runtime.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
			pattern, ok := runtime.HTTPPattern(r.Context())
			if r.URL.RawQuery != "" && (!ok || queryless[r.Method+" "+pattern.String()]) {
				writeError(w, refuse(codes.InvalidArgument, "INVALID_QUERY", "query: this method takes nothing there"))
				return
			}
			next(w, r, params)
		}
	}
}

// queryParser reads the fields of a request from the query. It refuses those that
// the request does not have, and those that stand in the path or the body.
type queryParser struct{ runtime.DefaultQueryParser }

// Parse implements runtime.QueryParameterParser.
func (p queryParser) Parse(m proto.Message, values url.Values, elsewhere *utilities.DoubleArray) error {
	for key := range values {
		path, ok := fieldPath(m.ProtoReflect().Descriptor(), key)
		if !ok {
			return fmt.Errorf("unknown parameter %s in the query", fieldName(key))
		}
		if elsewhere.HasCommonPrefix(path) {
			return fmt.Errorf("parameter %.60q in the query: it stands in the path or the body", key)
		}
	}
	return p.DefaultQueryParser.Parse(m, values, elsewhere)
}

// fieldPath are the names of the fields that a key of the query names.
func fieldPath(d protoreflect.MessageDescriptor, key string) ([]string, bool) {
	var path []string
	for name := range strings.SplitSeq(key, ".") {
		if d == nil {
			return nil, false
		}
		f := d.Fields().ByTextName(name)
		if f == nil {
			f = d.Fields().ByJSONName(name)
		}
		if f == nil || f.IsMap() {
			return nil, false
		}
		path = append(path, string(f.Name()))
		d = f.Message()
	}
	return path, true
}
