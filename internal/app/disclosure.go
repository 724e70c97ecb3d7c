package app

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

const (
	// disclosureCalls bounds the requests that read from etcd at the same time.
	disclosureCalls = 16
	// disclosureAge and absenceAge, in seconds, are how long caches may keep keys,
	// and that there are none.
	disclosureAge = 3600
	absenceAge    = 300
)

// newDisclosureServer returns a server of [disclosureHandler] for everybody.
func newDisclosureServer(store *keystore.Store, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           disclosureHandler(store, logger),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// disclosureHandler serves GET and HEAD of /disclosed/DOMAIN/SELECTOR: all keys
// of the selector that are disclosed, in PEM, each after lines that say what it
// was. Whoever asks has to know the names; nothing lists them.
func disclosureHandler(store *keystore.Store, logger *slog.Logger) http.Handler {
	slots := make(chan struct{}, disclosureCalls)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /disclosed/{domain}/{selector}", func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			refuse(w)
			return
		}
		body, err := disclosedKeys(r.Context(), store, r.PathValue("domain"), r.PathValue("selector"))
		header := w.Header()
		switch {
		case err != nil:
			if r.Context().Err() == nil {
				logger.LogAttrs(r.Context(), slog.LevelWarn, "disclosed keys cannot be read", slog.Any("error", err))
			}
			refuse(w)
			return
		case body == nil:
			header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", absenceAge))
			http.Error(w, "no key of that selector is disclosed", http.StatusNotFound)
			return
		}
		header.Set("Content-Type", "text/plain; charset=utf-8")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", disclosureAge))
		_, _ = w.Write(body) //nolint:gosec // G705: PEM and names that were parsed, as plain text; the client may be gone
	})
	return mux
}

func refuse(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Retry-After", "10")
	http.Error(w, "try again later", http.StatusServiceUnavailable)
}

// disclosedKeys is the answer for a selector; nil if nothing of it is disclosed,
// or if the names are none.
func disclosedKeys(ctx context.Context, store *keystore.Store, domain, selector string) ([]byte, error) {
	name, err := dnsname.ParseDomain(domain)
	if err != nil {
		return nil, nil //nolint:nilerr // nothing has such a name
	}
	sel, err := dnsname.ParseSelector(strings.ToLower(selector))
	if err != nil {
		return nil, nil //nolint:nilerr // nothing has such a name
	}
	zones, _, err := store.Zones(ctx, "", maxZones)
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	for _, z := range zones {
		brand, err := brandOf(ctx, store, z.Name, name)
		if err != nil {
			return nil, err
		}
		if brand == "" {
			continue
		}
		keys, err := store.Disclosed(ctx, brand, name)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if k.Selector != sel {
				continue
			}
			if err := appendDisclosed(&body, name, k); err != nil {
				return nil, err
			}
		}
	}
	if body.Len() == 0 {
		return nil, nil
	}
	return body.Bytes(), nil
}

// brandOf is the brand that a domain belongs to in a zone, "" if none. A brand's
// own key domains are named after it.
func brandOf(ctx context.Context, store *keystore.Store, zone dnsname.Zone, domain dnsname.Domain) (string, error) {
	if own, ok := strings.CutSuffix(string(domain), "."+string(zone)); ok {
		own = strings.TrimPrefix(own, "shared.")
		if b, err := store.Brand(ctx, own); err == nil && b.Zone == zone {
			return own, nil
		} else if err != nil && !errors.Is(err, keystore.ErrBrandNotFound) {
			return "", err
		}
	}
	brand, _, err := store.OwnerOf(ctx, zone, domain)
	return brand, err
}

func appendDisclosed(body *bytes.Buffer, domain dnsname.Domain, k keystore.Disclosed) error {
	public, err := publicHalf(k.PrivateKey)
	if err != nil {
		return fmt.Errorf("disclosed key %s of %s: %w", k.KeyID, domain, err)
	}
	fmt.Fprintf(body, "Key: %s\nDomain: %s\nSelector: %s\nAlgorithm: %s\n", k.KeyID, domain, k.Selector, k.Algorithm)
	for _, t := range []struct {
		what string
		time time.Time
	}{
		{"Signed-From", k.ActivateTime}, {"Signed-Until", k.EndTime}, {"Destroyed", k.DestroyTime}, {"Disclosed", k.DiscloseTime},
	} {
		if !t.time.IsZero() {
			fmt.Fprintf(body, "%s: %s\n", t.what, t.time.UTC().Format(time.RFC3339))
		}
	}
	for _, b := range []*pem.Block{{Type: "PRIVATE KEY", Bytes: k.PrivateKey}, {Type: "PUBLIC KEY", Bytes: public}} {
		if err := pem.Encode(body, b); err != nil {
			return err
		}
	}
	return nil
}

// publicHalf returns the SubjectPublicKeyInfo of a private key in PKCS #8.
func publicHalf(pkcs8 []byte) ([]byte, error) {
	private, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, errors.New("it is no private key in PKCS #8")
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%T cannot sign", private)
	}
	return x509.MarshalPKIXPublicKey(signer.Public())
}
