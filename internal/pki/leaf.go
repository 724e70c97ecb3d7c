package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// Identity is what a client certificate says of its holder: the URI SAN
// spiffe://dkimzone/role/<Role>/<Name>, with /<Brand> before the name of one who
// is bound to a brand and /export-keys after that of one who may read private keys
// out. Name stands again as the common name, which is the user name for an etcd
// with client certificate authentication. All consist of a-z, 0-9, ".", "_" and
// "-".
type Identity struct {
	Role       string
	Name       string
	Brand      string // empty: bound to none
	ExportKeys bool
}

func (id Identity) uri() *url.URL {
	path := "/role/" + id.Role + "/"
	if id.Brand != "" {
		path += id.Brand + "/"
	}
	path += id.Name
	if id.ExportKeys {
		path += "/export-keys"
	}
	return &url.URL{Scheme: "spiffe", Host: "dkimzone", Path: path}
}

var (
	nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	hostForm = regexp.MustCompile(`^(?i:[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)(\.(?i:[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?))*$`)
)

// EnsureServer returns the files of a server certificate for hosts, DNS names
// or IP addresses, at least one: <name>.crt and <name>.key in the CA's
// directory. It issues a new pair, with a new key, unless there is one that
// this CA signed for just these hosts and whose renewal is not due at now.
func (c *CA) EnsureServer(name string, hosts []string, now time.Time) (certFile, keyFile string, err error) {
	template, err := serverTemplate(name, hosts)
	if err != nil {
		return "", "", err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return c.ensure(name, template, now)
}

// EnsurePeer is like EnsureServer for an etcd member, which is a client of the
// other members too.
func (c *CA) EnsurePeer(name string, hosts []string, now time.Time) (certFile, keyFile string, err error) {
	template, err := serverTemplate(name, hosts)
	if err != nil {
		return "", "", err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return c.ensure(name, template, now)
}

// EnsureClient returns the files of a client certificate for id: <name>.crt
// and <name>.key in the CA's directory, issued anew when EnsureServer would.
func (c *CA) EnsureClient(name string, id Identity, now time.Time) (certFile, keyFile string, err error) {
	if !nameForm.MatchString(id.Role) || !nameForm.MatchString(id.Name) || id.Brand != "" && !nameForm.MatchString(id.Brand) {
		return "", "", fmt.Errorf("client certificate %s: role %q, name %q or brand %q is not made of a-z, 0-9, '.', '_' and '-'", name, id.Role, id.Name, id.Brand)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.Name},
		URIs:        []*url.URL{id.uri()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	return c.ensure(name, template, now)
}

func serverTemplate(name string, hosts []string) (*x509.Certificate, error) {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("server certificate %s: no host given", name)
	}
	for _, host := range hosts {
		addr, err := netip.ParseAddr(host)
		switch {
		case err == nil && addr.Zone() == "":
			template.IPAddresses = append(template.IPAddresses, net.IP(addr.Unmap().AsSlice()))
		case err != nil && len(host) <= 253 && hostForm.MatchString(host):
			template.DNSNames = append(template.DNSNames, host)
		default:
			return nil, fmt.Errorf("server certificate %s: %q is no DNS name and no IP address", name, host)
		}
	}
	return template, nil
}

func (c *CA) ensure(name string, template *x509.Certificate, now time.Time) (certFile, keyFile string, err error) {
	if !nameForm.MatchString(name) || name == caName {
		return "", "", fmt.Errorf("certificate name %q is reserved or not made of a-z, 0-9, '.', '_' and '-'", name)
	}
	certFile, keyFile = filepath.Join(c.dir, name+".crt"), filepath.Join(c.dir, name+".key")
	if c.stillGood(certFile, keyFile, template, now) {
		return certFile, keyFile, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("generate key of %s: %w", name, err)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = template.NotBefore.Add(leafLife)
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	der, err := sign(template, c.cert, &key.PublicKey, c.key)
	if err != nil {
		return "", "", err
	}
	encodedKey, err := encodeKey(key)
	if err != nil {
		return "", "", err
	}
	// A Reloader that looks between the two keeps the pair it has.
	if err := replaceFile(keyFile, encodedKey, 0o600); err != nil {
		return "", "", err
	}
	if err := replaceFile(certFile, encodeCertificate(der), 0o644); err != nil {
		return "", "", err
	}
	return certFile, keyFile, nil
}

// stillGood reports whether the pair on disk can be used as it is. A pair that
// cannot be read or does not fit together can not.
func (c *CA) stillGood(certFile, keyFile string, want *x509.Certificate, now time.Time) bool {
	cert, err := readCertificate(certFile)
	if err != nil || renewalDue(cert, now) || cert.CheckSignatureFrom(c.cert) != nil {
		return false
	}
	key, err := readKey(keyFile)
	return err == nil && key.PublicKey.Equal(cert.PublicKey) &&
		cert.Subject.CommonName == want.Subject.CommonName &&
		slices.Equal(cert.ExtKeyUsage, want.ExtKeyUsage) &&
		sameNames(cert.DNSNames, want.DNSNames) &&
		sameNames(texts(cert.IPAddresses), texts(want.IPAddresses)) &&
		sameNames(texts(cert.URIs), texts(want.URIs))
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}
