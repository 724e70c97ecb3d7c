package e2e_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"gocloud.dev/secrets/localsecrets"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// checkSecrets opens the sealed keys as only dkimd can, and looks for them
// everywhere else. It also looks whether they are the private halves of what
// DNS serves.
func checkSecrets(t *testing.T, in *installation) {
	t.Helper()
	root := in.etcd.Client(t, "root")
	secrets := make(wanted)
	for name, key := range openKeys(t, root, in.kek, secrets) {
		parts := strings.Split(name, "/")
		checkHalf(t, in, parts[1], parts[3], parts[5], key)
	}
	found := in.places(t, root)
	secrets.checkAbsent(t, found)
	// The search does find what is there: public keys in the replica's file.
	if !containsAny(found, "selector1-one-example") || !containsAny(tree(t, in.nodes[0].dataDir), "selector1-one-example") {
		t.Error("the replica's file does not hold what it must, so that the test says nothing about it")
	}
}

// openKeys opens the sealed keys and data keys and adds them to secrets, together
// with the key-encryption key. There must be keys of both kinds.
func openKeys(t *testing.T, root *clientv3.Client, kek string, secrets wanted) map[string]*keypair.KeyPair {
	t.Helper()
	keeper, err := envelope.OpenKeeper(t.Context(), kek)
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	sealer := envelope.NewSealer(keeper, keystore.New(root, callLimit))
	text := strings.TrimSpace(readFile(t, strings.TrimPrefix(kek, "file://")))
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	secrets.addOctets("key-encryption key", raw)
	secrets.addOctets("file of the key-encryption key", []byte(text))
	unwrapper := localsecrets.NewKeeper([32]byte(raw))
	defer unwrapper.Close()
	for _, kv := range list(t, root, schema.Root+"priv/deks/") {
		plain, err := unwrapper.Decrypt(t.Context(), kv.value)
		if err != nil {
			t.Fatal(err)
		}
		secrets.addOctets("data key "+kv.key, plain)
	}
	keys := make(map[string]*keypair.KeyPair)
	kinds := make(map[keypair.Algorithm]bool)
	for _, kv := range list(t, root, schema.Root+"priv/keys/") {
		parts := strings.Split(strings.TrimPrefix(kv.key, schema.Root+"priv/keys/"), "/")
		name := "brands/" + parts[0] + "/domains/" + parts[1] + "/keys/" + parts[2]
		plain, err := sealer.Open(t.Context(), parts[0], name, kv.value)
		if err != nil {
			t.Fatal(err)
		}
		if keys[name], err = keypair.Unmarshal(plain); err != nil {
			t.Fatal(err)
		}
		kinds[keys[name].Algorithm()] = true
		der, err := keys[name].PKCS8()
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			t.Fatal(err)
		}
		secrets.addKey(t, name, private)
	}
	if len(kinds) < 2 {
		t.Fatal("no RSA key or no Ed25519 key is stored, so that the test says nothing")
	}
	return keys
}

// places are all where a secret might be by mistake, by what they are.
func (in *installation) places(t *testing.T, root *clientv3.Client) map[string][]byte {
	t.Helper()
	places := make(map[string][]byte)
	for _, kv := range list(t, root, "") {
		places["etcd "+kv.key] = append([]byte(kv.key), kv.value...)
	}
	for _, d := range in.dkimd {
		places["output of "+d.name] = []byte(d.Output())
		places["metrics of "+d.name] = page(t, "http://"+d.metrics+"/metrics")
	}
	for _, n := range in.nodes {
		places["output of "+n.name] = []byte(n.Output())
		places["metrics of "+n.name] = page(t, "http://"+n.metrics+"/metrics")
		for file, data := range tree(t, n.dataDir) {
			places["file "+file+" of "+n.name] = data
		}
	}
	m := in.etcd.Members[0] // its files have what was deleted, too
	places["output of etcd"] = []byte(m.Process.Output())
	for file, data := range tree(t, m.DataDir) {
		places["file "+file] = data
	}
	return places
}

// checkHalf lets a verifier check, through DNS, what the opened key signs.
func checkHalf(t *testing.T, in *installation, brand, domain, id string, key *keypair.KeyPair) {
	t.Helper()
	d := in.dkimd[0].domain(t, brand, domain)
	for _, sel := range d.GetSelectors() {
		if !strings.HasSuffix(sel.GetKey(), "/"+id) {
			continue
		}
		record, err := dkimrecord.Parse(strings.Join(mustTXT(t, "udp", in.nodes[1].dns, sel.GetOwnerName()), ""))
		if err != nil || !bytes.Equal(record.PublicKey, key.Public().Octets) {
			t.Errorf("%s serves %v, %v; not the public half of the stored key", sel.GetOwnerName(), record, err)
		}
		if err := verify(t, in.nodes[1].dns, d, sel.GetSelector(), key.Signer()); err != nil {
			t.Errorf("mail signed with the key in %s of %s: %v", sel.GetSelector(), domain, err)
		}
		return
	}
	t.Errorf("key %s of %s is stored, but stands in no selector", id, domain)
}

func page(t *testing.T, url string) []byte {
	t.Helper()
	_, body, err := get(t, url)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(body)
}

// tree is all files below a directory.
func tree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files[path], err = os.ReadFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // whoever writes here has replaced or renamed it meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func containsAny(files map[string][]byte, text string) bool {
	for _, data := range files {
		if bytes.Contains(data, []byte(text)) {
			return true
		}
	}
	return false
}
