// Package pki makes and loads the certificates of an installation that has no
// authority of its own: a CA, and the certificates of servers, clients and
// etcd members that it signs. Keys are ECDSA P-256, connections TLS 1.3 with a
// certificate on both sides.
//
// The CA lives for ten years, the others for 398 days. All are renewed by the
// Ensure functions when a third of their life is left. The CA keeps its key
// when it is renewed, so what it signed before stays valid, also for those who
// know only its old certificate.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 398 * 24 * time.Hour

	// backdate allows for clocks that are behind ours.
	backdate = time.Hour

	caName = "ca"
)

// CA is a certificate authority whose files are in one directory. It does not
// change and is safe for concurrent use.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// EnsureCA loads the authority in dir: ca.crt and ca.key. It creates what is
// missing, the directory with mode 0700 and the key with 0600, and renews the
// certificate when that is due at now. A key that others than its owner may
// read is refused, and so is a certificate without its key.
func EnsureCA(dir string, now time.Time) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificate directory: %w", err)
	}
	ca := &CA{dir: dir}
	var err error
	if ca.key, err = ca.ensureKey(); err != nil {
		return nil, err
	}
	ca.cert, err = readCertificate(ca.CertFile())
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = ca.selfSign(now)
	case err != nil:
	case !ca.key.PublicKey.Equal(ca.cert.PublicKey):
		err = fmt.Errorf("%s is not the certificate of the key in %s", ca.CertFile(), ca.keyFile())
	case renewalDue(ca.cert, now):
		err = ca.selfSign(now)
	}
	if err != nil {
		return nil, err
	}
	return ca, nil
}

// CertFile is the path of the CA's certificate, which those who connect need.
func (c *CA) CertFile() string { return filepath.Join(c.dir, caName+".crt") }

func (c *CA) keyFile() string { return filepath.Join(c.dir, caName+".key") }

func (c *CA) ensureKey() (*ecdsa.PrivateKey, error) {
	key, err := readKey(c.keyFile())
	if !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	if _, err := os.Stat(c.CertFile()); err == nil {
		return nil, fmt.Errorf("%s is there, but its key %s is missing: restore it, or remove the certificate to begin with a new authority", c.CertFile(), c.keyFile())
	}
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate CA key: %w", err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	err = createFile(c.keyFile(), encoded)
	if errors.Is(err, os.ErrExist) { // another process was quicker
		return readKey(c.keyFile())
	}
	if err != nil {
		return nil, err
	}
	return key, nil
}

func (c *CA) selfSign(now time.Time) error {
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"dkimzone"}, CommonName: "dkimzone CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := sign(template, template, &c.key.PublicKey, c.key)
	if err != nil {
		return err
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("parse new CA certificate: %w", err)
	}
	return replaceFile(c.CertFile(), encodeCertificate(der), 0o644)
}

// sign gives the template a random serial number and signs it.
func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, signer *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("generate serial number: %w", err)
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // RFC 5280 §4.1.2.2: positive, at most 20 octets
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	return der, nil
}

// renewalDue reports whether less than a third of the certificate's life is
// left, or it is not valid yet.
func renewalDue(cert *x509.Certificate, now time.Time) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return now.Before(cert.NotBefore) || now.After(cert.NotAfter.Add(-life/3))
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func readCertificate(file string) (*x509.Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return cert, nil
}

// readKey reads a key of our own making. Its errors say nothing of the contents.
func readKey(file string) (*ecdsa.PrivateKey, error) {
	data, err := readPrivate(file)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(data); block != nil && block.Type == "PRIVATE KEY" {
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if key, ok := parsed.(*ecdsa.PrivateKey); err == nil && ok {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s holds no ECDSA private key in PKCS #8 PEM", file)
}
