package authn

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// exportKeys ends the path of an admin who may read private keys out.
const exportKeys = "export-keys"

var (
	brandForm = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`)
	// nameForm leaves room for what other issuers put into a subject, but for what
	// would make a log or a path ambiguous.
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@:|+-]{0,127}$`)
)

// ParseIdentity parses an identity as certificates carry it and --client-dns-san
// names it:
//
//	admin/NAME               admin/NAME/export-keys
//	brand/BRAND/NAME
//	signer/NAME              signer/BRAND/NAME
//	auditor/NAME             auditor/BRAND/NAME
func ParseIdentity(s string) (Identity, error) {
	parts := strings.Split(s, "/")
	id := Identity{Role: Role(parts[0])}
	switch {
	case len(parts) == 2:
		id.Name = parts[1]
	case len(parts) == 3 && id.Role == Admin && parts[2] == exportKeys:
		id.Name, id.ExportKeys = parts[1], true
	case len(parts) == 3:
		id.Brand, id.Name = parts[1], parts[2]
		if id.Brand == "" {
			return Identity{}, fmt.Errorf("%q has an empty brand", s)
		}
	default:
		return Identity{}, fmt.Errorf("%q is not of the form role/name or role/brand/name", s)
	}
	if err := id.Check(); err != nil {
		return Identity{}, fmt.Errorf("%q: %w", s, err)
	}
	return id, nil
}

// Check reports what is wrong with an identity: an unknown role, a brand where
// there must be none or none where there must be one, a name or brand that
// cannot be written as one.
func (id Identity) Check() error {
	switch id.Role {
	case Admin:
		if id.Brand != "" {
			return errors.New("an admin is bound to no brand")
		}
	case Brand:
		if id.Brand == "" {
			return errors.New("role brand needs the brand it is for")
		}
	case Signer, Auditor:
	default:
		return fmt.Errorf("unknown role %.40q: use admin, brand, signer or auditor", id.Role)
	}
	if id.ExportKeys && id.Role != Admin {
		return errors.New("only an admin may export keys")
	}
	if !nameForm.MatchString(id.Name) {
		return fmt.Errorf("name %.60q: use 1 to 128 of A-Z, a-z, 0-9 and . _ @ : | + -, a letter or digit first", id.Name)
	}
	if id.Brand != "" && !brandForm.MatchString(id.Brand) {
		return fmt.Errorf("%.60q is no brand", id.Brand)
	}
	return nil
}

// SignerID is the id under which a signer registers: its name, and before it the
// brand it is bound to, so that signers of two brands may have one name.
func (id Identity) SignerID() string {
	if id.Brand == "" {
		return id.Name
	}
	return id.Brand + "." + id.Name
}

// ParseDNSNames parses the values of --client-dns-san, "NAME=ROLE/…": what the
// holder of a certificate for a DNS name is.
func ParseDNSNames(values []string) (map[string]Identity, error) {
	names := make(map[string]Identity)
	for _, v := range values {
		name, text, ok := strings.Cut(v, "=")
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		if !ok || name == "" || strings.ContainsAny(name, "*/ ") {
			return nil, fmt.Errorf("%q is not of the form NAME=ROLE/NAME, such as mx1.example.net=signer/mx1", v)
		}
		id, err := ParseIdentity(text)
		if err != nil {
			return nil, err
		}
		if _, twice := names[name]; twice {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		names[name] = id
	}
	return names, nil
}
