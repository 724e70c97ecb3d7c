package keystore_test

import (
	"context"
	"log/slog"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
)

func TestStoreOnFake(t *testing.T) {
	keystoretest.Run(t, func(*testing.T) keystoretest.Client { return keystoretest.NewFake() })
}

func TestStoreOnEtcd(t *testing.T) {
	etcd := newEtcd(t)
	keystoretest.Run(t, func(t *testing.T) keystoretest.Client {
		t.Helper()
		empty(t, etcd)
		return etcd
	})
}

// newEtcd starts an etcd that ends with the test.
func newEtcd(t *testing.T) *clientv3.Client {
	t.Helper()
	server, err := embedetcd.Start(t.Context(), embedetcd.Config{
		Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server.Client()
}

// empty deletes every key.
func empty(t testing.TB, c *clientv3.Client) {
	t.Helper()
	if _, err := c.Delete(context.Background(), "\x00", clientv3.WithFromKey()); err != nil {
		t.Fatal(err)
	}
}
