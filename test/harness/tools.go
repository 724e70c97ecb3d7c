//go:build tools

package harness

import _ "go.etcd.io/etcd/server/v3" // built by Path; keeps what it needs in go.sum
