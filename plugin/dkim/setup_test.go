package dkim

import (
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/pkg/fall"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/replica"
)

func TestParse(t *testing.T) {
	local := etcdclient.Config{Endpoints: []string{"http://127.0.0.1:2379"}}
	tests := []struct {
		name  string
		input string
		want  []block
	}{
		{"least", "dkim keys.example.net {\n endpoint http://127.0.0.1:2379\n}", []block{
			{zones: []string{"keys.example.net"}, config: replica.Config{Etcd: local}},
		}},
		{"zone of the server block", "dkim {\n endpoint http://127.0.0.1:2379\n}", []block{
			{zones: []string{"example.org"}, config: replica.Config{Etcd: local}},
		}},
		{"all", `dkim KEYS.example.net. keys.example.org {
			endpoint https://a.example.net:2379 https://b.example.net:2379
			tls node.crt /etc/node.key ca.crt
			data_dir data
			reconcile 30m
			max_deletion 5%
			fallthrough example.net
		}`, []block{{
			zones: []string{"keys.example.net", "keys.example.org"}, fall: fall.F{Zones: []string{"example.net."}},
			config: replica.Config{
				Etcd: etcdclient.Config{
					Endpoints: []string{"https://a.example.net:2379", "https://b.example.net:2379"},
					CertFile:  "/srv/node.crt", KeyFile: "/etc/node.key", CAFile: "/srv/ca.crt",
				},
				Dir: "/srv/data", ReconcileInterval: 30 * time.Minute, MaxDeletion: 0.05,
			},
		}}},
		{"two blocks", "dkim keys.example.net {\n endpoint http://127.0.0.1:2379\n fallthrough\n}\ndkim keys.example.org {\n endpoint inprocess:x\n max_deletion 100\n}", []block{
			{zones: []string{"keys.example.net"}, fall: fall.Root, config: replica.Config{Etcd: local}},
			{zones: []string{"keys.example.org"}, config: replica.Config{Etcd: etcdclient.Config{Endpoints: []string{"inprocess:x"}}, MaxDeletion: 1}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := caddy.NewTestController("dns", tt.input)
			c.ServerBlockKeys = []string{"dns://example.org.:1053"}
			dnsserver.GetConfig(c).Root = "/srv"
			got, err := parse(c)
			if err != nil {
				t.Fatalf("parse: %v", err)
			}
			opts := cmp.Options{cmp.AllowUnexported(block{}), cmpopts.IgnoreFields(replica.Config{}, "Logger"), cmpopts.IgnoreFields(block{}, "where")}
			if diff := cmp.Diff(tt.want, got, opts); diff != "" {
				t.Errorf("blocks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, input, want string }{
		{"no endpoint", "dkim keys.example.net", "Testfile:1 - Error during parsing: endpoint is missing"},
		{"empty endpoint", "dkim keys.example.net {\n endpoint\n}", "Testfile:2"},
		{"two endpoints", "dkim keys.example.net {\n endpoint a\n endpoint b\n}", "Testfile:3 - Error during parsing: endpoint is there twice"},
		{"unknown property", "dkim keys.example.net {\n endpoint a\n speed 9\n}", `Testfile:3 - Error during parsing: unknown property "speed"`},
		{"tls without files", "dkim keys.example.net {\n endpoint a\n tls x y\n}", "Testfile:3"},
		{"data_dir without a directory", "dkim keys.example.net {\n data_dir\n}", "Testfile:2"},
		{"two data_dir", "dkim keys.example.net {\n data_dir a b\n}", "Testfile:2"},
		{"reconcile is no duration", "dkim keys.example.net {\n reconcile often\n}", `Testfile:2 - Error during parsing: reconcile must be a duration of at least 1s, not "often"`},
		{"reconcile too often", "dkim keys.example.net {\n reconcile 10ms\n}", `not "10ms"`},
		{"reconcile negative", "dkim keys.example.net {\n reconcile -1h\n}", `not "-1h"`},
		{"reconcile empty", "dkim keys.example.net {\n reconcile\n}", "Testfile:2"},
		{"max_deletion 0", "dkim keys.example.net {\n max_deletion 0\n}", `max_deletion must be a percentage from 1 to 100, not "0"`},
		{"max_deletion 101", "dkim keys.example.net {\n max_deletion 101%\n}", `not "101%"`},
		{"max_deletion share", "dkim keys.example.net {\n max_deletion 0.2\n}", `not "0.2"`},
		{"max_deletion empty", "dkim keys.example.net {\n max_deletion\n}", "Testfile:2"},
		{"zone twice", "dkim keys.example.net Keys.Example.Net {\n endpoint a\n}", `Testfile:1 - Error during parsing: zone "keys.example.net" is there twice`},
		{"zone in two blocks", "dkim keys.example.net {\n endpoint a\n}\ndkim keys.example.net {\n endpoint a\n}", `Testfile:4 - Error during parsing: zone "keys.example.net" is there twice`},
		{"root", "dkim . {\n endpoint a\n}", "Testfile:1 - Error during parsing: name the zones"},
		{"no name", "dkim bad_zone.example.net {\n endpoint a\n}", "Testfile:1 - Error during parsing: "},
		{"one of two is no name", "dkim keys.example.net a..b {\n endpoint a\n}", "Testfile:1 - Error during parsing: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := setup(caddy.NewTestController("dns", tt.input))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "plugin/dkim: ") {
				t.Errorf("setup: %v; want %q", err, tt.want)
			}
		})
	}
}
