// Package milter signs mail for Postfix and Sendmail, as a mail filter of theirs, with
// the keys that the client package signer names.
//
// The hash of a body is made while the mail server tells it, once for all keys, and
// which keys sign is asked at the end of the message, so that a message of any size
// takes no memory and is signed with the keys that sign then. Signatures are relaxed in
// header and body (RFC 6376 §3.4).
package milter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	gomilter "github.com/emersion/go-milter"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dkimzone/dkimzone/signer"
)

// Trouble says what becomes of a message that should be signed and cannot be.
type Trouble string

// The kinds of Trouble.
const (
	TempFail Trouble = "tempfail" // the sender tries again later
	Accept   Trouble = "accept"   // it goes out unsigned
)

// LongLines says what becomes of a message with lines over LineLimit. No mail server
// sends those as they are: RFC 5321 has no room for them.
type LongLines string

// The kinds of LongLines.
const (
	// Broken signs the message as Postfix sends it: with a line ending and a space after
	// each LineLimit octets of a line.
	Broken LongLines = "broken"
	// Unsigned lets it go out unsigned.
	Unsigned LongLines = "unsigned"
	// Whole signs it as it is, for a mail server that does not break lines.
	Whole LongLines = "whole"
)

// SignHeaders are the fields that are signed by default.
var SignHeaders = []string{
	"from", "date", "subject", "reply-to", "sender", "to", "cc", "message-id", "in-reply-to", "references",
	"content-type", "mime-version", "content-transfer-encoding",
}

// Options says how to make a Server. Client is required.
type Options struct {
	// Client says with which keys to sign.
	Client *signer.Client
	// InternalHosts are the SMTP clients whose mail is signed. That of authenticated
	// clients, and of those on a Unix socket of the mail server, is signed always.
	InternalHosts []netip.Prefix
	// SignHeaders are the names of the fields to sign, if they are there. They must
	// have From in them. Default: SignHeaders.
	SignHeaders []string
	// OversignHeaders are those of SignHeaders that cannot be added to a signed message.
	// From is always one of them.
	OversignHeaders []string
	// OnTrouble is TempFail by default.
	OnTrouble Trouble
	// LongLines is Broken by default.
	LongLines LongLines
	// LineLimit is how many octets a line may have, without its ending. Default 998
	// (RFC 5321 §4.5.3.1.6, and smtp_line_length_limit of Postfix).
	LineLimit int
	// Timeout is how long signing a message may take. Default 10 s.
	Timeout time.Duration
	// Grace is how long Serve waits for messages that are being told when it is to end.
	// Default 10 s.
	Grace time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Logger is told of each message. Default: nobody.
	Logger *slog.Logger
	// Metrics is where to register metrics. Default: nowhere.
	Metrics prometheus.Registerer
}

// Server is a milter. It is safe for concurrent use.
type Server struct {
	Options
	signs   map[string]bool
	metrics *metrics

	mu    sync.Mutex
	conns map[*conn]bool // whether a message is being told
	idle  chan struct{}  // gets one when none is, or it had one
	done  sync.WaitGroup // of conns
}

// New returns a Server.
func New(o Options) (*Server, error) {
	if o.Client == nil {
		return nil, errors.New("milter: Client is missing")
	}
	if o.OnTrouble == "" {
		o.OnTrouble = TempFail
	}
	if o.OnTrouble != TempFail && o.OnTrouble != Accept {
		return nil, fmt.Errorf("milter: trouble is answered with %q or %q, not %q", TempFail, Accept, o.OnTrouble)
	}
	if o.LongLines == "" {
		o.LongLines = Broken
	}
	if !slices.Contains([]LongLines{Broken, Unsigned, Whole}, o.LongLines) {
		return nil, fmt.Errorf("milter: long lines are %q, %q or %q, not %q", Broken, Unsigned, Whole, o.LongLines)
	}
	if o.LineLimit == 0 {
		o.LineLimit = 998
	}
	if o.LineLimit < minLineLimit {
		return nil, fmt.Errorf("milter: a line limit of %d is too short for our own lines; it must be %d at least", o.LineLimit, minLineLimit)
	}
	if o.SignHeaders == nil {
		o.SignHeaders = SignHeaders
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{Options: o, signs: make(map[string]bool), conns: make(map[*conn]bool), idle: make(chan struct{}, 1)}
	var err error
	if s.SignHeaders, err = fieldNames(o.SignHeaders); err != nil {
		return nil, err
	}
	if s.OversignHeaders, err = fieldNames(append([]string{"from"}, o.OversignHeaders...)); err != nil {
		return nil, err
	}
	for _, name := range s.SignHeaders {
		s.signs[name] = true
	}
	for _, name := range s.OversignHeaders {
		if !s.signs[name] {
			return nil, fmt.Errorf("milter: %s is not among the header fields to sign", name)
		}
	}
	s.metrics = newMetrics(o.Metrics)
	return s, nil
}

// minLineLimit is more than what signatures have in a line.
const minLineLimit = 80

// fieldNames are names of header fields in lower case, each once.
func fieldNames(names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		name = strings.ToLower(strings.TrimSpace(name))
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' || r == ';' }) {
			return nil, fmt.Errorf("milter: %q is no name of a header field", name)
		}
		if name == "dkim-signature" {
			return nil, errors.New("milter: DKIM-Signature cannot be signed (RFC 6376 §3.7)")
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// Serve answers mail servers until ctx ends, and then those that are in the middle of
// a message, for as long as Grace. It closes ln, and returns nil if ctx ended. It may
// be called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	working, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	tracked := &listener{Listener: ln, server: s}
	server := gomilter.Server{
		// The library calls it after each Accept, and at no other time, see session.
		NewMilter: func() gomilter.Milter { return &session{Server: s, conn: tracked.last, ctx: working} },
		Actions:   gomilter.OptAddHeader,
		Protocol:  gomilter.OptNoHelo | gomilter.OptNoRcptTo | gomilter.OptNoUnknown | gomilter.OptNoData,
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	err := server.Serve(tracked)
	if ctx.Err() != nil {
		err = nil
		s.drain()
	}
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Conn.Close() // its session ends, and closes it again
	}
	s.mu.Unlock()
	s.done.Wait()
	return err
}

// drain waits until no message is being told.
func (s *Server) drain() {
	limit := time.NewTimer(s.Grace)
	defer limit.Stop()
	for s.busy() {
		select {
		case <-s.idle:
		case <-limit.C:
			return
		}
	}
}

func (s *Server) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, busy := range s.conns {
		if busy {
			return true
		}
	}
	return false
}

// listener accepts connections that the Server knows of.
type listener struct {
	net.Listener
	server *Server
	last   *conn
}

// Accept implements net.Listener. It bears errors that pass, as when no file
// descriptor is free.
func (l *listener) Accept() (net.Conn, error) {
	wait := 5 * time.Millisecond
	for {
		nc, err := l.Listener.Accept()
		if err == nil {
			l.last = &conn{Conn: nc, server: l.server}
			l.server.mu.Lock()
			defer l.server.mu.Unlock()
			l.server.conns[l.last] = false
			l.server.done.Add(1)
			l.server.metrics.connections.Inc()
			return l.last, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		l.server.Logger.Error("cannot accept a connection", slog.Any("error", err))
		time.Sleep(wait)
		wait = min(2*wait, time.Second)
	}
}

// idleLimit is longer than any mail server leaves an SMTP session open in silence.
const idleLimit = 2 * time.Hour

// conn is a connection of a mail server.
type conn struct {
	net.Conn
	server *Server
	once   sync.Once
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(idleLimit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// setBusy says whether a message is being told.
func (c *conn) setBusy(busy bool) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if was, open := c.server.conns[c]; open && was != busy {
		c.server.conns[c] = busy
		c.server.told()
	}
}

// told says that a message may be over.
func (s *Server) told() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

// Close implements net.Conn. The session calls it when it is over.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.server.mu.Lock()
		delete(c.server.conns, c)
		c.server.mu.Unlock()
		c.server.metrics.connections.Dec()
		c.server.told()
		c.server.done.Done()
	})
	return err
}
