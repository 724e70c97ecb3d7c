package authz_test

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/authz"
)

// Every method that a server offers has a row, so that a new one cannot be
// forgotten, and only the roles of its row may call it: signers what is theirs.
func TestEveryMethodHasARow(t *testing.T) {
	server := grpc.NewServer()
	dkimv1.RegisterKeyManagementServer(server, dkimv1.UnimplementedKeyManagementServer{})
	dkimv1.RegisterSignerServer(server, dkimv1.UnimplementedSignerServer{})
	healthpb.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)

	methods := 0
	for service, info := range server.GetServiceInfo() {
		for _, m := range info.Methods {
			methods++
			name := "/" + service + "/" + m.Name
			if !authz.Allowed(authn.Identity{Role: authn.Admin, Name: "alice"}, name) {
				t.Errorf("%s: an admin may not call it; is its row missing?", name)
			}
			signers := service == dkimv1.Signer_ServiceDesc.ServiceName || service == healthpb.Health_ServiceDesc.ServiceName
			if authz.Allowed(authn.Identity{Role: authn.Signer, Name: "mx1"}, name) != signers {
				t.Errorf("%s: a signer may call it: %t, want %t", name, !signers, signers)
			}
			for _, role := range []authn.Role{"", "brand", "Signer", "ADMIN", "admin "} {
				if authz.Allowed(authn.Identity{Role: role, Name: "mallory"}, name) {
					t.Errorf("%s: role %q may call it", name, role)
				}
			}
		}
	}
	if methods < 20 {
		t.Fatalf("looked at %d methods only", methods)
	}
}

func TestUnknownMethodIsDenied(t *testing.T) {
	for _, method := range []string{"", "/", "/dkim.v1.KeyManagement/", "/dkim.v1.KeyManagement/Nothing", "GetZone"} {
		if authz.Allowed(authn.Identity{Role: authn.Admin, Name: "alice"}, method) {
			t.Errorf("%q is allowed", method)
		}
	}
}
