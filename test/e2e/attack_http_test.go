package e2e_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// raw is a TLS connection of somebody who writes HTTP/1.1 by hand.
func (g *target) raw(t *testing.T) *tls.Conn {
	t.Helper()
	conn, err := tls.DialWithDialer(g.dialer(), "tcp", g.http, trusting(t, g.in.admin.CA))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(callLimit)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// send sends text, "\n" for the end of a line, and reads all that comes back.
func (g *target) send(t *testing.T, text string) string {
	t.Helper()
	conn := g.raw(t)
	if _, err := io.WriteString(conn, strings.ReplaceAll(text, "\n", "\r\n")); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Logf("send: %v", err) // it need not read all
	}
	if !strings.Contains(text, "Connection: close") { // the last one ends the connection, if nothing before has
		_, _ = io.WriteString(conn, "GET "+lastPath+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	}
	all, _ := io.ReadAll(conn)
	return string(all)
}

// lastPath is nowhere else.
const lastPath = "/last"

// statuses are the status codes of the answers on a connection.
func statuses(all string) []string {
	var found []string
	for line := range strings.Lines(all) {
		if strings.HasPrefix(line, "HTTP/1.1 ") {
			found = append(found, line[9:12])
		}
	}
	return found
}

// attackHTTP sends what may be read in two ways, is too large or is no HTTP, with
// the credentials of brand acme.
func attackHTTP(t *testing.T, g *target) {
	t.Helper()
	auth := "Authorization: " + g.good["secret"] + "\n"
	get := func(path string) string {
		return "GET " + path + " HTTP/1.1\nHost: a\n" + auth + "Connection: close\n\n"
	}
	post := func(path, fields, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\nHost: a\n%sContent-Type: application/json\n%sContent-Length: %d\nConnection: close\n\n%s", path, auth, fields, len(body), body)
	}
	inner := "DELETE " + cloudapi + "acme/ours.example HTTP/1.1\nHost: a\n" + auth + "\n"
	chunked := "0\n\n" + inner
	provision := "/v1/brands/acme/domains/new.example:provision"
	big := strings.Repeat("a", 1<<20)
	for _, tt := range []struct {
		name, text string
		status     string // of the answer, the only one; "*" for any refusal
	}{
		{"dot segments", get(cloudapi + "acme/../other/theirs.example"), "400"},
		{"escaped dot segments", get(cloudapi + "acme/%2e%2e/other/theirs.example"), "400"},
		{"half escaped dot segments", get(cloudapi + "acme/.%2E/other"), "400"},
		{"dot segments escaped twice", get(cloudapi + "acme/%252e%252e/other"), "400"},
		{"escaped slash", get(cloudapi + "acme%2ftheirs.example"), "400"},
		{"escaped slash in a resource", get("/v1/brands/acme%2F..%2Fother/domains/theirs.example"), "400"},
		{"escaped letters", get("/v1/brands/%6f%74%68%65%72"), "400"},
		{"backslash", get(cloudapi + `acme\..\nobody`), "400"},
		{"double slash", get("/" + cloudapi + "other"), "400"},
		{"double slash within", get(cloudapi + "/other"), "400"},
		{"slash at the end", get(cloudapi + "other/"), "400"},
		{"parameters", get(cloudapi + "acme;brand=other"), "400"},
		{"NUL", get(cloudapi + "other%00"), "400"},
		{"overlong slash", get(cloudapi + "acme%c0%afother"), "400"},
		{"line end in the path", get(cloudapi + "acme%0d%0aX-A:%20b"), "400"},
		{"mixed case of the face", get("/CloudAPI/v2/mail/dkim/other"), "404"},
		{"mixed case of the collection", get("/v1/Brands/other"), "404"},
		{"mixed case of the brand", get("/v1/brands/OTHER"), "403"},
		{"mixed case of the domain", get("/v1/brands/other/domains/THEIRS.example"), "403"},
		{"trailing dot of the brand", get(cloudapi + "other./theirs.example"), "403"},
		{"trailing dot of the domain", get(cloudapi + "acme/ours.example."), "400"},
		{"U-label look-alike of the brand", get(cloudapi + "%D0%B0cme/ours.example"), "403"},
		{"U-label look-alike of the domain", get(cloudapi + "acme/%D0%BEurs.example"), "404"},
		{"full-width domain of another brand", get(cloudapi + "other/%EF%BD%94heirs.example"), "403"},
		{"all brands", get("/v1/brands/-/domains"), "403"},
		{"all brands, other face", get(cloudapi + "-"), "400"},
		{"brand in the query", get(cloudapi + "acme?brand=other"), "400"},
		{"brand of a record in the query", get("/v1/domains/theirs.example/dns_records?brand=other"), "403"},
		{"brand in the query twice", get("/v1/domains/ours.example/dns_records?brand=acme&brand=other"), "400"},
		{"name in the query", get("/v1/brands/acme?name=brands/other"), "400"},
		{"parent in the query", get("/v1/brands/acme/domains?parent=brands/other"), "400"},
		{"token in the query", get("/v1/brands/acme?access_token=" + strings.TrimPrefix(g.good["token"], "Bearer ")), "400"},
		{"absolute URL of another host", get("https://evil.example/v1/brands/other"), "403"},
		{"connect", "CONNECT 127.0.0.1:1 HTTP/1.1\nHost: a\nConnection: close\n" + auth + "\n", "400"},
		{"asterisk", "OPTIONS * HTTP/1.1\nHost: a\n" + auth + "Connection: close\n\n", "200"},
		{"path of 3 KiB", get(cloudapi + strings.Repeat("a", 3<<10)), "414"},
		{"query of 9 KiB", get("/v1/brands/acme?a=" + strings.Repeat("a", 9<<10)), "414"},

		{"name in the body", post("/v1/brands/acme/domains/none.example:rotate", "", `{"name":"`+ourDomain+`"}`), "404"},
		{"brand in the body", post("/v1/domains/theirs.example/dns_records", "", `{"type":"TXT","name":"x._domainkey","brand":"other","value":"v=DKIM1; k=ed25519; p=`+publicText(newEd25519(t))+`"}`), "403"},
		{"brands in query and body", post("/v1/domains/theirs.example/dns_records?brand=acme", "", `{"type":"TXT","name":"x._domainkey","brand":"other","value":"v=DKIM1; k=ed25519; p=`+publicText(newEd25519(t))+`"}`), "400"},
		{"body of 1 MiB", post(provision, "", `{"filler":"`+big+`"}`), "413"},
		{"body of 1 TiB, as announced", "POST " + provision + " HTTP/1.1\nHost: a\n" + auth + "Content-Type: application/json\nContent-Length: 1099511627776\nConnection: close\n\n{", "413"},
		{"body in chunks without end", "POST " + provision + " HTTP/1.1\nHost: a\n" + auth + "Content-Type: application/json\nTransfer-Encoding: chunked\nConnection: close\n\n200000\n" + big + big, "413"},
		{"depth of 10 000", post(provision, "", strings.Repeat(`{"a":`, 10000)+"1"+strings.Repeat("}", 10000)), "400"},
		{"depth of lists", post(provision, "", `{"selectors":`+strings.Repeat("[", 50000)+strings.Repeat("]", 50000)+"}"), "400"},
		{"field twice", post(provision, "", `{"testing":false,"testing":true}`), "400"},
		{"field twice, once escaped", post(provision, "", `{"testing":false,"\u0074esting":true}`), "400"},
		{"field by both names", post(provision, "", `{"ttlSeconds":60,"ttl_seconds":600}`), "400"},
		{"unknown field", post(provision, "", `{"__proto__":{"role":"admin"}}`), "400"},
		{"huge number", post(provision, "", `{"ttlSeconds":1e999999999}`), "400"},
		{"private key in the wrong place", post(provision, "", `{"algorithm":"`+strings.ReplaceAll(privateKeys(t)["PKCS8 PEM"], "\n", `\n`)+`"}`), "400"},
		{"private key as a field", post(provision, "", `{"`+strings.ReplaceAll(privateKeys(t)["PKCS8 PEM"], "\n", `\n`)+`":1}`), "400"},
		{"two types", post(provision, "Content-Type: text/plain\n", `{}`), "415"},
		{"compressed", post(provision, "Content-Encoding: gzip\n", `{}`), "415"},

		{"header of 40 KiB", "GET /v1/brands/acme HTTP/1.1\nHost: a\n" + auth + "X-A: " + strings.Repeat("a", 40<<10) + "\n\n", "431"},
		{"3000 header fields", "GET /v1/brands/acme HTTP/1.1\nHost: a\n" + auth + strings.Repeat("X-A: aaaaaaaa\n", 3000) + "\n", "431"},
		{"authorization of 20 KiB", "GET /v1/brands/acme HTTP/1.1\nHost: a\nConnection: close\nAuthorization: Bearer " + strings.Repeat("a", 20<<10) + "\n\n", "401"},
		{"two authorization fields", "GET /v1/brands/acme HTTP/1.1\nHost: a\nConnection: close\n" + auth + "authorization: Bearer x\n\n", "401"},
		{"authorization, folded", "GET /v1/brands/acme HTTP/1.1\nHost: a\nConnection: close\nAuthorization: Bearer x\n " + g.good["secret"] + "\n\n", "401"},
		{"authorization with a space before the colon", "GET /v1/brands/acme HTTP/1.1\nHost: a\nConnection: close\nAuthorization : " + g.good["secret"] + "\n\n", "400"},
		{"authorization by gRPC's name", "GET /v1/brands/acme HTTP/1.1\nHost: a\nConnection: close\nGrpc-Metadata-Authorization: " + g.good["secret"] + "\n\n", "401"},
		{"authorization by an underscore", "GET /v1/brands/acme HTTP/1.1\nHost: a\nConnection: close\nProxy-Authorization: " + g.good["secret"] + "\nX_Authorization: " + g.good["secret"] + "\n\n", "401"},
		{"certificate in a header", "GET /v1/zones HTTP/1.1\nHost: a\nConnection: close\nX-Forwarded-Client-Cert: URI=spiffe://dkimzone/role/admin/alice\nSsl-Client-Verify: SUCCESS\n\n", "401"},
		{"role in headers", "GET /v1/zones HTTP/1.1\nHost: a\nConnection: close\n" + auth + "X-Role: admin\nGrpc-Metadata-Role: admin\nX-Remote-User: admin\n\n", "403"},
		{"method override", post("/v1/brands/acme/domains/none.example:check", "X-HTTP-Method-Override: DELETE\nX-HTTP-Method: DELETE\n", `{}`), "404"},
		{"method override in the query", post("/v1/"+ourDomain+"?_method=DELETE", "", `{}`), "405"},
		{"other URL", "GET /healthz HTTP/1.1\nHost: a\nConnection: close\nX-Original-URL: /v1/zones\nX-Rewrite-URL: /v1/zones\n\n", "200"},
		{"trailer", "POST /v1/brands/other/domains/theirs.example:check HTTP/1.1\nHost: a\nTrailer: Authorization\nContent-Type: application/json\nTransfer-Encoding: chunked\nConnection: close\n\n2\n{}\n0\n" + auth + "\n", "401"},
		{"another site", post(provision, "Origin: https://evil.example\nSec-Fetch-Site: cross-site\n", `{}`), "403"},

		{"length and chunks", "POST " + provision + " HTTP/1.1\nHost: a\n" + fmt.Sprintf("Content-Type: application/json\nContent-Length: %d\nTransfer-Encoding: chunked\n\n", len(chunked)) + chunked, "*"},
		{"chunks and length", "POST " + provision + " HTTP/1.1\nHost: a\nContent-Type: application/json\nTransfer-Encoding: chunked\nContent-Length: 5\n\n" + chunked, "*"},
		{"two lengths", "GET /healthz HTTP/1.1\nHost: a\n" + fmt.Sprintf("Content-Length: 0\nContent-Length: %d\n\n", len(inner)) + inner, "400"},
		{"list of lengths", "GET /healthz HTTP/1.1\nHost: a\nContent-Length: 0, 5\n\n" + inner, "400"},
		{"two encodings", "POST /healthz HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n\n" + chunked, "*"},
		{"odd encoding", "POST /healthz HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked\n\n" + chunked, "*"},
		{"encoding with a tab", "POST /healthz HTTP/1.1\nHost: a\nTransfer-Encoding:\tchunked\v\n\n" + chunked, "400"},
		{"length with a sign", "GET /healthz HTTP/1.1\nHost: a\nContent-Length: +0\n\n" + inner, "400"},
		{"chunk of a negative size", "POST " + provision + " HTTP/1.1\nHost: a\nContent-Type: application/json\nTransfer-Encoding: chunked\n\n-1\n" + inner, "*"},
		{"two hosts", "GET /v1/brands/acme HTTP/1.1\nHost: a\nHost: b\n" + auth + "\n", "400"},
		{"no HTTP", "\x16\x03\x01\x00\x05hello\n\n", "400"},
		{"HTTP/0.9", "GET /v1/brands/acme\n\n", "400"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g.unchanged(t, func() {
				all := g.send(t, tt.text)
				got := statuses(all)
				switch first := strings.Join(got[:min(1, len(got))], ""); {
				case tt.status != "*" && first != tt.status:
					t.Errorf("answered %q, want %s", all[:min(len(all), 1000)], tt.status)
				case len(got) > 1:
					t.Errorf("answered %d times: %q", len(got), all)
				case tt.status == "*" && len(got) > 0 && (first[0] == '2' || first[0] == '3'):
					t.Errorf("answered %q", all)
				}
				for _, hidden := range []string{"theirs.example:", "PRIVATE KEY", "\nLocation:"} {
					if strings.Contains(all, hidden) {
						t.Errorf("the answer has %q: %q", hidden, all)
					}
				}
			})
		})
	}
	t.Run("gRPC message of 2 MiB", func(t *testing.T) {
		g.unchanged(t, func() {
			req := &dkimv1.GetDomainRequest{Name: ourDomain + strings.Repeat("a", 2<<20)}
			checkStatus(t, g.attacker(t, "token").call(t, "/dkim.v1.KeyManagement/DeleteDomain", req, &dkimv1.Domain{}), codes.ResourceExhausted, "")
		})
	})
	t.Run("gRPC metadata of 64 KiB", func(t *testing.T) {
		a := g.attacker(t, "token")
		ctx := metadata.AppendToOutgoingContext(g.as(t, "token"), "x-a", strings.Repeat("a", 64<<10))
		_, err := dkimv1.NewKeyManagementClient(a.conn).GetDomain(ctx, &dkimv1.GetDomainRequest{Name: ourDomain})
		if err == nil {
			t.Error("it is accepted")
		}
	})
	t.Run("gRPC metadata that are headers elsewhere", func(t *testing.T) {
		ctx := metadata.AppendToOutgoingContext(deadline(t), "grpc-metadata-authorization", g.good["admin"], "grpcgateway-authorization", g.good["admin"],
			"x-forwarded-for", "127.0.0.1", "x-forwarded-client-cert", "URI=spiffe://dkimzone/role/admin/alice", "authorization-bin", g.good["admin"])
		_, err := dkimv1.NewKeyManagementClient(g.attacker(t, "").conn).ListZones(ctx, &dkimv1.ListZonesRequest{})
		checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
	})
}

// attackBruteForce guesses at the secret of brand acme from one address, and then
// from many.
func attackBruteForce(t *testing.T, g *target) {
	t.Helper()
	guess := func(i int) string { return basicAuth("acme", fmt.Sprintf("guess-%d", i)) }
	one := g.attacker(t, "")
	g.unchanged(t, func() {
		limited, refused := 0, 0
		for i := range 60 {
			one.authorization = []string{guess(i)}
			// He would like to be taken for somebody else each time.
			got := one.do(t, "GET", cloudapi+"acme", "", func(r *http.Request) {
				r.Header.Set("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i))
				r.Header.Set("Forwarded", fmt.Sprintf("for=192.0.2.%d", i))
				r.Header.Set("X-Real-Ip", fmt.Sprintf("192.0.2.%d", i))
			})
			switch got.status {
			case http.StatusTooManyRequests:
				limited++
				if got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "TOO_MANY_ATTEMPTS") {
					t.Errorf("%v %v", got.header, got)
				}
			case http.StatusUnauthorized:
				refused++
			default:
				t.Errorf("answered %v", got)
			}
		}
		if limited < 30 {
			t.Errorf("of 60 guesses %d were looked at", refused)
		}
		// Nor over gRPC, nor with a token. He has one attempt more every few seconds.
		one.authorization = []string{"Bearer dkz_aaaaaaaaaaaa_" + strings.Repeat("A", 32)}
		var err error
		for range 3 {
			err = one.call(t, "/dkim.v1.KeyManagement/GetDomain", &dkimv1.GetDomainRequest{Name: ourDomain}, &dkimv1.Domain{})
			if status.Code(err) != codes.Unauthenticated {
				break
			}
		}
		checkStatus(t, err, codes.ResourceExhausted, "TOO_MANY_ATTEMPTS")

		var many sync.WaitGroup
		for i := range 40 {
			a := g.stranger(t, nil, guess(1000+i))
			many.Go(func() { a.do(t, "GET", cloudapi+"acme", "") })
		}
		many.Wait()
	})
	// Nobody else is locked out: not the brand with a secret that was never shown
	// before, not others.
	fresh := g.newSecret(t, "acme")
	for who, a := range map[string]*attacker{
		"the brand": g.attacker(t, "secret"), "the brand with a new secret": g.stranger(t, nil, basicAuth("acme", fresh.GetSecret())),
		"another brand": g.attacker(t, "their secret"), "a token": g.attacker(t, "token"), "a JWT": g.attacker(t, "JWT"),
	} {
		if got := a.do(t, "GET", "/v1/caller", ""); got.status != http.StatusOK {
			t.Errorf("%s: %v", who, got)
		}
	}
	one.authorization = []string{g.good["secret"]} // from the guesser's address, but known
	if got := one.do(t, "GET", "/v1/caller", ""); got.status != http.StatusOK {
		t.Errorf("at the address of the guesser: %v", got)
	}
	g.revokeSecret(t, fresh.GetName())
}

// attackRequestIDs calls with request ids that were there before, or that are
// none.
func attackRequestIDs(t *testing.T, g *target) {
	t.Helper()
	id := func(v ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["X-Request-Id"] = v }
	}
	owner, nobody := g.attacker(t, "token"), g.attacker(t, "")
	first := owner.do(t, "PUT", cloudapi+"acme/replayed.example", `{"algorithm":"ed25519"}`, id("replayed-1"))
	if first.status != http.StatusOK || first.header.Get("X-Request-Id") != "replayed-1" {
		t.Fatalf("%v %v", first.header, first)
	}
	g.unchanged(t, func() {
		nobody.do(t, "PUT", cloudapi+"acme/replayed.example", `{"algorithm":"ed25519"}`, id("replayed-1")).refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
		g.attacker(t, "their secret").do(t, "PUT", cloudapi+"acme/replayed.example", `{"algorithm":"ed25519"}`, id("replayed-1")).refused(t, http.StatusForbidden, "PERMISSION_DENIED")
		for _, odd := range [][]string{{"a", "b"}, {strings.Repeat("a", 65)}, {"a level=ERROR"}, {`a"b`}, {""}, {"../../x"}} {
			got := owner.do(t, "GET", "/v1/"+ourDomain, "", id(odd...))
			if made := got.header.Values("X-Request-Id"); got.status != http.StatusOK || len(made) != 1 || made[0] == odd[0] {
				t.Errorf("%q: %v %v", odd, got.header, got)
			}
		}
	})
	// The same id does not make a second call the first.
	got := owner.do(t, "DELETE", cloudapi+"acme/replayed.example", "", id("replayed-1"))
	if got.status != http.StatusOK {
		t.Errorf("%v", got)
	}
	owner.do(t, "GET", cloudapi+"acme/replayed.example", "", id("replayed-1")).refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")
}

// patience is how long a server may take at most to end a connection that hangs.
const patience = time.Minute

// slowAttack is connections that hang.
type slowAttack struct {
	g     *target
	conns []slowConn
}

type slowConn struct {
	what  string
	ended chan error // gets how it ended
}

// startSlow opens many connections that send a little and then nothing.
func (g *target) startSlow(t *testing.T) *slowAttack {
	t.Helper()
	s := &slowAttack{g: g}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	open := func(what, addr, text string, secure bool) {
		c := slowConn{what, make(chan error, 1)}
		s.conns = append(s.conns, c)
		dialer, config := g.dialer(), trusting(t, g.in.admin.CA)
		if addr == g.grpc {
			config.NextProtos = []string{"h2"}
		}
		go func() {
			var conn net.Conn
			var err error
			if secure {
				conn, err = (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, "tcp", addr)
			} else {
				conn, err = dialer.DialContext(ctx, "tcp", addr)
			}
			if err != nil {
				c.ended <- err
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, err = io.WriteString(conn, text)
			if err == nil {
				_, err = io.Copy(io.Discard, bufio.NewReader(conn))
			}
			c.ended <- err
		}()
	}
	for range 50 {
		open("no handshake for HTTPS", g.http, "", false)
		open("no handshake for gRPC", g.grpc, "\x16", false)
		open("half a header", g.http, "GET /v1/zones HTTP/1.1\r\nHost: a\r\nX-A: b", true)
		open("half a preface", g.grpc, "PRI * HT", true)
	}
	return s
}

// check looks whether others were served meanwhile, and the hanging connections
// are ended by the server.
func (s *slowAttack) check(t *testing.T) {
	t.Helper()
	if got := s.g.attacker(t, "token").do(t, "GET", "/v1/caller", ""); got.status != http.StatusOK {
		t.Errorf("meanwhile: %v", got)
	}
	for _, c := range s.conns {
		var timeout net.Error
		if err := <-c.ended; errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: the server waits for more than %v", c.what, patience)
		}
	}
}
