package gateway_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// raw sends text as it is, with the administrator's certificate, and returns the
// answer.
func (f *fixture) raw(t testing.TB, text string) answer {
	t.Helper()
	conn := f.connect(t)
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, bufio.NewReader(conn))
}

func (f *fixture) connect(t testing.TB) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", f.addr, f.clientTLS(t, "admin", "alice"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func readAnswer(t testing.TB, r *bufio.Reader) answer {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, body}
}

// A path is read in one way or not at all, and nobody is sent elsewhere.
func TestPaths(t *testing.T) {
	f := newFixture(t)
	provision(t, f, "acme", "spamtrap.dk")
	provision(t, f, "other", "other.example")
	for _, tt := range []struct {
		name, path string
		code       int
		reason     string
	}{
		{"dot segments", cloud + "acme/../other/other.example", 400, "INVALID_PATH"},
		{"one dot", "/v1/./zones", 400, "INVALID_PATH"},
		{"escaped dot segments", cloud + "acme/%2e%2e/other/other.example", 400, "INVALID_PATH"},
		{"half escaped dot segments", cloud + "acme/.%2E/other/other.example", 400, "INVALID_PATH"},
		{"escaped twice", cloud + "acme/%252e%252e/other/other.example", 400, "INVALID_PATH"},
		{"escaped slash", cloud + "acme%2Fother.example", 400, "INVALID_PATH"},
		{"escaped slash in a resource", "/v1/brands/acme%2fdomains%2fspamtrap.dk", 400, "INVALID_PATH"},
		{"escaped backslash", cloud + "acme%5Cspamtrap.dk", 400, "INVALID_PATH"},
		{"backslash", cloud + `acme\spamtrap.dk`, 400, "INVALID_PATH"},
		{"escaped letter", cloud + "%61cme/spamtrap.dk", 400, "INVALID_PATH"},
		{"escaped NUL", cloud + "acme/spamtrap.dk%00", 400, "INVALID_PATH"},
		{"escaped line end", cloud + "acme/spamtrap.dk%0d%0aX-Role:%20admin", 400, "INVALID_PATH"},
		{"double slash", "//v1/zones", 400, "INVALID_PATH"},
		{"double slash within", cloud + "acme//spamtrap.dk", 400, "INVALID_PATH"},
		{"slash at the end", cloud + "acme/", 400, "INVALID_PATH"},
		{"parameters", cloud + "acme;a=b/spamtrap.dk", 400, "INVALID_PATH"},
		{"at sign", cloud + "acme@other/spamtrap.dk", 400, "INVALID_PATH"},
		{"plus", cloud + "acme+other", 400, "INVALID_PATH"},
		{"asterisk", cloud + "*", 400, "INVALID_PATH"},
		{"not UTF-8", cloud + "acme/%FF%FE.example", 400, "INVALID_PATH"},
		{"overlong UTF-8 slash", cloud + "acme%C0%AFspamtrap.dk", 400, "INVALID_PATH"},
		{"fragment", cloud + "acme#/other", 400, "INVALID_PATH"},
		{"very long", cloud + strings.Repeat("a", 3000), 414, "INVALID_PATH"},
		{"root", "/", 400, "INVALID_PATH"},
		{"nothing there", "/v2/zones", 404, "PATH_NOT_FOUND"},
		{"other letters", "/V1/zones", 404, "PATH_NOT_FOUND"},
		{"other letters of the collection", "/v1/Brands/acme", 404, "PATH_NOT_FOUND"},
		{"brand in other letters", "/v1/brands/ACME", 400, "INVALID_BRAND"},
		{"domain with a dot at the end", "/v1/brands/acme/domains/spamtrap.dk.", 400, "INVALID_DOMAIN"},
		{"all brands where one is meant", "/v1/brands/-/domains/spamtrap.dk", 400, "INVALID_BRAND"},
		{"look-alike", "/v1/brands/acme/domains/sp%D0%B0mtrap.dk", 404, "DOMAIN_NOT_FOUND"},
		{"full-width dot", "/v1/brands/acme/domains/spamtrap%EF%BC%8Edk", 200, ""},
		{"a verb that is not there", "/v1/brands/acme/domains/spamtrap.dk:steal", 400, "INVALID_DOMAIN"},
		{"query with a semicolon", cloud + "acme?a=b;c=d", 400, "INVALID_QUERY"},
		{"query with a bad escape", "/v1/zones?pageSize=%zz", 400, "INVALID_QUERY"},
		{"query with a field twice", "/v1/zones?pageSize=1&pageSize=2", 400, "INVALID_QUERY"},
		{"query with a field by both names", "/v1/zones?pageSize=1&page_size=2", 400, "INVALID_REQUEST"},
		{"query with an unknown field", "/v1/zones?size=1", 400, "INVALID_REQUEST"},
		{"query with a field that is in the path", "/v1/brands/acme?name=brands%2Fother", 400, "INVALID_QUERY"},
		{"query with the field in the path beside another", "/v1/brands/acme/domains?parent=brands%2Fother&pageSize=1", 400, "INVALID_REQUEST"},
		{"query with a value of another type", "/v1/zones?pageSize=many", 400, "INVALID_REQUEST"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.unchanged(t, func() {
				a := f.raw(t, "GET "+tt.path+" HTTP/1.1\r\nHost: "+f.addr+"\r\nConnection: close\r\n\r\n")
				if a.header.Get("Location") != "" {
					t.Errorf("sent to %s", a.header.Get("Location"))
				}
				if tt.code == http.StatusOK {
					if a.code != tt.code {
						t.Errorf("%d %s", a.code, a.body)
					}
					return
				}
				a.refused(t, tt.code, tt.reason)
			})
		})
	}
}

func TestBodies(t *testing.T) {
	f := newFixture(t)
	at := "/v1/brands/acme/domains/new.example:provision"
	plain := func(kind string) func(*http.Request) {
		return func(r *http.Request) { r.Header["Content-Type"] = strings.Split(kind, "|") }
	}
	secret := "MC4CAQAwBQYDK2VwBCIEIPrivatePrivatePrivatePrivate"
	for _, tt := range []struct {
		name, method, path, body string
		edit                     func(*http.Request)
		code                     int
		reason                   string
	}{
		{name: "form", body: "{}", edit: plain("application/x-www-form-urlencoded"), code: 415, reason: "UNSUPPORTED_MEDIA_TYPE"},
		{name: "text", body: "{}", edit: plain("text/plain"), code: 415, reason: "UNSUPPORTED_MEDIA_TYPE"},
		{name: "no type", body: "{}", edit: func(r *http.Request) { r.Header.Del("Content-Type") }, code: 415, reason: "UNSUPPORTED_MEDIA_TYPE"},
		{name: "two types", body: "{}", edit: plain("application/json|text/plain"), code: 415, reason: "UNSUPPORTED_MEDIA_TYPE"},
		{name: "other characters", body: "{}", edit: plain("application/json; charset=utf-7"), code: 415, reason: "UNSUPPORTED_MEDIA_TYPE"},
		{name: "compressed", body: "{}", edit: func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }, code: 415, reason: "UNSUPPORTED_MEDIA_TYPE"},
		{name: "too large", body: `{"name":"` + strings.Repeat("a", 1<<20) + `"}`, code: 413, reason: "BODY_TOO_LARGE"},
		{name: "no object", body: `[]`, code: 400, reason: "INVALID_BODY"},
		{name: "null", body: `null`, code: 400, reason: "INVALID_BODY"},
		{name: "cut off", body: `{"name":`, code: 400, reason: "INVALID_BODY"},
		{name: "two objects", body: `{}{}`, code: 400, reason: "INVALID_BODY"},
		{name: "more behind it", body: `{} x`, code: 400, reason: "INVALID_BODY"},
		{name: "comment", body: `{/**/}`, code: 400, reason: "INVALID_BODY"},
		{name: "field twice", body: `{"testing":true,"testing":false}`, code: 400, reason: "INVALID_BODY"},
		{name: "field twice, once escaped", body: `{"testing":true,"test\u0069ng":false}`, code: 400, reason: "INVALID_BODY"},
		{name: "field by both names", body: `{"ttlSeconds":60,"ttl_seconds":70}`, code: 400, reason: "INVALID_REQUEST"},
		{name: "not UTF-8", body: "{\"name\":\"\xff\"}", code: 400, reason: "INVALID_BODY"},
		{name: "deep", body: `{"selectors":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, code: 400, reason: "INVALID_BODY"},
		{name: "very deep", body: strings.Repeat(`{"a":`, 100000) + "1" + strings.Repeat("}", 100000), code: 400, reason: "INVALID_BODY"},
		{name: "unknown field", body: `{"role":"admin"}`, code: 400, reason: "INVALID_REQUEST"},
		{name: "secret as a field", body: `{"` + secret + `":1}`, code: 400, reason: "INVALID_REQUEST"},
		{name: "secret as a field twice", body: `{"` + secret + `":1,"` + secret + `":1}`, code: 400, reason: "INVALID_BODY"},
		{name: "secret as a field of another face", method: "PUT", path: cloud + "acme/new.example", body: `{"` + secret + `":1}`, code: 400, reason: "INVALID_BODY"},
		{name: "secret in the query", method: "GET", path: "/v1/zones?" + secret + "=1", code: 400, reason: "INVALID_REQUEST"},
		{name: "value of another type", body: `{"ttlSeconds":"` + secret + `"}`, code: 400, reason: "INVALID_REQUEST"},
		{name: "value of no enum", body: `{"algorithm":"` + secret + `"}`, code: 400, reason: "INVALID_REQUEST"},
		{name: "number out of range", body: `{"ttlSeconds":1e400}`, code: 400, reason: "INVALID_REQUEST"},
		{name: "fields in the query", path: at + "?testing=true", body: `{}`, code: 400, reason: "INVALID_QUERY"},
		{name: "body of a GET", method: "GET", path: "/v1/zones", body: `{}`, code: 400, reason: "INVALID_BODY"},
		{name: "body of a DELETE", method: "DELETE", path: "/v1/brands/acme", body: `{"name":"brands/other"}`, code: 400, reason: "INVALID_BODY"},
		{name: "method", method: "PUT", path: at, body: `{}`, code: 405, reason: "METHOD_NOT_ALLOWED"},
		{name: "method of none", method: "BREW", path: at, code: 405, reason: "METHOD_NOT_ALLOWED"},
		{name: "options", method: "OPTIONS", path: at, code: 405, reason: "METHOD_NOT_ALLOWED"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = "POST"
			}
			if tt.path == "" {
				tt.path = at
			}
			if tt.edit == nil {
				tt.edit = func(*http.Request) {}
			}
			f.unchanged(t, func() {
				a := f.do(t, tt.method, tt.path, tt.body, tt.edit)
				a.refused(t, tt.code, tt.reason)
				if strings.Contains(string(a.body), "Private") {
					t.Errorf("the answer has the value: %s", a.body)
				}
			})
		})
	}
	t.Run("as it should be", func(t *testing.T) {
		a := f.do(t, "POST", at, ` {"algorithm": "KEY_ALGORITHM_ED25519"} `, plain("application/json; charset=UTF-8"))
		if a.code != http.StatusOK {
			t.Errorf("%d %s", a.code, a.body)
		}
	})
}

func TestAllow(t *testing.T) {
	f := newFixture(t)
	for path, want := range map[string]string{
		"/v1/brands/acme/domains/new.example": "GET, PATCH, DELETE",
		"/v1/zones":                           "GET, POST",
		cloud + "acme":                        "GET",
		cloud + "acme/new.example":            "GET, PUT, DELETE",
	} {
		a := f.do(t, "OPTIONS", path, "")
		a.refused(t, http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED")
		wantEqual(t, "Allow of "+path, a.header.Get("Allow"), want)
	}
}

// What a header field says has no effect but that of the few that have one.
func TestHeaders(t *testing.T) {
	f := newFixture(t)
	provision(t, f, "acme", "spamtrap.dk")
	stranger := f.as(t, "", "")
	for _, field := range []string{
		"Grpc-Metadata-Authorization: Basic YWNtZTphY21l", "Grpc-Metadata-X-Forwarded-Client-Cert: admin", "X-Forwarded-Client-Cert: URI=spiffe://dkimzone/role/admin/alice",
		"X-Forwarded-For: 127.0.0.1", "X-Real-Ip: 127.0.0.1", "X-Http-Method-Override: DELETE", "X-Original-Url: /healthz", "X-Request-Id: 1",
	} {
		name, value, _ := strings.Cut(field, ": ")
		t.Run(name, func(t *testing.T) {
			f.unchanged(t, func() {
				set := func(r *http.Request) { r.Header.Set(name, value) }
				f.doAs(t, stranger, "GET", "/v1/zones", "", set).refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
				if a := f.do(t, "GET", "/v1/brands/acme/domains/spamtrap.dk", "", set); a.code != http.StatusOK {
					t.Errorf("%d %s", a.code, a.body)
				}
				f.do(t, "POST", "/v1/brands/acme/domains/none.example:check", "", set).refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")
			})
		})
	}
	t.Run("what to show", func(t *testing.T) {
		a := f.doAs(t, stranger, "GET", "/v1/zones", "")
		wantEqual(t, "WWW-Authenticate", a.header.Values("WWW-Authenticate"), []string{`Bearer realm="dkimzone"`, `Basic realm="dkimzone", charset="UTF-8"`})
	})
	t.Run("line end in Authorization", func(t *testing.T) {
		a := f.raw(t, "GET /v1/zones HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \x01\r\nConnection: close\r\n\r\n")
		if a.code != http.StatusBadRequest {
			t.Errorf("%d %s", a.code, a.body)
		}
	})
	t.Run("another site", func(t *testing.T) {
		f.unchanged(t, func() {
			a := f.do(t, "POST", "/v1/brands/acme/domains/spamtrap.dk:check", "", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") })
			a.refused(t, http.StatusForbidden, "CROSS_ORIGIN")
			a = f.do(t, "DELETE", cloud+"acme/spamtrap.dk", "", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
			a.refused(t, http.StatusForbidden, "CROSS_ORIGIN")
		})
	})
	t.Run("conditions that nobody looks at", func(t *testing.T) {
		f.unchanged(t, func() {
			for _, field := range []string{"If-None-Match", "If-Unmodified-Since"} {
				f.do(t, "PUT", cloud+"acme/new.example", "", func(r *http.Request) { r.Header.Set(field, "*") }).refused(t, http.StatusBadRequest, "INVALID_HEADER")
			}
			f.do(t, "PUT", cloud+"acme/new.example", "", func(r *http.Request) { r.Header.Set("If-Match", `"a"`) }).refused(t, http.StatusBadRequest, "INVALID_HEADER")
			f.do(t, "DELETE", cloud+"acme/spamtrap.dk", "", func(r *http.Request) { r.Header.Set("If-Match", `W/"a"`) }).refused(t, http.StatusBadRequest, "INVALID_HEADER")
		})
	})
}

// Two messages in what one side may take for one.
func TestSmuggling(t *testing.T) {
	f := newFixture(t)
	provision(t, f, "acme", "spamtrap.dk")
	inner := "DELETE " + cloud + "acme/spamtrap.dk HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, tt := range []struct{ name, fields, body string }{
		{"length and chunks", fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", len(inner)+5), "0\r\n\r\n" + inner},
		{"two lengths", fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n", len(inner)), inner},
		{"odd encoding", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n" + inner},
		{"space before the colon", "Content-Length : 5\r\n", "hello" + inner},
		{"folded field", "X-A: b\r\n Content-Length: 5\r\n", "hello" + inner},
		{"length of another sign", "Content-Length: +5\r\n", "hello" + inner},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.unchanged(t, func() {
				conn := f.connect(t)
				fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%s\r\n%s", tt.fields, tt.body)
				// The last one ends the connection, if nothing before has.
				fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
				if _, err := io.ReadAll(conn); err != nil {
					t.Logf("closed: %v", err)
				}
			})
		})
	}
}

// A sender that sends slowly is not waited for, a call that takes its time is.
func TestSlow(t *testing.T) {
	f := newFixture(t)
	slowly := func(t *testing.T) {
		conn := f.connect(t)
		fmt.Fprintf(conn, "PUT %sacme/slow.example HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{", cloud)
		readAnswer(t, bufio.NewReader(conn)).refused(t, http.StatusRequestTimeout, "BODY_SLOW")
	}
	t.Run("body", slowly)
	t.Run("header", func(t *testing.T) {
		conn := f.connect(t)
		fmt.Fprint(conn, "GET /v1/zones HTTP/1.1\r\nHost: a\r\nX-A: ")
		if rest, err := io.ReadAll(conn); err != nil || strings.Contains(string(rest), "200") {
			t.Errorf("%q, %v", rest, err)
		}
	})
	t.Run("stream", func(t *testing.T) { // longer than a request may take to arrive
		conn := f.connect(t)
		fmt.Fprint(conn, "GET /v1/brands/acme/domains:watch HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		defer conn.Close() // first, since the body has no end
		lines := bufio.NewScanner(resp.Body)
		lines.Scan() // SYNCED
		slowly(t)    // which takes that long
		provision(t, f, "acme", "later.example")
		if !lines.Scan() || !strings.Contains(lines.Text(), "later.example") {
			t.Errorf("%q, %v", lines.Text(), lines.Err())
		}
	})
}

// The gateway tells of trouble as the service does.
func TestErrorsOfTheService(t *testing.T) {
	f := newFixture(t)
	t.Run("store away", func(t *testing.T) {
		f.fake.SetError(io.ErrUnexpectedEOF)
		defer f.fake.SetError(nil)
		a := f.do(t, "GET", cloud+"acme", "")
		if a.code != http.StatusInternalServerError && a.code != http.StatusServiceUnavailable {
			t.Errorf("%d %s", a.code, a.body)
		}
		if strings.Contains(string(a.body), io.ErrUnexpectedEOF.Error()) {
			t.Errorf("what is inside comes out: %s", a.body)
		}
	})
	t.Run("panic", func(t *testing.T) {
		f.act = func() { panic("made up") }
		defer func() { f.act = nil }()
		f.do(t, "GET", "/v1/zones", "").refused(t, http.StatusInternalServerError, "INTERNAL")
	})
	t.Run("role", func(t *testing.T) {
		signer := f.as(t, "signer", "mx")
		f.doAs(t, signer, "PUT", cloud+"acme/spamtrap.dk", "").refused(t, http.StatusForbidden, "PERMISSION_DENIED")
		a := f.doAs(t, signer, "POST", "/v1/signers:register", `{"signer":{"description":"of the first floor"}}`)
		if doc := a.document(t); a.code != http.StatusOK || doc["name"] != "signers/mx" {
			t.Errorf("%d %s", a.code, a.body)
		}
	})
}
