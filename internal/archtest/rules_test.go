package archtest

const module = "github.com/dkimzone/dkimzone"

// tiers places every package of internal/. A package imports lower tiers only.
var tiers = map[string]int{
	// Pure: values in, values out.
	"dnsname":    0,
	"dkimrecord": 0,
	"keypair":    0,
	"rotation":   0,
	"zonefile":   0,
	// Tools.
	"keygen":     1,
	"envelope":   1,
	"schema":     1,
	"keystore":   1,
	"leader":     1,
	"replica":    1,
	"telemetry":  1,
	"pki":        1,
	"etcdclient": 1,
	"prober":     1,
	"takeover":   1,
	"coredump":   1,
	"auditlog":   1,
	"backup":     1,
	"refusal":    1,
	// Use cases.
	"authn":      2,
	"authz":      2,
	"audit":      2,
	"service":    2,
	"mint":       2,
	"evidence":   2,
	"admission":  2,
	"limit":      2,
	"controller": 2,
	"custody":    2,
	"signview":   2,
	"keyring":    2,
	// Edges.
	"cli":     3,
	"config":  3,
	"gateway": 3,
	"milter":  3,
	"agent":   3,
	// Wiring.
	"embedetcd": 4,
	"app":       4,
	"archtest":  4,
}

// shared are the packages that others of the same tier may import too, with the reason. In tier 0 all are.
var shared = map[string]string{
	"schema":     "keystore and replica have to agree on what is in etcd",
	"etcdclient": "keystore and replica reach the same etcd in the same way",
	"authn":      "authz judges whom authn has recognised",
	"authz":      "service asks it before every call",
	"admission":  "service asks it before a domain gets keys",
	"audit":      "service tells it how things stood before a change",
	"mint":       "service and controller make keys in the same way",
	"custody":    "service starts the rotations that custody carries through",
	"evidence":   "service and controller look at DNS in the same way",
	"signview":   "service answers from it",
	"keyring":    "service signs with it",
	"config":     "cli reads the configuration that app writes",
	"embedetcd":  "app starts it",
}

// pureForbidden are the imports that tier 0 does without.
var pureForbidden = []string{"context", "log", "log/slog", "net", "net/http", "os", "os/exec", "os/signal", "syscall"}

// pureExceptions are the imports of tier 0 packages that pureForbidden names and that are right all the same.
var pureExceptions = map[string]string{
	"keypair": "log/slog", // for LogValue, which keeps private keys out of logs
}

// forbiddenNames are folder names that say nothing about what is inside.
var forbiddenNames = []string{"base", "common", "helper", "helpers", "lib", "misc", "shared", "types", "util", "utils"}

// owner says which packages may import a dependency directly.
type owner struct {
	dependency string   // an import path; all below it counts
	owners     []string // packages, as in "internal/replica"; all below them counts
	reason     string
}

var owners = []owner{
	{
		dependency: "go.etcd.io/etcd/client",
		owners:     []string{"internal/keystore", "internal/leader", "internal/replica", "internal/etcdclient", "internal/embedetcd", "test"},
		reason:     "the rest of the code sees the store and the replica, not etcd; tests look at both sides",
	},
	{
		dependency: "go.etcd.io/etcd/api",
		owners:     []string{"internal/keystore", "internal/replica", "internal/etcdclient", "internal/embedetcd", "test"},
		reason:     "the rest of the code sees the store and the replica, not etcd",
	},
	{
		dependency: "go.etcd.io/etcd/server",
		owners:     []string{"internal/embedetcd"},
		reason:     "only a standalone process runs an etcd member of its own",
	},
	{
		dependency: "github.com/coreos/go-oidc",
		owners:     []string{"internal/authn"},
		reason:     "who a caller is is told in one place",
	},
	{
		dependency: "golang.org/x/crypto/argon2",
		owners:     []string{"internal/authn"},
		reason:     "secrets are hashed and compared in one place",
	},
	{
		dependency: "go.etcd.io/bbolt",
		owners:     []string{"internal/replica", "internal/embedetcd"}, // embedetcd looks whether etcd's own file is locked
		reason:     "the file beside the replica is the only database that this code opens itself",
	},
	{
		dependency: "github.com/coredns",
		owners:     []string{"plugin/dkim", "cmd/coredns", "internal/app", "test/bench/mapdns"}, // mapdns is a CoreDNS to compare with
		reason:     "CoreDNS is the frame of the plugin; nothing else may depend on its types",
	},
	{
		dependency: "github.com/emersion/go-milter",
		owners:     []string{"internal/milter", "test"},
		reason:     "one place talks with mail servers",
	},
	{
		dependency: "gocloud.dev",
		owners:     []string{"internal/envelope"},
		reason:     "one place wraps and unwraps data keys, so one place can be audited",
	},
	{
		dependency: "filippo.io/age",
		owners:     []string{"internal/backup", "test"},
		reason:     "one place says what a backup file is",
	},
	{
		dependency: "github.com/hashicorp/vault",
		owners:     []string{"internal/envelope"},
		reason:     "it stands for gocloud.dev where that falls short",
	},
	{
		dependency: module + "/api/dkim/v1",
		owners:     []string{"internal/service", "internal/cli", "internal/gateway", "internal/app", "signer", "test"},
		reason:     "generated messages stay at the edges; the packages inside have types of their own",
	},
	{
		dependency: module + "/api/dkim/admission/v1",
		owners:     []string{"internal/admission", "test"},
		reason:     "dkimd is a client of the provider's system in one place",
	},
	{
		dependency: module + "/internal/schema/schemapb",
		owners:     []string{"internal/schema", "internal/keystore"},
		reason:     "how a value is stored stays with those who store it",
	},
}

// reach says what a package may depend on, directly or not.
type reach struct {
	from      string
	only      []string // of this module's packages; empty means any
	forbidden []string
	reason    string
}

var reaches = []reach{
	{
		from:      "plugin/dkim",
		only:      dnsNodePackages,
		forbidden: dnsNodeForbidden,
		reason:    dnsNodeReason,
	},
	{
		from:      "cmd/coredns",
		only:      append([]string{"plugin/dkim"}, dnsNodePackages...),
		forbidden: dnsNodeForbidden,
		reason:    dnsNodeReason,
	},
	{
		from: "cmd/dkimctl",
		forbidden: []string{
			"go.etcd.io", "github.com/coredns", "gocloud.dev",
			"github.com/aws", "cloud.google.com", "github.com/Azure", "github.com/hashicorp/vault",
		},
		reason: "dkimctl is a client of the API like any other and needs no more than it",
	},
	{
		from:   "signer",
		only:   []string{"signer", "api/dkim/v1"},
		reason: "who signs mail links the client and nothing else of ours",
	},
	{
		from:   "api/dkim/v1",
		only:   []string{"api/dkim/v1"},
		reason: "users of the API get the generated code and nothing of ours with it",
	},
}

const dnsNodeReason = "a DNS node stands on the open Internet: what it does not link it cannot leak"

var (
	dnsNodePackages = []string{
		"internal/dnsname", "internal/dkimrecord", "internal/schema", "internal/replica", "internal/etcdclient",
	}
	dnsNodeForbidden = []string{
		module + "/internal/keystore", module + "/internal/envelope", module + "/internal/keygen",
		module + "/internal/service", module + "/api", "gocloud.dev", "go.etcd.io/etcd/server",
		// The rest of the AWS SDK comes with CoreDNS' dnssec, which can read its keys from there.
		"github.com/aws/aws-sdk-go-v2/service/kms", "cloud.google.com/go/kms", "github.com/Azure/azure-sdk-for-go", "github.com/hashicorp/vault",
	}
)

// maxMainLines keeps cmd/*/main.go thin, so that tests can start what the commands start.
const maxMainLines = 60
