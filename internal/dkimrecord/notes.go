package dkimrecord

import "strings"

// The value of n= is a qp-section of RFC 2045 §6.7 that has no semicolon and no line of its own.

const hexDigits = "0123456789ABCDEF"

// appendQuotedPrintable appends text so that it stands in a tag-list: printable ASCII and inner blanks as they are, all
// else as "=XX".
func appendQuotedPrintable(dst []byte, text string) []byte {
	for i := range len(text) {
		c := text[i]
		plain := '!' <= c && c <= '~' && c != ';' && c != '='
		blank := (c == ' ' || c == '\t') && i > 0 && i < len(text)-1
		if plain || blank {
			dst = append(dst, c)
		} else {
			dst = append(dst, '=', hexDigits[c>>4], hexDigits[c&0xf])
		}
	}
	return dst
}

// parseQuotedPrintable undoes appendQuotedPrintable and the folding of value, which has no bare CR or LF.
func parseQuotedPrintable(value string) (string, bool) {
	value = strings.ReplaceAll(value, "\r\n", "")
	if !strings.Contains(value, "=") {
		return value, true
	}
	text := make([]byte, 0, len(value))
	for i := 0; i < len(value); i++ {
		c := value[i]
		if c == '=' {
			if i+2 >= len(value) {
				return "", false
			}
			high := strings.IndexByte(hexDigits, value[i+1])
			low := strings.IndexByte(hexDigits, value[i+2])
			if high < 0 || low < 0 {
				return "", false
			}
			c = byte(high<<4 | low) //nolint:gosec // two hexadecimal digits
			i += 2
		}
		text = append(text, c)
	}
	return string(text), true
}
