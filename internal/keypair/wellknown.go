package keypair

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
)

// wellKnown are keys whose private halves everybody can read, by the SHA-256 of the octets of p=. The short RSA keys are
// here to be told apart from others that are too short.
var wellKnown = map[string]string{
	"dba3f0cb69f06d70e41abc6ac5812bc3d2639a24b621ba5d241202ac89cb7b9c": "RFC 6376, appendix C",
	"362d9a99501883f6d1ac717c53fff96582fb0a7c52464cb64b9082aa887bc7b4": "RFC 8463, appendix A.2",
	"21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9": "RFC 8463, appendix A.1, and RFC 8032, section 7.1",
	"39f713d0a644253f04529421b9f51b9b08979d08295959c4f3990ee617f5139f": "RFC 8032, section 7.1",
	"dac073e0123bdea59dd9b3bda9cf6037f63aca82627d7abcd5c4ac29dd74003e": "RFC 8032, section 7.1",
	"91384c411e5af29648f17f922b402655b11ecaec1b33fc45796241963f95f202": "RFC 8032, section 7.1",
	"5f9b247e2a654719f198e4f241d6b0df9a1a937a13ef5ef899f64d9285fce224": "RFC 8032, section 7.1",
	"e744c0791320c3285460eddb523f14c88d857ada46b97a5690d88cf978b9191f": "RFC 8410, section 10",
	"8fb6bad671cfe698393c453357da61b56d757ab8c0f3fb9c87f2849e63131878": "RFC 9500, section 2.1",
	"6fd13c2435a361e7c588cd17f55f5ad3df0177a66c1727a6a200845f4d7ab88c": "RFC 7515, appendix A.2",
	"ad32320cf6c596d884b05381ba573aba8ddd5749b4de8f4a23a79f9a89ddaeb2": "RFC 7517, appendix A, and RFC 7638",
	"627771f25da426d1f9ae315e42106d700b1529850eee1592acf39603959d795d": "RFC 7520, section 3",
	"1c6fcae26d025791aca74da12cba8ad7c94e838575f4702bed6e55b45ed2ad9a": "the tests of OpenDKIM",
}

// judgeFame refuses the keys of wellKnown. octets are those of p=.
func judgeFame(octets []byte) error {
	sum := sha256.Sum256(octets)
	if where := wellKnownByDigest()[sum]; where != "" {
		return &InvalidError{Reason: ReasonWellKnown, Detail: where}
	}
	return nil
}

var wellKnownByDigest = sync.OnceValue(func() map[[sha256.Size]byte]string {
	keys := make(map[[sha256.Size]byte]string, len(wellKnown))
	for digest, where := range wellKnown {
		octets, err := hex.DecodeString(digest)
		if err != nil || len(octets) != sha256.Size {
			panic("keypair: bad constant " + digest)
		}
		keys[[sha256.Size]byte(octets)] = where
	}
	return keys
})
