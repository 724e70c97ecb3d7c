//go:build interop

package interop_test

import "strings"

// The messages of TestMatrix by their names.
const (
	msgPlain     = "plain"
	msgEightBit  = "8-bit"
	msgMultipart = "multipart"
	msgLong      = "long lines"
	msgTooLong   = "lines over 998"
	msgEmpty     = "empty body"
	msgFolded    = "folded fields"
	msgOdd       = "odd fields"
	msgList      = "list footer"
	msgBig       = "10 MB"
	msgTampered  = "tampered" // the plain one, changed after it was signed
)

// matrixMails are messages of a domain. Those with longer lines than SMTP allows
// are there because they are under way all the same.
func matrixMails(domain string) map[string]string {
	head := func(subject string) string {
		return "From: Jo <jo@" + domain + ">\r\nTo: someone@example.com\r\nSubject: " + subject +
			"\r\nDate: Sun, 22 Nov 2026 08:00:00 +0000\r\nMessage-ID: <1@" + domain + ">\r\n"
	}
	const mime = "MIME-Version: 1.0\r\n"
	return map[string]string{
		msgPlain: head("Is dinner ready?") + "\r\nHi.\r\n\r\nWe lost the game. Are you hungry yet?\r\n\r\nJo.\r\n",
		msgEightBit: head("=?utf-8?q?gr=C3=BC=C3=9Fe?=") + mime +
			"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße aus Kürten, æøå, 漢字.\r\nLatin: \xe4\xf6\xfc\r\n",
		msgMultipart: head("two parts") + mime + "Content-Type: multipart/alternative;\r\n\tboundary=\"=_x\"\r\n\r\n" +
			"This is a message in MIME format.\r\n--=_x\r\nContent-Type: text/plain\r\n\r\na  b\t\r\n\r\n--=_x\r\n" +
			"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\nPHA+YTxwPmI8L3A+Cg==\r\n--=_x--\r\n\r\n\r\n",
		msgLong:    head("long lines") + "\r\n" + strings.Repeat(strings.Repeat("x y  ", 199)+"\r\n", 20),
		msgTooLong: head("very long lines") + "\r\n" + strings.Repeat(strings.Repeat("x y  ", 1000)+"\r\n", 5),
		msgEmpty:   head("nothing") + "\r\n",
		msgFolded: "Received: from a.example (a.example [192.0.2.7])\r\n\tby b.example with ESMTP id 1\r\n\tfor <someone@example.com>;\r\n\tSun, 22 Nov 2026 08:00:00 +0000\r\n" +
			head("a \r\n\t b\r\n   c") + "References: " + strings.Repeat("<1234567890@example.org>\r\n ", 60) + "<2@example.org>\r\n" +
			"Cc: \"Doe, J.\" <j@example.org>,\r\n  k@example.org ,\r\n\tl@example.org\r\n\r\n.\r\n..\r\nHi \t\r\n\r\n\r\n",
		msgOdd: "to: someone@example.com\r\nFROM:jo@" + domain + "\r\nsubject:\r\nDate:Sun, 22 Nov 2026 08:00:00 +0000\r\n" +
			"X-Other: 1\r\nX-Other:  2\r\nX-Colon: a:b; c=d\r\nmessage-id:<1@" + domain + ">\r\n\r\nHi.\r\n",
		msgList: head("[list] a question") + "Sender: list-bounces@" + domain + "\r\nReply-To: list@" + domain + "\r\nPrecedence: list\r\n" +
			"List-Id: A list <list." + domain + ">\r\nList-Unsubscribe: <mailto:list-leave@" + domain + ">,\r\n <https://" + domain + "/leave>\r\n" +
			"List-Post: <mailto:list@" + domain + ">\r\n" + mime + "Content-Type: multipart/mixed; boundary=\"===1==\"\r\n\r\n" +
			"--===1==\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Disposition: inline\r\n\r\n> quoted\r\nFrom here on it is mine.\r\n-- \r\nJo\r\n" +
			"--===1==\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Disposition: inline\r\n\r\n" +
			"_______________________________________________\r\nlist mailing list\r\nlist@" + domain + "\r\n\r\n--===1==--\r\n",
		msgBig: head("big") + "\r\n" + strings.Repeat("The quick brown fox jumps over the lazy dog.\r\n", 10_000_000/46),
	}
}

// tampered is a signed message with another text.
func tampered(signed string) string {
	return strings.Replace(signed, "We lost the game.", "We won the game.", 1)
}
