package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// failure is a call that failed, in words for operators.
type failure struct {
	code       codes.Code
	reason     string        // of the ErrorInfo; empty if dkimd did not get to say
	retryAfter time.Duration // 0: dkimd named none
	text       string
}

// Error is the message of dkimd with the reason in brackets, or what to look at
// if dkimd could not answer.
func (f *failure) Error() string { return f.text }

func (r *run) failure(err error) *failure {
	st := status.Convert(err)
	f := &failure{code: st.Code()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			f.reason = d.GetReason()
		case *errdetails.RetryInfo:
			f.retryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	s := r.session
	switch problem := innermost(st.Message()); {
	case f.reason != "":
		f.text = fmt.Sprintf("%s [%s]", st.Message(), f.reason)
	case strings.Contains(problem, "tls: ") || strings.Contains(problem, "x509: "):
		f.text = fmt.Sprintf("dkimd at %s and dkimctl do not accept each other's certificates (%s): check ca_file %s, cert_file %s and server_name in %s",
			s.config.Address, problem, s.config.CAFile, cmp.Or(s.config.CertFile, "(none)"), s.source)
	case f.code == codes.Unavailable && !strings.Contains(problem, "dial "):
		f.text = fmt.Sprintf("the connection to dkimd at %s broke (%s): dkimd has stopped, or does not accept the certificate %s. If this was a change, it may have happened",
			s.config.Address, problem, cmp.Or(s.config.CertFile, "(none)"))
	case f.code == codes.Unavailable:
		f.text = fmt.Sprintf("cannot reach dkimd at %s (%s): is it running? The address is from %s",
			s.config.Address, problem, r.addressSource())
	case f.code == codes.DeadlineExceeded:
		f.text = fmt.Sprintf("dkimd at %s has not answered within %s: try again, or give it more with --timeout. If this was a change, it may have happened",
			s.config.Address, r.timeout)
	case f.code == codes.Canceled:
		f.text = errInterrupted.Error()
	case f.code == codes.Unimplemented:
		f.text = fmt.Sprintf("dkimd at %s does not know this call: it may be older than dkimctl (%s)", s.config.Address, problem)
	default:
		f.text = fmt.Sprintf("%s [%s]", problem, f.code)
	}
	f.text = oneLine(f.text)
	return f
}

func (r *run) addressSource() string {
	if r.address != "" {
		return "--address"
	}
	return r.session.source + ", --address names another"
}

// innermost takes what grpc-go wraps around the errors of a connection off.
func innermost(message string) string {
	if i := strings.LastIndex(message, `desc = "`); i >= 0 {
		message = strings.TrimSuffix(message[i+len(`desc = "`):], `"`)
	}
	for _, layer := range []string{"transport: ", "Error while dialing: ", "authentication handshake failed: ", "error reading server preface: "} {
		message = strings.TrimPrefix(message, layer)
	}
	return message
}
