package refusal_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/refusal"
)

func TestWithMetadata(t *testing.T) {
	st := refusal.WithMetadata(codes.Unavailable, "AWAY", "it is away", map[string]string{"what": "etcd"}, refusal.Retry(2*time.Second))
	if st.Code() != codes.Unavailable || st.Message() != "it is away" || len(st.Details()) != 2 {
		t.Fatalf("%v", st)
	}
	info, ok := st.Details()[0].(*errdetails.ErrorInfo)
	if !ok || info.GetReason() != "AWAY" || info.GetDomain() != refusal.Domain || info.GetMetadata()["what"] != "etcd" {
		t.Errorf("first detail %v", st.Details()[0])
	}
	retry, ok := st.Details()[1].(*errdetails.RetryInfo)
	if !ok || retry.GetRetryDelay().AsDuration() != 2*time.Second {
		t.Errorf("second detail %v", st.Details()[1])
	}
}

func TestReason(t *testing.T) {
	own := refusal.New(codes.NotFound, "NOT_THERE", "it is not there").Err()
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"own":     {own, "NOT_THERE"},
		"wrapped": {fmt.Errorf("while looking: %w", own), "NOT_THERE"},
		"bare":    {status.Error(codes.NotFound, "no"), ""},
		"other":   {errors.New("no"), ""},
		"none":    {nil, ""},
	} {
		if got := refusal.Reason(c.err); got != c.want {
			t.Errorf("%s: reason %q, want %q", name, got, c.want)
		}
	}
}
