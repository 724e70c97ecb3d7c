// Package gateway is the API over HTTPS, in four faces of one service:
//
//   - /v1/…, the resources of the API, by the google.api.http rules of its methods;
//   - /cloudapi/v2/mail/dkim/…, the provisioning interface that systems of
//     mailbox providers speak;
//   - /v1/domains/{domain}/dns_records, for publishing a DKIM TXT value that was
//     made elsewhere;
//   - /vault/v1/…, which signers read their keys from as from a Vault.
//
// It decides nothing. Each request becomes a call of the service in this process,
// through the interceptors that a gRPC call goes through, with the caller's TLS
// state, address and Authorization header: what is allowed over the one is allowed
// over the other. What it adds is that it takes no request that could be read in
// two ways; see [New].
package gateway

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/limit"
)

// Options says what a gateway hands its requests to.
type Options struct {
	// Register registers the services of the API, as it does with a gRPC server.
	Register func(grpc.ServiceRegistrar)
	// Unary and Stream are the interceptors of the gRPC server, the outermost first.
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
	// Signing returns nil as soon as signers can be answered, else why not.
	Signing func() error
	Logger  *slog.Logger
}

// New returns the handler of the HTTPS listener. It serves TLS connections only.
//
// A path must be written in the one way in which it is looked at: a double or
// trailing slash, a dot segment and an escaped ASCII character are refused with 400
// and never redirected. A body is one JSON object of at most 1 MiB, 32 levels deep,
// without unknown or duplicate fields, with Content-Type application/json. Of the
// header fields Authorization, X-Request-Id, If-Match and Content-Type have an
// effect, and no others.
func New(o Options) (http.Handler, error) {
	conn := newChannel(o)
	v1, err := newRoutes(conn)
	if err != nil {
		return nil, fmt.Errorf("REST routes: %w", err)
	}
	doc, err := description()
	if err != nil {
		return nil, fmt.Errorf("description of the REST API: %w", err)
	}
	api := dkimv1.NewKeyManagementClient(conn)
	return &handler{
		v1: v1, description: doc, logger: o.Logger, arrivals: limit.NewArrivals(maxSlow, slowAfter),
		cloud: cloudAPI{api}, records: dnsRecords{api, dkimv1.NewCallersClient(conn)},
		vault: vault{dkimv1.NewSignerClient(conn), dkimv1.NewCallersClient(conn), o.Signing},
	}, nil
}

// handler is the root of all paths.
type handler struct {
	v1          http.Handler
	cloud       cloudAPI
	records     dnsRecords
	vault       vault
	description []byte
	logger      *slog.Logger
	origin      http.CrossOriginProtection
	arrivals    *limit.Arrivals
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := newPatientWriter(w)
	defer out.end()
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p != http.ErrAbortHandler { //nolint:errorlint // it is panicked with as it is
			h.logger.LogAttrs(r.Context(), slog.LevelError, "request panicked",
				slog.String("path", r.URL.Path), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		}
		panic(http.ErrAbortHandler) // cuts the reply off, so that it is not taken for whole
	}()
	header := out.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if len(r.TransferEncoding) > 0 && r.ProtoMajor == 1 {
		// There may have been a length too, which net/http does not show, and a proxy in
		// front may have gone by that: what follows is no request of this caller.
		header.Set("Connection", "close")
	}
	if r.URL.Path == "/healthz" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		header.Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(out, "ok")
		return
	}
	isVault := strings.HasPrefix(r.URL.Path, vaultPrefix)
	if isVault {
		began := time.Now()
		defer func() { vaultSeconds.Observe(time.Since(began).Seconds()) }()
		var err error
		if r, err = vaultRequest(r); err != nil {
			vaultFailure(out, err)
			return
		}
	}
	clean, err := h.strict(out, r)
	if err != nil && isVault {
		vaultFailure(out, err)
		return
	}
	if err != nil {
		writeError(out, err)
		return
	}
	h.route(out, clean)
}

// route hands a request to its face.
func (h *handler) route(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if path == descriptionPath {
		if r.Method != http.MethodGet {
			writeError(w, notAllowed(r, http.MethodGet))
			return
		}
		w.Header().Set("Content-Type", jsonType)
		_, _ = w.Write(h.description) // the caller may have gone
		return
	}
	if rest, ok := strings.CutPrefix(path, cloudPrefix); ok {
		h.cloud.serve(w, r, strings.Split(rest, "/"))
		return
	}
	if rest, ok := strings.CutPrefix(path, recordsPrefix); ok {
		h.records.serve(w, r, strings.Split(rest, "/"))
		return
	}
	if rest, ok := strings.CutPrefix(path, vaultPrefix); ok {
		h.vault.serve(w, r, strings.Split(rest, "/"))
		return
	}
	if strings.HasPrefix(path, "/v1/") {
		h.v1.ServeHTTP(w, r)
		return
	}
	writeError(w, nothingHere())
}

func nothingHere() error {
	return refuse(codes.NotFound, "PATH_NOT_FOUND", "nothing here; "+descriptionPath+" describes what there is")
}
