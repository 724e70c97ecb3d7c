// Package authz says which role may call which method. What is not in the table
// is denied.
package authz

import (
	"slices"

	"github.com/dkimzone/dkimzone/internal/authn"
)

const (
	keyManagement = "/dkim.v1.KeyManagement/"
	signer        = "/dkim.v1.Signer/"
)

// table has a row for each method of each service.
var table = map[string][]authn.Role{
	keyManagement + "CreateZone":          {authn.Admin},
	keyManagement + "GetZone":             {authn.Admin},
	keyManagement + "ListZones":           {authn.Admin},
	keyManagement + "UpdateZone":          {authn.Admin},
	keyManagement + "DeleteZone":          {authn.Admin},
	keyManagement + "AcceptZoneDeletions": {authn.Admin},
	keyManagement + "ExportZone":          {authn.Admin},
	keyManagement + "CreateBrand":         {authn.Admin},
	keyManagement + "GetBrand":            {authn.Admin},
	keyManagement + "ListBrands":          {authn.Admin},
	keyManagement + "UpdateBrand":         {authn.Admin},
	keyManagement + "DeleteBrand":         {authn.Admin},
	keyManagement + "ProvisionDomain":     {authn.Admin},
	keyManagement + "GetDomain":           {authn.Admin},
	keyManagement + "ListDomains":         {authn.Admin},
	keyManagement + "DeleteDomain":        {authn.Admin},
	keyManagement + "RotateDomain":        {authn.Admin},
	keyManagement + "WatchDomains":        {authn.Admin},
	keyManagement + "ListKeys":            {authn.Admin},
	keyManagement + "GetKey":              {authn.Admin},
	keyManagement + "PublishKey":          {authn.Admin},
	keyManagement + "BatchPublishKeys":    {authn.Admin},
	keyManagement + "DeleteKey":           {authn.Admin},
	keyManagement + "UpdateDomain":        {authn.Admin},
	keyManagement + "CheckDomain":         {authn.Admin},
	keyManagement + "PlanRotation":        {authn.Admin},
	keyManagement + "ListDomainEvents":    {authn.Admin},
	keyManagement + "RevokeKey":           {authn.Admin},
	keyManagement + "GetSigner":           {authn.Admin},
	keyManagement + "ListSigners":         {authn.Admin},
	keyManagement + "DeleteSigner":        {authn.Admin},

	signer + "RegisterSigner":     {authn.Admin, authn.Signer},
	signer + "ReportUse":          {authn.Admin, authn.Signer},
	signer + "ResolveSigningKeys": {authn.Admin, authn.Signer},

	"/grpc.health.v1.Health/Check": {authn.Admin, authn.Signer},
	"/grpc.health.v1.Health/List":  {authn.Admin, authn.Signer},
	"/grpc.health.v1.Health/Watch": {authn.Admin, authn.Signer},

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {authn.Admin},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {authn.Admin},
}

// Allowed reports whether an identity may call a method, given as
// "/package.Service/Method".
func Allowed(id authn.Identity, method string) bool {
	return slices.Contains(table[method], id.Role)
}
