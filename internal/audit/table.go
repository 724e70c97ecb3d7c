package audit

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/auditlog"
)

// kind is whether calls of a method have lines. Those that are refused because of
// their caller always have.
type kind uint8

const (
	// mutation is the kind of a method without a row.
	mutation kind = iota
	read
	keyRead // gives a private key away
)

// row says what goes into the line of a call. Fields are named by their path in
// the message, "brand.zone".
type row struct {
	kind kind
	// resource is the name of what the call is about, with fields of the request
	// in braces, "zones/{zone_id}"; created that of what it has made, with fields
	// of the response.
	resource, created string
	// asked are fields of the request. Text that a caller chose is not among them.
	asked []string
	// after are fields of the response.
	after []string
	// revision is the field of the response that has the store's revision.
	revision string
	// count, if not nil, makes something short of a long response.
	count func(resp proto.Message) map[string]string
	// steps, if not nil, are what the response says was done.
	steps func(resp proto.Message) []auditlog.Step
}

const (
	keyManagement = "/dkim.v1.KeyManagement/"
	signer        = "/dkim.v1.Signer/"
	access        = "/dkim.v1.AccessControl/"
	custody       = "/dkim.v1.Custody/"
)

var (
	zoneSettings = []string{
		"name_servers", "record_ttl_seconds", "negative_ttl_seconds", "apex_ttl_seconds", "refresh_seconds", "retry_seconds", "expire_seconds",
		"rotation_policy",
	}
	brandSettings  = []string{"zone", "signing_mode", "rotation_policy", "disclosure", "max_domains"}
	domainSettings = []string{"rotation_policy", "rotation_request_time"}
)

// table has a row for each method of each service.
var table = map[string]row{
	keyManagement + "CreateZone":          {resource: "zones/{zone_id}", after: zoneSettings, revision: "revision"},
	keyManagement + "GetZone":             {kind: read, resource: "{name}"},
	keyManagement + "ListZones":           {kind: read},
	keyManagement + "UpdateZone":          {resource: "{zone.name}", after: zoneSettings, revision: "revision"},
	keyManagement + "DeleteZone":          {resource: "{name}", after: zoneSettings},
	keyManagement + "AcceptZoneDeletions": {resource: "{name}", revision: "revision"},
	keyManagement + "ExportZone":          {kind: read, resource: "{name}"},
	keyManagement + "CreateBrand":         {resource: "brands/{brand_id}", after: brandSettings},
	keyManagement + "GetBrand":            {kind: read, resource: "{name}"},
	keyManagement + "ListBrands":          {kind: read},
	keyManagement + "UpdateBrand":         {resource: "{brand.name}", after: brandSettings},
	keyManagement + "DeleteBrand":         {resource: "{name}", after: brandSettings},
	keyManagement + "ProvisionDomain":     {resource: "{name}", asked: []string{"algorithm", "testing", "ttl_seconds"}, revision: "revision"},
	keyManagement + "GetDomain":           {kind: read, resource: "{name}"},
	keyManagement + "ListDomains":         {kind: read, resource: "{parent}"},
	keyManagement + "DeleteDomain":        {resource: "{name}", revision: "revision"},
	keyManagement + "UpdateDomain":        {resource: "{domain.name}", after: domainSettings, revision: "revision"},
	keyManagement + "CheckDomain":         {kind: read, resource: "{name}"}, // it keeps what DNS showed, no decision
	keyManagement + "RotateDomain":        {resource: "{name}", asked: []string{"when_ready"}, revision: "revision"},
	keyManagement + "PlanRotation":        {kind: read, resource: "{parent}"},
	keyManagement + "ListDomainEvents":    {kind: read, resource: "{parent}"},
	keyManagement + "WatchDomains":        {kind: read, resource: "{parent}"},
	keyManagement + "ListKeys":            {kind: read, resource: "{parent}"},
	keyManagement + "GetKey":              {kind: read, resource: "{name}"},
	keyManagement + "PublishKey":          {resource: "{parent}", created: "{name}", asked: []string{"testing", "ttl_seconds"}, revision: "revision"},
	keyManagement + "BatchPublishKeys":    {resource: "{parent}", count: batchResults},
	keyManagement + "ImportKey": {
		resource: "{parent}", created: "{name}", asked: []string{"testing", "ttl_seconds", "in_use", "validate_only"}, revision: "revision",
	},
	keyManagement + "DeleteKey":    {resource: "{name}", revision: "revision"},
	keyManagement + "RevokeKey":    {resource: "{name}", asked: []string{"compromised"}, revision: "domain.revision"},
	keyManagement + "GetSigner":    {kind: read, resource: "{name}"},
	keyManagement + "ListSigners":  {kind: read},
	keyManagement + "DeleteSigner": {resource: "{name}"},

	signer + "RegisterSigner":     {resource: "{signer.name}", created: "{name}", after: []string{"brand", "lease_duration"}},
	signer + "ReportUse":          {resource: "{signer}"},
	signer + "ResolveSigningKeys": {kind: read, resource: "{name}"},
	signer + "WatchSigningKeys":   {kind: read, resource: "{parent}"},
	signer + "Sign":               {kind: read}, // one for each message: a metric counts them
	signer + "FetchPrivateKeys":   {kind: keyRead, resource: "keys", count: batchResults, steps: fetchedKeys},

	access + "CreateToken":       {resource: "tokens", created: "{name}", after: []string{"role", "brand", "subject", "export_keys", "expire_time"}},
	access + "ListTokens":        {kind: read},
	access + "RevokeToken":       {resource: "{name}"},
	access + "CreateBrandSecret": {resource: "{parent}/secrets", created: "{name}", after: []string{"expire_time"}},
	access + "ListBrandSecrets":  {kind: read, resource: "{parent}"},
	access + "RevokeBrandSecret": {resource: "{name}"},

	"/dkim.v1.Callers/GetCaller": {kind: read},

	custody + "GetKeyEncryption":    {kind: read},
	custody + "RotateKeyEncryption": {resource: "keyEncryption", asked: []string{"data_keys"}, after: []string{"key"}},
	custody + "ExportPrivateKey":    {kind: keyRead, resource: "{name}"},
	custody + "Backup":              {kind: keyRead, resource: "backup"}, // sealed ones, and those that are disclosed
	custody + "Restore":             {resource: "backup", after: []string{"entry_count", "backup_time"}, revision: "revision"},

	"/grpc.health.v1.Health/Check": {kind: read},
	"/grpc.health.v1.Health/List":  {kind: read},
	"/grpc.health.v1.Health/Watch": {kind: read},

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {kind: read},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {kind: read},
}

// rowOf is the row of a method, "/package.Service/Method". A method without one is
// taken to change something.
func rowOf(method string) row {
	return table[method]
}

// Mutates reports whether calls of a method change something or read private keys,
// so that each has a line.
func Mutates(method string) bool { return rowOf(method).kind != read }

// name fills in a template of a resource's name. What is not of the form that such
// a name has stands there as "?".
func (r row) name(template string, m proto.Message) string {
	var b strings.Builder
	for template != "" {
		before, rest, found := strings.Cut(template, "{")
		b.WriteString(before)
		if !found {
			break
		}
		path, after, _ := strings.Cut(rest, "}")
		b.WriteString(text(m, path))
		template = after
	}
	return cleanName(b.String())
}

// settings are the fields of a resource that may be shown.
func (r row) settings(m proto.Message) map[string]string {
	if len(r.after) == 0 {
		return nil
	}
	return pick(m, r.after)
}
