package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/refusal"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// refuse is a rejection by the gateway, in the form of those of the service.
func refuse(code codes.Code, reason, message string) error {
	return refusal.New(code, reason, message).Err()
}

// withHTTP gives a rejection an HTTP status that its code does not have.
func withHTTP(err error, httpStatus int) error {
	return &runtime.HTTPStatusError{HTTPStatus: httpStatus, Err: err}
}

// methodError is a refusal of a method that a path does not have.
type methodError struct {
	error
	allowed []string
}

func notAllowed(r *http.Request, allowed ...string) error {
	return &methodError{
		withHTTP(refuse(codes.Unimplemented, "METHOD_NOT_ALLOWED", fmt.Sprintf("%.20q is not for this path", r.Method)), http.StatusMethodNotAllowed),
		allowed,
	}
}

func (e *methodError) Unwrap() error { return e.error }

// withMessage is an error with another text.
func withMessage(err error, message string) error {
	p := status.Convert(err).Proto()
	p.Message = message
	return status.ErrorProto(p)
}

// writeError answers with an error: a google.rpc.Status in JSON.
func writeError(w http.ResponseWriter, err error) {
	var httpStatus int
	if with, ok := errors.AsType[*runtime.HTTPStatusError](err); ok {
		httpStatus = with.HTTPStatus
		if e, ok := errors.AsType[*methodError](err); ok {
			w.Header().Set("Allow", strings.Join(e.allowed, ", "))
		}
		err = with.Err
	}
	st := status.Convert(withReason(err))
	if httpStatus == 0 {
		httpStatus = runtime.HTTPStatusFromCode(st.Code())
	}
	header := w.Header()
	if st.Code() == codes.Unauthenticated {
		header.Add("WWW-Authenticate", `Bearer realm="dkimzone"`)
		header.Add("WWW-Authenticate", `Basic realm="dkimzone", charset="UTF-8"`)
	}
	for _, d := range st.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			delay := retry.GetRetryDelay().AsDuration()
			header.Set("Retry-After", strconv.FormatInt(int64((delay+time.Second-1)/time.Second), 10))
		}
	}
	body, err := compact(st.Proto())
	if err != nil {
		httpStatus, body = http.StatusInternalServerError, []byte(`{"code":13,"message":"the error cannot be written"}`)
	}
	header.Set("Content-Type", jsonType)
	w.WriteHeader(httpStatus)
	//nolint:gosec // JSON that says it is, with nosniff, is no page
	_, _ = w.Write(append(body, '\n')) // the caller may have gone
}

// compact is a message in JSON without the spaces that protojson varies from build
// to build.
func compact(m proto.Message) ([]byte, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	err = json.Compact(&body, raw)
	return body.Bytes(), err
}

// withReason gives an error of the REST routes, which is about how the request is
// written, the form of all others.
func withReason(err error) error {
	st := status.Convert(err)
	if st.Code() != codes.InvalidArgument || refusal.Reason(err) != "" {
		return err
	}
	return refuse(codes.InvalidArgument, "INVALID_REQUEST", withoutValue(st.Message()))
}

var (
	// invalidValue and misread are how protojson and the query parser tell of a
	// value.
	invalidValue = regexp.MustCompile(`invalid value for .*`)
	valueOf      = regexp.MustCompile(`invalid value for ([a-z0-9]+ )?(field|type) ?([A-Za-z0-9_.]*)`)
	unknownField = regexp.MustCompile(`unknown field "(?:[^"\\]|\\.)*"`)
	unexpected   = regexp.MustCompile(`(unexpected token|syntax error|parsing field).*`)
)

// fieldForm is what a name of a field may look like. Tokens and private keys are
// longer, or have other characters.
var fieldForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]{0,39}$`)

// fieldName is a name that a caller has given, for an error: quoted if it may be
// meant as one, and else not repeated, since it might be a secret in the wrong
// place.
func fieldName(name string) string {
	if fieldForm.MatchString(name) {
		return strconv.Quote(name)
	}
	return "of a name that none has"
}

// withoutValue is the text of an error without the value that is wrong, which
// might be a secret in the wrong place.
func withoutValue(message string) string {
	message = strings.ReplaceAll(message, "\u00a0", " ") // protojson varies its spaces
	message = strings.TrimPrefix(message, "proto: ")
	message = invalidValue.ReplaceAllStringFunc(message, func(s string) string {
		return strings.TrimRight("invalid value for "+strings.TrimPrefix(valueOf.FindString(s), "invalid value for "), " ")
	})
	message = unknownField.ReplaceAllStringFunc(message, func(s string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(s, `unknown field "`), `"`)
		return "unknown field " + fieldName(name)
	})
	message = unexpected.ReplaceAllString(message, "not as the API describes it")
	const most = 200
	if len(message) > most {
		message = message[:most] + "…"
	}
	return "request: " + strings.ToValidUTF8(message, "")
}

// writeJSON answers with a document of a face that is not the API's own.
func writeJSON(w http.ResponseWriter, httpStatus int, doc any) {
	body, err := json.Marshal(doc)
	if err != nil {
		writeError(w, fmt.Errorf("answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(httpStatus)
	_, _ = w.Write(append(body, '\n')) // the caller may have gone
}
