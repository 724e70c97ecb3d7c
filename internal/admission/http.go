package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"time"
)

// httpAsker puts a question as a POST request with a JSON body.
type httpAsker struct {
	url    string
	client *http.Client
	token  bearer
}

func newHTTP(u *url.URL, tlsConfig *tls.Config, token bearer, o Options) *httpAsker {
	return &httpAsker{
		url: u.String(), token: token,
		client: &http.Client{
			// Not where somebody else says, with our token.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			// HTTP/1.1: a connection that is stuck is given up with its question.
			Transport: &http.Transport{
				TLSClientConfig: tlsConfig, DisableCompression: true,
				MaxConnsPerHost: o.Concurrency, MaxIdleConnsPerHost: o.Concurrency, IdleConnTimeout: time.Minute,
				MaxResponseHeaderBytes: 16 << 10,
			},
		},
	}
}

type httpCaller struct {
	Role      string `json:"role"`
	Name      string `json:"name"`
	Brand     string `json:"brand,omitempty"`
	Method    string `json:"method"`
	Address   string `json:"address,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

type httpQuestion struct {
	Brand     string     `json:"brand"`
	Domain    string     `json:"domain"`
	Operation Operation  `json:"operation"`
	Caller    httpCaller `json:"caller"`
}

func (h *httpAsker) ask(ctx context.Context, r Request) (answer, error) {
	body, err := json.Marshal(httpQuestion{r.Brand, r.Domain, r.Operation, httpCaller{
		Role: string(r.Caller.Role), Name: r.Caller.Name, Brand: r.Caller.Brand,
		Method: string(r.Caller.Method), Address: address(r), RequestID: r.Caller.RequestID,
	}})
	if err != nil {
		return answer{}, fmt.Errorf("question: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("question: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "dkimd")
	token, err := h.token.read()
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }() // read as far as it matters
	if resp.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("answered with HTTP status %s, want 200", resp.Status)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return answer{}, fmt.Errorf("answered with Content-Type %.100q, want application/json", resp.Header.Get("Content-Type"))
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return answer{}, fmt.Errorf("answer: %w", err)
	}
	if len(data) > maxAnswer {
		return answer{}, fmt.Errorf("answer of more than %d octets", maxAnswer)
	}
	return parseAnswer(data)
}

func (h *httpAsker) close() { h.client.CloseIdleConnections() }

// parseAnswer reads {"allowed":true} or {"allowed":false,"reason":"…"}. The names
// are as they stand here, in lower case; others are ignored.
func parseAnswer(data []byte) (answer, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return answer{}, fmt.Errorf("answer: %w", err)
	}
	var a answer
	switch string(fields["allowed"]) {
	case "true":
		a.allowed = true
	case "false":
	default:
		return answer{}, errors.New(`answer without "allowed", true or false`)
	}
	if reason, ok := fields["reason"]; ok && !a.allowed {
		var text *string
		if err := json.Unmarshal(reason, &text); err != nil {
			return answer{}, fmt.Errorf("reason: %w", err)
		}
		if text != nil {
			a.reason = *text
		}
	}
	return a, nil
}

// address is where the caller is, or empty.
func address(r Request) string {
	if !r.Caller.Addr.IsValid() {
		return ""
	}
	return r.Caller.Addr.String()
}
