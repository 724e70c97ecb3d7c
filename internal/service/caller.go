package service

import (
	"context"
	"errors"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
)

// Callers implements dkim.v1.Callers. It holds no state.
type Callers struct {
	dkimv1.UnimplementedCallersServer
}

// GetCaller implements dkim.v1.Callers.
func (Callers) GetCaller(ctx context.Context, _ *dkimv1.GetCallerRequest) (*dkimv1.Caller, error) {
	caller, ok := authn.FromContext(ctx)
	if !ok {
		return nil, errors.New("the caller of an authenticated call is not known")
	}
	m := &dkimv1.Caller{Subject: caller.Name, ExportKeys: caller.ExportKeys, Method: string(caller.Method)}
	for role, name := range roles {
		if name == caller.Role {
			m.Role = role
		}
	}
	if caller.Brand != "" {
		m.Brand = "brands/" + caller.Brand
	}
	return m, nil
}
