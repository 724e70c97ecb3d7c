package dkimrecord

// Reason says in one word why a text is not a key record. The values are stable: they go to API callers as they are.
type Reason string

// The reasons.
const (
	ReasonEmpty            Reason = "EMPTY"
	ReasonTooLong          Reason = "TOO_LONG"
	ReasonBadCharacter     Reason = "BAD_CHARACTER"
	ReasonBadTag           Reason = "BAD_TAG"
	ReasonDuplicateTag     Reason = "DUPLICATE_TAG"
	ReasonVersionNotFirst  Reason = "VERSION_NOT_FIRST"
	ReasonBadVersion       Reason = "BAD_VERSION"
	ReasonUnknownKeyType   Reason = "UNKNOWN_KEY_TYPE"
	ReasonBadValue         Reason = "BAD_VALUE"
	ReasonBadBase64        Reason = "BAD_BASE64"
	ReasonMissingPublicKey Reason = "MISSING_PUBLIC_KEY"
)

// InvalidError is the error of Parse. It never holds a piece of the text, which may be a key pasted by mistake.
type InvalidError struct {
	Reason Reason
	Tag    string // the tag at fault if it is one of RFC 6376 §3.6.1, else ""
	Offset int    // where in the text the tag at fault begins, in octets
}

// Error returns one sentence that says what is wrong with the text.
func (e *InvalidError) Error() string {
	s := "not a DKIM key record: "
	switch e.Reason {
	case ReasonEmpty:
		return s + "the text is empty"
	case ReasonTooLong:
		return s + "the text is longer than a TXT record can be"
	case ReasonBadCharacter:
		return s + "the text has a character other than printable ASCII and folding white space"
	case ReasonBadTag:
		return s + "a part of it does not have the form tag=value; separate the tags with one semicolon each"
	case ReasonDuplicateTag:
		if e.Tag == "" {
			return s + "a tag stands in it twice"
		}
		return s + e.Tag + "= stands in it twice"
	case ReasonVersionNotFirst:
		return s + "v= is not the first tag"
	case ReasonBadVersion:
		return s + "v= is not DKIM1"
	case ReasonUnknownKeyType:
		return s + "k= is neither rsa nor ed25519"
	case ReasonBadValue:
		return s + "the value of " + e.Tag + "= is malformed"
	case ReasonBadBase64:
		return s + "p= is not base64"
	case ReasonMissingPublicKey:
		return s + "it has no p= tag"
	}
	return s + string(e.Reason)
}
