package schema

const (
	tokenPrefix  = Root + "meta/tokens/"
	secretPrefix = Root + "meta/secrets/"
)

// TokenPrefix is the prefix of all bearer tokens.
func TokenPrefix() string { return tokenPrefix }

// TokenKey is where a bearer token's hash stands.
func TokenKey(id string) string { return tokenPrefix + id }

// SecretPrefix is the prefix of a brand's secrets.
func SecretPrefix(brand string) string { return secretPrefix + brand + "/" }

// SecretKey is where the hash of a brand's secret stands.
func SecretKey(brand, id string) string { return SecretPrefix(brand) + id }
