package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
)

const (
	maxPath  = 2 << 10
	maxQuery = 8 << 10
	maxBody  = 1 << 20
	// maxDepth bounds how deep objects and arrays of a body lie in one another.
	// The deepest request of the API has four levels.
	maxDepth = 32
	// maxSlow is how many bodies may take longer than slowAfter to arrive.
	maxSlow   = 64
	slowAfter = time.Second
	// writeTimeout bounds how long one write of a reply may wait for its reader.
	writeTimeout = 30 * time.Second
	jsonType     = "application/json"
)

// strict returns the request as the faces see it: its path can be read in one way
// only, its body is there and is one JSON object, and it has no header fields but
// those that mean something. The context carries its caller.
func (h *handler) strict(w http.ResponseWriter, r *http.Request) (*http.Request, error) {
	if r.TLS == nil {
		return nil, refuse(codes.InvalidArgument, "TLS_NEEDED", "this is for TLS connections only")
	}
	if err := checkPath(r.URL); err != nil {
		return nil, err
	}
	query, err := checkQuery(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	for field := range passed {
		for _, v := range r.Header.Values(field) {
			if strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' }) {
				return nil, refuse(codes.InvalidArgument, "INVALID_HEADER", field+": use printable ASCII only")
			}
		}
	}
	if err := h.origin.Check(r); err != nil {
		return nil, refuse(codes.PermissionDenied, "CROSS_ORIGIN", "a browser sent this on behalf of another site")
	}
	if err := precondition(r, query); err != nil {
		return nil, err
	}
	body, err := h.readBody(w, r)
	if err != nil {
		return nil, err
	}
	clean := r.WithContext(withCaller(r))
	clean.Header = http.Header{"Content-Type": {jsonType}}
	clean.Body, clean.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	clean.TransferEncoding = nil
	u := *r.URL
	u.RawPath, u.RawQuery = "", query.Encode()
	clean.URL = &u
	return clean, nil
}

// checkPath refuses a path that others may read in another way than this server:
// one that somebody would clean or unescape. What is left are the unreserved
// characters of RFC 3986, ":", and UTF-8 beyond ASCII, escaped, for domains in
// U-labels.
func checkPath(u *url.URL) error {
	raw := u.EscapedPath() // as it was sent
	invalid := func(why string) error {
		return refuse(codes.InvalidArgument, "INVALID_PATH", "path: "+why)
	}
	switch {
	case len(raw) > maxPath:
		return withHTTP(invalid(fmt.Sprintf("longer than %d octets", maxPath)), http.StatusRequestURITooLong)
	case !strings.HasPrefix(raw, "/"):
		return invalid("it does not begin with a slash")
	case !utf8.ValidString(u.Path):
		return invalid("it is not UTF-8")
	}
	for segment := range strings.SplitSeq(raw[1:], "/") {
		switch segment {
		case "":
			return invalid("an empty segment: leave out double slashes and one at the end")
		case ".", "..":
			return invalid("a segment of dots")
		}
	}
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~:/", c) >= 0:
		case c == '%': // url.Parse has seen two digits behind it
			if octet, err := strconv.ParseUint(raw[i+1:i+3], 16, 8); err != nil || octet < utf8.RuneSelf {
				return invalid(fmt.Sprintf("%s: write this character as it is; those that need an escape are in no name", raw[i:i+3]))
			}
			i += 2
		default:
			return invalid(fmt.Sprintf("%q is in no name", c))
		}
	}
	return nil
}

func checkQuery(raw string) (url.Values, error) {
	if len(raw) > maxQuery {
		return nil, withHTTP(refuse(codes.InvalidArgument, "INVALID_QUERY", fmt.Sprintf("query: longer than %d octets", maxQuery)), http.StatusRequestURITooLong)
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, refuse(codes.InvalidArgument, "INVALID_QUERY", "query: it is not of the form a=b&c=d, with other characters escaped")
	}
	for k, v := range values {
		if len(v) > 1 && k != "update_mask" && k != "updateMask" {
			return nil, refuse(codes.InvalidArgument, "INVALID_QUERY", "query: "+fieldName(k)+" is there twice")
		}
	}
	return values, nil
}

// precondition makes If-Match of a DELETE its etag. A condition that would be
// ignored elsewhere is refused.
func precondition(r *http.Request, query url.Values) error {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	for _, field := range []string{"If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if r.Header.Get(field) != "" {
			return refuse(codes.InvalidArgument, "INVALID_HEADER", field+" is not supported; give the etag")
		}
	}
	match := r.Header.Values("If-Match")
	if len(match) == 0 {
		return nil
	}
	tag, err := strconv.Unquote(match[0])
	if r.Method != http.MethodDelete || len(match) > 1 || err != nil || match[0][0] != '"' || query.Has("etag") {
		return refuse(codes.InvalidArgument, "INVALID_HEADER", "If-Match is for DELETE, with one strong entity tag; elsewhere give the etag in the body")
	}
	query.Set("etag", tag)
	return nil
}

// readBody reads the body, which is empty or one JSON object.
func (h *handler) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := withHTTP(refuse(codes.ResourceExhausted, "BODY_TOO_LARGE", fmt.Sprintf("body: more than %d octets", maxBody)), http.StatusRequestEntityTooLarge)
	if r.ContentLength > maxBody {
		w.Header().Set("Connection", "close")
		return nil, tooLarge
	}
	control := http.NewResponseController(w)
	arrived := h.arrivals.Begin(func() { _ = control.SetReadDeadline(time.Now()) }) // as if its time were over
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	arrived()
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return nil, tooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, withHTTP(refuse(codes.DeadlineExceeded, "BODY_SLOW", "body: it took too long to arrive"), http.StatusRequestTimeout)
	}
	if err != nil {
		return nil, refuse(codes.InvalidArgument, "INVALID_BODY", "body: it is not complete")
	}
	// The server's limit on the time of a request is for reading it.
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, err
	}
	if len(body) == 0 {
		return nil, nil
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodDelete {
		return nil, refuse(codes.InvalidArgument, "INVALID_BODY", "body: a "+r.Method+" has none")
	}
	if err := checkType(r); err != nil {
		return nil, err
	}
	return body, checkJSON(body)
}

// checkType refuses a body of another form. Browsers cannot send this one to
// another site without asking first.
func checkType(r *http.Request) error {
	given := r.Header.Values("Content-Type")
	unsupported := func(why string) error {
		return withHTTP(refuse(codes.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE", why), http.StatusUnsupportedMediaType)
	}
	if len(given) != 1 {
		return unsupported("Content-Type: it has to be there once, as " + jsonType)
	}
	media, params, err := mime.ParseMediaType(given[0])
	if charset := params["charset"]; err != nil || media != jsonType || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return unsupported(fmt.Sprintf("Content-Type: use %s, not %.60q", jsonType, given[0]))
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return unsupported("Content-Encoding: send the body as it is")
	}
	return nil
}

// checkJSON refuses what is not one object, or has a name twice in an object, or
// lies too deep. Its errors say nothing of the body but where, since it may hold
// a secret.
func checkJSON(body []byte) error {
	invalid := func(why string) error {
		return refuse(codes.InvalidArgument, "INVALID_BODY", "body: "+why)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var open []map[string]bool // the names of each object that is open; nil for an array
	wantName := false
	for first := true; first || len(open) > 0; first = false {
		token, err := dec.Token()
		if err != nil {
			return invalid(fmt.Sprintf("it is no JSON, at octet %d", dec.InputOffset()))
		}
		delim, isDelim := token.(json.Delim)
		if first && delim != '{' {
			return invalid("it is no JSON object")
		}
		if name, ok := token.(string); ok && wantName {
			names := open[len(open)-1]
			if names[name] {
				return invalid(fieldName(name) + " is there twice in one object")
			}
			names[name] = true
			wantName = false
			continue
		}
		switch {
		case isDelim && (delim == '{' || delim == '['):
			if len(open) == maxDepth {
				return invalid(fmt.Sprintf("more than %d levels deep", maxDepth))
			}
			var names map[string]bool
			if delim == '{' {
				names = make(map[string]bool)
			}
			open = append(open, names)
		case isDelim:
			open = open[:len(open)-1]
		}
		wantName = len(open) > 0 && open[len(open)-1] != nil
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return invalid(fmt.Sprintf("there is something behind the object, at octet %d", dec.InputOffset()))
	}
	if !utf8.Valid(body) {
		return invalid("it is not UTF-8")
	}
	return nil
}

// patientWriter bounds how long a reply waits for a reader that does not read,
// without bounding how long a reply may last.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func newPatientWriter(w http.ResponseWriter) *patientWriter {
	return &patientWriter{w, http.NewResponseController(w)}
}

// Unwrap is for http.ResponseController.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *patientWriter) Write(p []byte) (int, error) {
	w.limit(writeTimeout)
	defer w.limit(0)
	return w.ResponseWriter.Write(p)
}

// FlushError implements what http.ResponseController looks for.
func (w *patientWriter) FlushError() error {
	w.limit(writeTimeout)
	defer w.limit(0)
	return w.control.Flush()
}

// end bounds what the server writes after the handler has returned.
func (w *patientWriter) end() { w.limit(writeTimeout) }

// limit sets how long writes may take from now on; 0 is for ever.
func (w *patientWriter) limit(d time.Duration) {
	var deadline time.Time
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	_ = w.control.SetWriteDeadline(deadline) // a writer in a test has none
}
