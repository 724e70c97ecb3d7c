package gateway

import (
	"net/http"

	"github.com/dkimzone/dkimzone/internal/limit"
)

// LimitArrivals has a gateway bound by another Arrivals.
func LimitArrivals(gateway http.Handler, a *limit.Arrivals) {
	gateway.(*handler).arrivals = a
}
