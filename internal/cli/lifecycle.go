package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

func (r *run) domainDescribe() *cobra.Command {
	return r.command(&cobra.Command{
		Use:   "describe BRAND DOMAIN",
		Short: "Show how a domain's keys stand, and why",
		Long: `Shows a domain with its conditions, its next rotation, the policy that holds, and of each selector what was last seen in
DNS. "domain check" looks now.`,
		Example: "  dkimctl domain describe acme spamtrap.dk",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		d, err := r.getDomain(ctx, api, args[0], args[1])
		if err != nil {
			return err
		}
		return r.print(d, func(w io.Writer) error { return describe(w, d) })
	})
}

func describe(w io.Writer, d *dkimv1.Domain) error {
	kind := ""
	if d.GetKind() != dkimv1.DomainKind_DOMAIN_KIND_CUSTOMER {
		kind = strings.TrimPrefix(d.GetKind().String(), "DOMAIN_KIND_")
	}
	if err := details(w,
		"Domain", domainText(d),
		"Kind", kind,
		"Brand", brandOf(d.GetName()),
		"Zone", lastPart(d.GetZone()),
		"Policy", policyText(d.GetEffectiveRotationPolicy()),
		"Next rotation", timeText(d.GetNextRotationTime()),
		"Asked for", timeText(d.GetRotationRequestTime()),
		"Next check", timeText(d.GetNextCheckTime()),
	); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	t := newTable(w)
	if len(d.GetConditions()) > 0 {
		row(t, "CONDITION", "ALGORITHM", "STATUS", "REASON", "SINCE", "MESSAGE")
		for _, c := range d.GetConditions() {
			row(t, c.GetType(), groupText(c), strings.TrimPrefix(c.GetStatus().String(), "STATUS_"), c.GetReason(), timeText(c.GetLastTransitionTime()), c.GetMessage())
		}
		_, _ = fmt.Fprintln(t) // Flush tells of what fails
	}
	if err := t.Flush(); err != nil {
		return err
	}
	t = newTable(w)
	row(t, "SELECTOR", "ALGORITHM", "STATE", "CNAME", "RECORD", "CNAME TARGET")
	for _, s := range d.GetSelectors() {
		state := ""
		if s.GetKey() != "" {
			state = stateText(s.GetKeyState())
		}
		row(t, s.GetSelector(), algorithmText(s.GetAlgorithm()), state, checkText(s.GetCnameCheck()), checkText(s.GetRecordCheck()), s.GetCnameTarget())
	}
	return t.Flush()
}

// groupText is the algorithm that a condition is about.
func groupText(c *dkimv1.Condition) string {
	if c.GetAlgorithm() == dkimv1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		return ""
	}
	return algorithmText(c.GetAlgorithm())
}

// checkText says in short what was seen.
func checkText(c *dkimv1.Check) string {
	switch {
	case c == nil:
		return ""
	case c.GetFinding() == dkimv1.Check_FINDING_PROVEN:
		return "ok since " + timeText(c.GetProvenSince())
	case c.GetReason() != "":
		return c.GetReason()
	}
	return strings.TrimPrefix(c.GetFinding().String(), "FINDING_")
}

func (r *run) domainCheck() *cobra.Command {
	var servers bool
	c := r.command(&cobra.Command{
		Use:   "check BRAND DOMAIN",
		Short: "Look at a domain's CNAMEs and records in DNS, now",
		Long: `Looks at the CNAMEs of the domain at the name servers of the customer, and at the domain's records at those of the zone,
and says of each that is not as it should be what is there, what should be, and how to mend it. The exit status is 1 if
there are any.`,
		Example: `  dkimctl domain check acme spamtrap.dk
  dkimctl domain check acme spamtrap.dk --servers`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		resp, err := call(ctx, r, api.CheckDomain, &dkimv1.CheckDomainRequest{Name: domainName(args[0], args[1])})
		if err != nil {
			return err
		}
		bad := 0
		for _, c := range resp.GetRecords() {
			if c.GetCheck().GetFinding() != dkimv1.Check_FINDING_PROVEN {
				bad++
			}
		}
		if err := r.print(resp, func(w io.Writer) error { return checks(w, resp, servers) }); err != nil {
			return err
		}
		if bad > 0 {
			return fmt.Errorf("%d of %d records are not as they should be", bad, len(resp.GetRecords()))
		}
		return nil
	})
	c.Flags().BoolVar(&servers, "servers", false, "show what each name server said")
	return c
}

func checks(w io.Writer, resp *dkimv1.CheckDomainResponse, servers bool) error {
	if len(resp.GetRecords()) == 0 {
		return say(w, "%s has no records to look at", lastPart(resp.GetDomain().GetName()))
	}
	for i, c := range resp.GetRecords() {
		kind := strings.TrimPrefix(c.GetType().String(), "RECORD_TYPE_")
		good := c.GetCheck().GetFinding() == dkimv1.Check_FINDING_PROVEN
		if i > 0 && (!good || servers) {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		if err := say(w, "%s %s: %s", c.GetOwnerName(), kind, checkText(c.GetCheck())); err != nil {
			return err
		}
		var pairs []string
		if !good {
			found := "nothing"
			if len(c.GetFound()) > 0 {
				found = strings.Join(c.GetFound(), "; ")
			}
			pairs = append(pairs, "is", found, "should be", c.GetExpected())
		}
		if c.GetHint() != "" {
			pairs = append(pairs, "hint", c.GetHint())
		}
		for _, s := range c.GetServers() {
			if servers {
				pairs = append(pairs, strings.TrimSpace(s.GetHost()+" "+s.GetAddress()), answerText(s))
			}
		}
		if err := details(w, pairs...); err != nil {
			return err
		}
	}
	return nil
}

func answerText(s *dkimv1.ServerAnswer) string {
	return strings.Join(strings.Fields(strings.Join([]string{s.GetRcode(), s.GetAnswer(), s.GetError()}, " ")), " ")
}

func (r *run) domainHistory() *cobra.Command {
	return r.command(&cobra.Command{
		Use:   "history BRAND DOMAIN",
		Short: "Show who or what changed which key, when and why",
		Long: `Shows the last 64 or more things that happened to a domain and its keys, the latest first. It works for a domain that is
deleted, too.`,
		Example: "  dkimctl domain history acme spamtrap.dk",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		l := r.newList("events", "TIME", "ACTOR", "ACTION", "SELECTOR", "STATE", "REASON", "KEY", "DETAIL")
		return l.pages(func(token string) (string, error) {
			resp, err := call(ctx, r, api.ListDomainEvents, &dkimv1.ListDomainEventsRequest{
				Parent: domainName(args[0], args[1]), PageSize: pageSize, PageToken: token,
			})
			for _, e := range resp.GetEvents() {
				l.add(e, timeText(e.GetEventTime()), e.GetActor(), e.GetAction(), e.GetSelector(), transitionText(e), e.GetReason(), lastPart(e.GetKey()), e.GetDetail())
			}
			return resp.GetNextPageToken(), err
		})
	})
}

func transitionText(e *dkimv1.DomainEvent) string {
	var words []string
	for _, s := range []dkimv1.KeyState{e.GetFromState(), e.GetToState()} {
		if s != dkimv1.KeyState_KEY_STATE_UNSPECIFIED {
			words = append(words, stateText(s))
		}
	}
	return strings.Join(words, " > ")
}

// algorithmChangeFlags collects FROM=TO.
type algorithmChangeFlags []*dkimv1.AlgorithmChange

func (f *algorithmChangeFlags) String() string {
	var all []string
	for _, c := range *f {
		all = append(all, algorithmText(c.GetFrom())+"="+algorithmText(c.GetTo()))
	}
	return strings.Join(all, " ")
}

func (f *algorithmChangeFlags) Set(s string) error {
	from, to, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("use FROM=TO, such as rsa2048=rsa3072")
	}
	var algorithms [2]keypair.Algorithm
	for i, name := range []string{from, to} {
		var err error
		if algorithms[i], err = keypair.ParseAlgorithm(name); err != nil {
			return err
		}
	}
	*f = append(*f, &dkimv1.AlgorithmChange{From: algorithmMessage(algorithms[0]), To: algorithmMessage(algorithms[1])})
	return nil
}

func (*algorithmChangeFlags) Type() string { return "from=to" }

func (r *run) domainUpdate() *cobra.Command {
	var f policyFlags
	var changes algorithmChangeFlags
	var etag string
	var c *cobra.Command
	c = r.command(&cobra.Command{
		Use:   "update BRAND DOMAIN",
		Short: "Change how a domain's keys rotate, or their algorithm",
		Long: `Changes those settings of a domain that flags name. --algorithm FROM=TO makes the selectors whose keys are of one algorithm
go over to another: it is a rotation, the old key signs until the new one is proven.

` + policyHelp,
		Example: `  dkimctl domain update acme spamtrap.dk --rotate-every 30d
  dkimctl domain update acme spamtrap.dk --paused true
  dkimctl domain update acme spamtrap.dk --algorithm rsa2048=rsa3072`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		req := &dkimv1.UpdateDomainRequest{
			Domain:     &dkimv1.Domain{Name: domainName(args[0], args[1]), Etag: etag},
			UpdateMask: mask(c, f.fields), AlgorithmChanges: changes,
		}
		if len(req.GetUpdateMask().GetPaths()) > 0 {
			req.Domain.RotationPolicy = &f.policy
		}
		d, err := call(ctx, r, api.UpdateDomain, req)
		if err != nil {
			return err
		}
		return r.print(d, func(w io.Writer) error { return describe(w, d) })
	})
	f.define(c)
	c.Flags().Var(&changes, "algorithm", "let the selectors of one algorithm go over to another")
	noFiles(c, "algorithm")
	etagFlag(c, &etag)
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		if len(changes) > 0 {
			return nil
		}
		return needChange(c, f.fields)
	}
	return c
}

func (r *run) keyRevoke() *cobra.Command {
	var yes bool
	var w waiting
	req := &dkimv1.RevokeKeyRequest{}
	c := r.command(&cobra.Command{
		Use:   "revoke BRAND DOMAIN SELECTOR",
		Short: "Revoke a key at once, because others may hold it",
		Long: `Publishes the record of the key that stands in a selector with an empty p= at once, and shows which signers had the key.
With --compromised mail that the key signed no longer verifies; the standby signs instead if it is proven, or else the
brand's default key does. Without it only a key that never signed is revoked.

` + confirmHelp,
		Example: `  dkimctl key revoke acme spamtrap.dk selector1 --compromised --reason 'found in a backup'
  dkimctl key revoke acme spamtrap.dk selector1 --compromised --yes --wait`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		name, err := r.keyName(ctx, api, args[0], args[1], args[2])
		if err != nil {
			return err
		}
		question := fmt.Sprintf("Revoke the key in selector %s of %s?", args[2], args[1])
		if req.GetCompromised() {
			question += " Mail it signed no longer verifies."
		}
		if err := r.confirm(ctx, yes, question); err != nil {
			return err
		}
		req.Name = name
		resp, err := call(ctx, r, api.RevokeKey, req)
		if err != nil {
			return err
		}
		if err := r.print(resp, func(out io.Writer) error { return revoked(out, resp, strings.ToLower(args[2])) }); err != nil {
			return err
		}
		d := resp.GetDomain()
		return r.wait(ctx, api, w, served{zone: d.GetZone(), revision: d.GetRevision()})
	})
	c.Flags().BoolVar(&req.Compromised, "compromised", false, "others may hold the private key")
	c.Flags().StringVar(&req.Reason, "reason", "", "why, a `sentence` for the history")
	noFiles(c, "reason")
	yesFlag(c, &yes)
	etagFlag(c, &req.Etag)
	w.define(c)
	return c
}

func revoked(w io.Writer, resp *dkimv1.RevokeKeyResponse, selector string) error {
	d := resp.GetDomain()
	if err := say(w, "the key in selector %s of %s is revoked", selector, lastPart(d.GetName())); err != nil {
		return err
	}
	for _, s := range d.GetSelectors() {
		if resp.GetPromotedKey() != "" && s.GetKey() == resp.GetPromotedKey() {
			if err := say(w, "the key in selector %s signs from now on", s.GetSelector()); err != nil {
				return err
			}
		}
	}
	if len(resp.GetHolders()) == 0 {
		return say(w, "no signer reported that it holds the key")
	}
	t := newTable(w)
	row(t, "SIGNER", "HELD SINCE", "LAST USE", "LAST REPORT", "STILL HELD")
	for _, h := range resp.GetHolders() {
		still := "no"
		if h.GetHolding() {
			still = "yes"
		}
		row(t, lastPart(h.GetSigner()), timeText(h.GetHoldTime()), timeText(h.GetLastUseTime()), timeText(h.GetReportTime()), still)
	}
	return t.Flush()
}
