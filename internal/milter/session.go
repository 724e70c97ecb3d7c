package milter

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/textproto"
	"strings"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/dkimzone/dkimzone/signer"
)

// session is one connection of the mail server. Its replies never make the library
// begin a new session, which would not know of the client any more.
type session struct {
	*Server
	conn     *conn
	ctx      context.Context
	internal bool // the client of the SMTP connection may send as anybody

	// Of the message.
	sign   bool
	fields []field
	size   int
	body   *bodyHash
}

// maxHeader is how many octets of fields to sign a message may have.
const maxHeader = 1 << 20

// keep is a reply that lets the session go on.
type keep struct{ reply gomilter.Response }

// Response implements gomilter.Response.
func (k keep) Response() *gomilter.Message { return k.reply.Response() }

// Continue implements gomilter.Response.
func (keep) Continue() bool { return true }

var (
	pass     = keep{gomilter.RespAccept}
	tempFail = keep{gomilter.NewResponseStr('y', "451 4.7.0 Message cannot be signed now, try again later\x00")}
)

// unsigned is the reply to a message that is not to be signed.
func (s *session) unsigned(reason string) gomilter.Response {
	s.metrics.messages.WithLabelValues(unsigned, reason).Inc()
	return pass
}

// trouble is the reply when a message cannot be signed that should be.
func (s *session) trouble() gomilter.Response {
	if s.OnTrouble == Accept {
		return s.unsigned(failed)
	}
	s.metrics.messages.WithLabelValues(tempFailed, failed).Inc()
	return tempFail
}

// Connect implements gomilter.Milter.
func (s *session) Connect(_, family string, _ uint16, addr net.IP, _ *gomilter.Modifier) (gomilter.Response, error) {
	s.internal = family == "unix"
	if ip, ok := netip.AddrFromSlice(addr); ok {
		for _, p := range s.InternalHosts {
			s.internal = s.internal || p.Contains(ip.Unmap())
		}
	}
	return gomilter.RespContinue, nil
}

// Helo implements gomilter.Milter.
func (s *session) Helo(string, *gomilter.Modifier) (gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

// MailFrom implements gomilter.Milter.
func (s *session) MailFrom(_ string, m *gomilter.Modifier) (gomilter.Response, error) {
	s.reset()
	s.sign = s.internal || m.Macros["{auth_authen}"] != "" || m.Macros["auth_authen"] != ""
	if !s.sign {
		return s.unsigned(notInternal), nil
	}
	s.conn.setBusy(true)
	s.body = newBodyHash(s.LineLimit, s.LongLines == Broken)
	return gomilter.RespContinue, nil
}

// RcptTo implements gomilter.Milter.
func (s *session) RcptTo(string, *gomilter.Modifier) (gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

// Header implements gomilter.Milter.
func (s *session) Header(name, value string, _ *gomilter.Modifier) (gomilter.Response, error) {
	lower := strings.ToLower(strings.TrimRight(name, " \t"))
	if s.sign && s.signs[lower] {
		s.size += len(name) + len(value)
		if s.size <= maxHeader {
			// The space after the colon is there mostly, and the mail server does not tell.
			s.fields = append(s.fields, field{name: lower, value: value, indent: len(name) + len(": ")})
		}
	}
	return gomilter.RespContinue, nil
}

// Headers implements gomilter.Milter.
func (s *session) Headers(textproto.MIMEHeader, *gomilter.Modifier) (gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

// BodyChunk implements gomilter.Milter.
func (s *session) BodyChunk(chunk []byte, _ *gomilter.Modifier) (gomilter.Response, error) {
	if s.sign {
		_, _ = s.body.Write(chunk) // never fails
	}
	return gomilter.RespContinue, nil
}

// Body implements gomilter.Milter. It is the end of the message.
func (s *session) Body(m *gomilter.Modifier) (gomilter.Response, error) {
	defer s.reset()
	if !s.sign {
		return pass, nil
	}
	queueID := m.Macros["i"]
	logger := s.Logger.With(slog.String("queue_id", queueID))
	if s.size > maxHeader {
		logger.Warn("not signed: its header is too long", slog.Int("octets", s.size))
		return s.unsigned(longHeader), nil
	}
	domain, err := senderDomain(s.fields)
	if err != nil {
		logger.Info("not signed: no domain to sign for", slog.Any("reason", err))
		return s.unsigned(noSender), nil
	}
	logger = logger.With(slog.String("domain", domain))
	body := s.body.sum()
	long := s.breakFields() || s.body.long
	if long {
		s.metrics.longLines.Inc()
		logger = logger.With(slog.Bool("long_lines", true))
	}
	if long && s.LongLines == Unsigned {
		logger.Warn("not signed: a line of it is too long", slog.Int("limit", s.LineLimit))
		return s.unsigned(longLines), nil
	}
	begin := time.Now()
	values, answer, err := s.signatures(domain, body)
	switch {
	case errors.Is(err, signer.ErrUnknownDomain):
		logger.Info("not signed: nobody has the domain")
		return s.unsigned(unknownDomain), nil
	case err == nil && len(values) == 0:
		logger.Warn("not signed: the domain has no key that signs", slog.String("reason", answer.Reason))
		return s.unsigned(noKey), nil
	}
	s.metrics.seconds.Observe(time.Since(begin).Seconds())
	if err != nil {
		logger.Error("cannot sign", slog.Any("error", err), slog.String("on_trouble", string(s.OnTrouble)))
		return s.trouble(), nil
	}
	for i, v := range values {
		if err := m.InsertHeader(0, "DKIM-Signature", v); err != nil {
			return nil, err
		}
		k := answer.Keys[i]
		s.metrics.signatures.WithLabelValues(k.Algorithm()).Inc()
		logger.Info("signed", slog.String("d", k.Domain), slog.String("s", k.Selector))
	}
	s.metrics.messages.WithLabelValues(signed, "").Inc()
	return pass, nil
}

// breakFields breaks the long lines of the fields, if that is to be done, and reports
// whether there are any.
func (s *session) breakFields() (long bool) {
	for i, f := range s.fields {
		if !f.long(s.LineLimit) {
			continue
		}
		long = true
		if s.LongLines == Broken {
			s.fields[i].value = f.broken(s.LineLimit)
		}
	}
	return long
}

// signatures are the values of DKIM-Signature for the message, one for each key of the answer.
func (s *session) signatures(domain string, body []byte) (values []string, answer signer.Answer, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.Timeout)
	defer cancel()
	msg := message{fields: s.fields, names: signedNames(s.fields, s.SignHeaders, s.OversignHeaders), body: body}
	err = s.Client.Sign(ctx, domain, func(a signer.Answer) error {
		values, answer = nil, a
		for _, k := range a.Keys {
			v, err := msg.signature(ctx, k, s.Now())
			if err != nil {
				return err
			}
			values = append(values, v)
		}
		return nil
	})
	return values, answer, err
}

// Abort implements gomilter.Milter.
func (s *session) Abort(*gomilter.Modifier) error {
	s.reset()
	return nil
}

// reset forgets the message.
func (s *session) reset() {
	s.conn.setBusy(false)
	s.sign, s.fields, s.size, s.body = false, nil, 0, nil
}
