// Package config reads and writes dkimctl.yaml, which tells a client of the API
// where dkimd is and which certificates to use.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"
)

// Client is the configuration of a client of the API. Load has checked it and
// made its paths ready for use from the working directory.
type Client struct {
	// Address is HOST:PORT of dkimd's gRPC listener. Required.
	Address string

	// CAFile holds the certificates of the authorities that dkimd's certificate
	// may come from; required. CertFile and KeyFile are the client's own certificate
	// and its private key; all PEM. In the file they are relative to its folder.
	CAFile   string
	CertFile string
	KeyFile  string

	// TokenFile holds a bearer token. It, or CertFile and KeyFile, is required; if
	// both are there, the token says who calls.
	TokenFile string

	// ServerName is the name that dkimd's certificate must carry. Default: the
	// host of Address.
	ServerName string

	// NameServers says, by host name, where a name server is asked when that is
	// not port 53 of its address in the DNS: on a test machine, or through a
	// tunnel. May be nil.
	NameServers map[string]netip.AddrPort
}

// file is a Client as it stands in YAML.
type file struct {
	Address     string            `yaml:"address"`
	CAFile      string            `yaml:"ca_file"`
	CertFile    string            `yaml:"cert_file,omitempty"`
	KeyFile     string            `yaml:"key_file,omitempty"`
	TokenFile   string            `yaml:"token_file,omitempty"`
	ServerName  string            `yaml:"server_name,omitempty"`
	NameServers map[string]string `yaml:"name_servers,omitempty"`
}

// Load reads a configuration file. Its errors name the file and, for what YAML
// or the set of properties forbids, the line. A file that is not there gives an
// error that wraps os.ErrNotExist.
func Load(path string) (Client, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Client{}, fmt.Errorf("client configuration: %w", err)
	}
	c, err := parse(data, filepath.Dir(path))
	if err != nil {
		return Client{}, fmt.Errorf("client configuration %s: %w", path, err)
	}
	return c, nil
}

func parse(data []byte, dir string) (Client, error) {
	var f file
	if err := yaml.UnmarshalStrict(data, &f); err != nil {
		return Client{}, readable(err)
	}
	certificate := f.CertFile != "" || f.KeyFile != "" || f.TokenFile == ""
	for _, required := range []struct {
		name, value string
		is          bool
	}{
		{"address", f.Address, true}, {"ca_file", f.CAFile, true}, {"cert_file", f.CertFile, certificate}, {"key_file", f.KeyFile, certificate},
	} {
		if required.is && required.value == "" {
			return Client{}, fmt.Errorf("%s is missing", required.name)
		}
	}
	if err := CheckAddress(f.Address); err != nil {
		return Client{}, fmt.Errorf("address: %w", err)
	}
	c := Client{Address: f.Address, ServerName: f.ServerName}
	for _, p := range []struct {
		to    *string
		value string
	}{{&c.CAFile, f.CAFile}, {&c.CertFile, f.CertFile}, {&c.KeyFile, f.KeyFile}, {&c.TokenFile, f.TokenFile}} {
		*p.to = p.value
		if p.value != "" && !filepath.IsAbs(p.value) {
			*p.to = filepath.Join(dir, p.value)
		}
	}
	for host, value := range f.NameServers {
		addr, err := netip.ParseAddrPort(value)
		if err != nil {
			return Client{}, fmt.Errorf("name_servers: %s: %q is not ADDRESS:PORT, such as 192.0.2.1:53 or [2001:db8::1]:53", host, value)
		}
		if c.NameServers == nil {
			c.NameServers = make(map[string]netip.AddrPort)
		}
		c.NameServers[NameServerKey(host)] = addr
	}
	return c, nil
}

// NameServerKey is the form of a host name that Client.NameServers has as keys:
// lower case without a trailing dot.
func NameServerKey(host string) string {
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// CheckAddress reports what is wrong with a HOST:PORT to connect to.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:9443", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q does not end with a port number from 1 to 65535", address)
	}
	return nil
}

var (
	unknownProperty  = regexp.MustCompile(`field (.*) not found in type .*`)
	repeatedProperty = regexp.MustCompile(`field (.*) already set in type .*`)
)

// readable takes the Go types out of an error of package yaml.
func readable(err error) error {
	var all *yaml.TypeError
	if !errors.As(err, &all) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	found := make([]string, len(all.Errors))
	for i, e := range all.Errors {
		e = unknownProperty.ReplaceAllString(e, `unknown property "$1"`)
		e = repeatedProperty.ReplaceAllString(e, `property "$1" is there twice`)
		found[i] = strings.ReplaceAll(e, "into config.file", "as a set of properties")
	}
	return errors.New(strings.Join(found, "; "))
}

const header = `# Configuration of dkimctl. Paths are relative to the folder of this file.
`

// Write puts the configuration into a file that only its owner may read,
// replacing it in one step. It creates the folder if need be. Paths inside that
// folder are written relative to it, so that it can be moved.
func (c Client) Write(path string) error {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write client configuration: %w", err)
	}
	f := file{Address: c.Address, ServerName: c.ServerName}
	for _, p := range []struct {
		to    *string
		value string
	}{{&f.CAFile, c.CAFile}, {&f.CertFile, c.CertFile}, {&f.KeyFile, c.KeyFile}, {&f.TokenFile, c.TokenFile}} {
		if *p.to, err = portable(dir, p.value); err != nil {
			return fmt.Errorf("write client configuration: %w", err)
		}
	}
	if len(c.NameServers) > 0 {
		f.NameServers = make(map[string]string, len(c.NameServers))
	}
	for host, addr := range c.NameServers {
		f.NameServers[host] = addr.String()
	}
	body, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("write client configuration: %w", err)
	}
	data := append([]byte(header), body...)
	if _, err := parse(data, dir); err != nil { // nobody could read it
		return fmt.Errorf("write client configuration %s: %w", path, err)
	}
	if err := replace(path, data); err != nil {
		return fmt.Errorf("write client configuration: %w", err)
	}
	return nil
}

// portable returns path relative to dir if it lies inside, else absolute.
func portable(dir, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(dir, abs); err == nil && filepath.IsLocal(rel) {
		return filepath.ToSlash(rel), nil
	}
	return abs, nil
}

func replace(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }() // fails after the rename
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}
