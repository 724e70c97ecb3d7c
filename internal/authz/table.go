package authz

import "github.com/dkimzone/dkimzone/internal/authn"

const (
	keyManagement = "/dkim.v1.KeyManagement/"
	signer        = "/dkim.v1.Signer/"
	access        = "/dkim.v1.AccessControl/"
	custody       = "/dkim.v1.Custody/"
)

// rule says who may call a method.
type rule struct {
	roles []authn.Role
	// brand are the fields of the request that name what the call is about, as
	// "name" or "domain.name". For a caller who is bound to a brand each of them,
	// and each element of a list, must lie in it. Without any, such a caller is
	// refused.
	brand []string
	// filtered: the service leaves out what is not of the caller's brand, so that
	// the fields may also be empty or say "brands/-".
	filtered bool
	// exportKeys: only with that permission.
	exportKeys bool
}

var (
	admins   = []authn.Role{authn.Admin}
	readers  = []authn.Role{authn.Admin, authn.Auditor}
	owners   = []authn.Role{authn.Admin, authn.Brand}
	viewers  = []authn.Role{authn.Admin, authn.Brand, authn.Auditor}
	signers  = []authn.Role{authn.Admin, authn.Signer}
	everyone = []authn.Role{authn.Admin, authn.Brand, authn.Signer, authn.Auditor}
)

var (
	byName   = []string{"name"}
	byParent = []string{"parent"}
)

// table has a row for each method of each service. What is not in it is denied.
var table = map[string]rule{
	keyManagement + "CreateZone":          {roles: admins},
	keyManagement + "GetZone":             {roles: readers},
	keyManagement + "ListZones":           {roles: readers},
	keyManagement + "UpdateZone":          {roles: admins},
	keyManagement + "DeleteZone":          {roles: admins},
	keyManagement + "AcceptZoneDeletions": {roles: admins},
	keyManagement + "ExportZone":          {roles: readers}, // has the names of all brands' domains
	keyManagement + "CreateBrand":         {roles: admins},
	keyManagement + "GetBrand":            {roles: viewers, brand: byName},
	keyManagement + "ListBrands":          {roles: viewers, filtered: true},
	keyManagement + "UpdateBrand":         {roles: admins},
	keyManagement + "DeleteBrand":         {roles: admins},
	keyManagement + "ProvisionDomain":     {roles: owners, brand: byName},
	keyManagement + "GetDomain":           {roles: viewers, brand: byName},
	keyManagement + "ListDomains":         {roles: viewers, brand: byParent},
	keyManagement + "UpdateDomain":        {roles: owners, brand: []string{"domain.name"}},
	keyManagement + "DeleteDomain":        {roles: owners, brand: byName},
	keyManagement + "CheckDomain":         {roles: owners, brand: byName}, // writes what it finds
	keyManagement + "RotateDomain":        {roles: owners, brand: byName},
	keyManagement + "PlanRotation":        {roles: viewers, brand: byParent},
	keyManagement + "ListDomainEvents":    {roles: viewers, brand: byParent},
	keyManagement + "WatchDomains":        {roles: viewers, brand: byParent},
	keyManagement + "ListKeys":            {roles: viewers, brand: byParent},
	keyManagement + "GetKey":              {roles: viewers, brand: byName},
	keyManagement + "PublishKey":          {roles: owners, brand: byParent},
	keyManagement + "ImportKey":           {roles: owners, brand: byParent},
	keyManagement + "BatchPublishKeys":    {roles: owners, brand: []string{"parent", "requests.parent"}},
	keyManagement + "DeleteKey":           {roles: owners, brand: byName},
	keyManagement + "RevokeKey":           {roles: owners, brand: byName},
	keyManagement + "GetSigner":           {roles: readers},
	keyManagement + "ListSigners":         {roles: readers},
	keyManagement + "DeleteSigner":        {roles: admins},

	// The service gives a bound signer its brand where none is named, and finds no
	// domain of another one.
	signer + "RegisterSigner":     {roles: signers, brand: []string{"signer.brand"}, filtered: true},
	signer + "ReportUse":          {roles: signers, brand: []string{"domains.domain"}},
	signer + "ResolveSigningKeys": {roles: []authn.Role{authn.Admin, authn.Signer, authn.Auditor}, brand: byName, filtered: true},
	signer + "WatchSigningKeys":   {roles: signers, brand: byParent, filtered: true},
	signer + "Sign":               {roles: signers, brand: []string{"digests.key"}},
	signer + "FetchPrivateKeys":   {roles: signers, brand: []string{"keys"}}, // the service refuses all but signers that may

	access + "CreateToken":       {roles: admins},
	access + "ListTokens":        {roles: readers},
	access + "RevokeToken":       {roles: admins},
	access + "CreateBrandSecret": {roles: admins},
	access + "ListBrandSecrets":  {roles: readers, brand: byParent},
	access + "RevokeBrandSecret": {roles: admins},

	custody + "GetKeyEncryption":    {roles: readers},
	custody + "RotateKeyEncryption": {roles: admins},
	custody + "ExportPrivateKey":    {roles: admins, brand: byName, exportKeys: true},
	custody + "Backup":              {roles: admins},
	custody + "Restore":             {roles: admins},

	"/dkim.v1.Callers/GetCaller": {roles: everyone, filtered: true},

	"/grpc.health.v1.Health/Check": {roles: everyone, filtered: true},
	"/grpc.health.v1.Health/List":  {roles: everyone, filtered: true},
	"/grpc.health.v1.Health/Watch": {roles: everyone, filtered: true},

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {roles: readers},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {roles: readers},
}
