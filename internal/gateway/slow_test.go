package gateway_test

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/dkimzone/dkimzone/internal/gateway"
	"github.com/dkimzone/dkimzone/internal/limit"
)

// slowReply is the reply to a request whose body comes through a pipe.
type slowReply struct {
	*httptest.ResponseRecorder
	sender *io.PipeWriter
}

// SetReadDeadline is what http.ResponseController looks for.
func (w slowReply) SetReadDeadline(at time.Time) error {
	if !at.IsZero() {
		return w.sender.CloseWithError(os.ErrDeadlineExceeded)
	}
	return nil
}

// Of too many bodies that are slow to come one is given up, before anybody knows
// whose they are.
func TestSlowBodies(t *testing.T) {
	h, err := gateway.New(gateway.Options{Register: func(grpc.ServiceRegistrar) {}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	gateway.LimitArrivals(h, limit.NewArrivals(1, time.Millisecond))
	type reply struct {
		who  int
		code int
		text string
	}
	replies := make(chan reply)
	var senders []*io.PipeWriter
	for i := range 2 {
		body, sender := io.Pipe()
		senders = append(senders, sender)
		go func() {
			r := httptest.NewRequest("PUT", cloud+"acme/slow.example", body)
			r.Header.Set("Content-Type", "application/json")
			r.TLS = new(tls.ConnectionState)
			w := slowReply{httptest.NewRecorder(), sender}
			h.ServeHTTP(w, r)
			replies <- reply{i, w.Code, w.Body.String()}
		}()
	}
	given := <-replies
	if given.code != http.StatusRequestTimeout || !strings.Contains(given.text, "BODY_SLOW") {
		t.Fatalf("given up: %d %s", given.code, given.text)
	}
	other := senders[1-given.who]
	if err := json.NewEncoder(other).Encode(map[string]bool{"no_such_field": true}); err != nil {
		t.Fatal(err)
	}
	other.Close()
	if kept := <-replies; kept.code != http.StatusBadRequest || !strings.Contains(kept.text, "no_such_field") {
		t.Errorf("the other one: %d %s", kept.code, kept.text)
	}
}
