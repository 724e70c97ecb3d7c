package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	keeper, err := envelope.OpenKeeper(t.Context(), in.kek)
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	sealer := envelope.NewSealer(keeper, keystore.New(root, 5*time.Second))

	secrets := make(map[string][]byte) // by what they belong to
	var marks = [2]bool{}              // an RSA and an Ed25519 key were found
	for _, kv := range list(t, root, schema.Root+"priv/keys/") {
		parts := strings.Split(strings.TrimPrefix(kv.key, schema.Root+"priv/keys/"), "/")
		name := "brands/" + parts[0] + "/domains/" + parts[1] + "/keys/" + parts[2]
		plain, err := sealer.Open(t.Context(), parts[0], name, kv.value)
		if err != nil {
			t.Fatal(err)
		}
		key, err := keypair.Unmarshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		// One octet, then the seed or two primes of equal length.
		if key.Algorithm() == keypair.Ed25519 {
			secrets["seed of "+name], marks[0] = plain[1:], true
		} else {
			half := (len(plain) - 1) / 2
			secrets["first prime of "+name], secrets["second prime of "+name], marks[1] = plain[1:1+half], plain[1+half:], true
		}
		checkHalf(t, in, parts[0], parts[1], parts[2], key)
	}
	if marks != [2]bool{true, true} {
		t.Fatal("no RSA key or no Ed25519 key is stored, so that the test says nothing")
	}
	secrets["key-encryption key"] = bytes.TrimSpace([]byte(readFile(t, strings.TrimPrefix(in.kek, "file://"))))

	places := make(map[string][]byte)
	for _, kv := range list(t, root, schema.Root) {
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
	for what, secret := range secrets {
		for place, data := range places {
			for _, form := range forms(secret) {
				if bytes.Contains(data, form) {
					t.Errorf("%s is in %s", what, place)
				}
			}
		}
	}
	for place, data := range places {
		if bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s has a PEM marker of a private key", place)
		}
	}
	// The search does find what is there: public keys in the replica's file.
	if !containsAny(tree(t, in.nodes[0].dataDir), "selector1-one-example") {
		t.Error("the replica's file does not hold what it must, so that the test says nothing about it")
	}
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

// forms are the forms in which octets may stand in a text or a file. In base64
// the octets before them shift them, so there are three forms, less their ends.
func forms(secret []byte) [][]byte {
	all := [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret)))}
	for shift := range 3 {
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString(append(make([]byte, shift), secret...))
			all = append(all, []byte(text[4:len(text)-4]))
		}
	}
	return all
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
