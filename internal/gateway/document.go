package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// callInfo is what a call says beside its answer.
type callInfo struct{ header metadata.MD }

func (c *callInfo) options() []grpc.CallOption { return []grpc.CallOption{grpc.Header(&c.header)} }

// setHeader takes over what callers should see of it.
func (c *callInfo) setHeader(w http.ResponseWriter) {
	for _, id := range c.header.Get("x-request-id") {
		w.Header().Set("X-Request-Id", id)
	}
}

func (c *callInfo) fail(w http.ResponseWriter, err error) {
	c.setHeader(w)
	writeError(w, err)
}

// refuseQuery refuses parameters in the query but the allowed ones, and reports
// whether it did.
func refuseQuery(w http.ResponseWriter, r *http.Request, allowed ...string) bool {
	for _, k := range slices.Sorted(maps.Keys(r.URL.Query())) {
		if !slices.Contains(allowed, k) {
			writeError(w, refuse(codes.InvalidArgument, "INVALID_QUERY", "unknown parameter "+fieldName(k)+" in the query"))
			return true
		}
	}
	return false
}

// readFields reads the fields of the body's object into what they point at. A
// field that is not among them is refused; one that is not there, or null, leaves
// things as they are.
func readFields(r *http.Request, fields map[string]any) error {
	body, err := io.ReadAll(r.Body) // it is in memory
	if err != nil {
		return err
	}
	if len(body) == 0 {
		return nil
	}
	return readObject("body", body, fields)
}

func readObject(field string, raw []byte, fields map[string]any) error {
	invalid := func(format string, args ...any) error {
		return refuse(codes.InvalidArgument, "INVALID_BODY", field+": "+fmt.Sprintf(format, args...))
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(raw, &given); err != nil || given == nil {
		return invalid("it is not of the form that is wanted; %s describes it", descriptionPath)
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		to, ok := fields[name]
		if !ok {
			return invalid("there is no field %s; it may have %s", fieldName(name), strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		}
		if err := json.Unmarshal(given[name], to); err != nil {
			return invalid("field %s has not the type that it should have", name)
		}
	}
	return nil
}

func domainName(brand, domain string) string { return "brands/" + brand + "/domains/" + domain }

// splitDomainName takes brand and domain out of the name of a domain, or of what
// lies below it.
func splitDomainName(name string) (brand, domain string) {
	parts := strings.Split(name, "/")
	if len(parts) < 4 {
		return "", ""
	}
	return parts[1], parts[3]
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func rfc3339(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}

func proven(c *dkimv1.Check) bool { return c.GetFinding() == dkimv1.Check_FINDING_PROVEN }

// algorithmWord is the word for an algorithm, as dkimctl has it: "rsa2048".
func algorithmWord(a dkimv1.KeyAlgorithm) string {
	if a == dkimv1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		return ""
	}
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(a.String(), "KEY_ALGORITHM_"), "_", ""))
}

func parseAlgorithm(field, word string) (dkimv1.KeyAlgorithm, error) {
	for n := range dkimv1.KeyAlgorithm_name {
		if a := dkimv1.KeyAlgorithm(n); algorithmWord(a) == word {
			return a, nil
		}
	}
	return 0, refuse(codes.InvalidArgument, "INVALID_ALGORITHM", fmt.Sprintf("%s: use rsa2048, rsa3072, rsa4096 or ed25519, not %.20q", field, word))
}

// stateWord is the word for the state of a key: "prepared".
func stateWord(s dkimv1.KeyState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "KEY_STATE_"))
}
