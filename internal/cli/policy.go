package cli

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// inherit is the value by which a flag of a policy gives a setting back to the
// level above.
const inherit = "inherit"

const policyHelp = `Times are written as 90d, 36h or 30m. A setting that is not given, or is given as "inherit", is that of the level above: of
the brand for a domain, of the zone for a brand, the default for a zone.`

// policyFlags are the settings of a rotation policy.
type policyFlags struct {
	policy dkimv1.RotationPolicy
	fields map[string]string // field by flag
}

func (f *policyFlags) define(c *cobra.Command) {
	flags := c.Flags()
	f.fields = make(map[string]string)
	add := func(flag, field string) {
		f.fields[flag] = "rotation_policy." + field
		noFiles(c, flag)
	}
	for _, s := range []struct {
		flag, field, usage string
		to                 **durationpb.Duration
	}{
		{"rotate-every", "interval", "`time` from one rotation to the next (default 90d)", &f.policy.Interval},
		{"drain", "drain", "`time` that a key is served after it last signed (default 7d)", &f.policy.Drain},
		{"gap", "gap", "`time` that a selector shows a revoked key before it gets the next (default 7d)", &f.policy.Gap},
		{"publish-lead", "publish_lead", "`time` that a key is seen in DNS before it signs (default 24h)", &f.policy.PublishLead},
		{"check-interval", "check_interval", "`time` between looks at DNS (default 6h)", &f.policy.CheckInterval},
	} {
		flags.Var(&spanFlag{s.to}, s.flag, s.usage)
		add(s.flag, s.field)
	}
	flags.Var(&countFlag{&f.policy.JitterPercent}, "jitter", "`percent` by which the interval varies from domain to domain (default 10)")
	add("jitter", "jitter_percent")
	flags.Var(&countFlag{&f.policy.MaxSwitchesPerHour}, "max-per-hour", "at most so many `rotations` in an hour in the zone or brand, 0 for any number (default 0)")
	add("max-per-hour", "max_switches_per_hour")
	flags.Var(&switchFlag{&f.policy.Paused}, "paused", "`true`: nothing rotates but in an emergency (default false)")
	add("paused", "paused")
	flags.Var((*freezeFlags)(&f.policy.FreezeWindows), "freeze", "times `START/END` (2026-11-27T00:00:00Z/2026-11-30T00:00:00Z) at which nothing rotates; repeat it for each, \"none\" for none")
	add("freeze", "freeze_windows")
}

// spanFlag is a time span that may be left to the level above.
type spanFlag struct{ to **durationpb.Duration }

func (f *spanFlag) String() string {
	if f.to == nil || *f.to == nil {
		return ""
	}
	return spanText(*f.to)
}

var spanPattern = regexp.MustCompile(`^(?:(\d{1,5})d)?(.*)$`)

func (f *spanFlag) Set(s string) error {
	if s == inherit {
		*f.to = nil
		return nil
	}
	parts := spanPattern.FindStringSubmatch(s)
	days, _ := strconv.Atoi(parts[1]) // digits, or nothing
	span := time.Duration(days) * 24 * time.Hour
	if parts[2] != "" || parts[1] == "" {
		rest, err := time.ParseDuration(parts[2])
		if err != nil || rest < 0 {
			return fmt.Errorf("use a time such as 90d, 36h or 30m, or %s", inherit)
		}
		span += rest
	}
	*f.to = durationpb.New(span)
	return nil
}

func (*spanFlag) Type() string { return "time" }

// spanText is a time span in the form that spanFlag takes.
func spanText(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	span := d.AsDuration()
	days := span / (24 * time.Hour)
	rest := span - days*24*time.Hour
	text := ""
	if days > 0 {
		text = strconv.Itoa(int(days)) + "d"
	}
	if rest > 0 || days == 0 {
		r := rest.String()
		for _, zero := range []string{"m0s", "h0m"} { // 6h0m0s is 6h
			if strings.HasSuffix(r, zero) {
				r = r[:len(r)-2]
			}
		}
		text += r
	}
	return text
}

// countFlag is a number that may be left to the level above.
type countFlag struct{ to **int32 }

func (f *countFlag) String() string {
	if f.to == nil || *f.to == nil {
		return ""
	}
	return strconv.Itoa(int(**f.to))
}

func (f *countFlag) Set(s string) error {
	if s == inherit {
		*f.to = nil
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return fmt.Errorf("use a number, or %s", inherit)
	}
	v := int32(n)
	*f.to = &v
	return nil
}

func (*countFlag) Type() string { return "number" }

// switchFlag is true or false, or left to the level above.
type switchFlag struct{ to **bool }

func (f *switchFlag) String() string {
	if f.to == nil || *f.to == nil {
		return ""
	}
	return strconv.FormatBool(**f.to)
}

func (f *switchFlag) Set(s string) error {
	if s == inherit {
		*f.to = nil
		return nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("use true, false or %s", inherit)
	}
	*f.to = &v
	return nil
}

func (*switchFlag) Type() string { return "bool" }

// freezeFlags collects START/END.
type freezeFlags []*dkimv1.FreezeWindow

func (f *freezeFlags) String() string {
	var all []string
	for _, w := range *f {
		all = append(all, freezeText(w))
	}
	return strings.Join(all, " ")
}

func (f *freezeFlags) Set(s string) error {
	if s == "none" || s == inherit {
		*f = nil
		return nil
	}
	start, end, _ := strings.Cut(s, "/")
	from, err := time.Parse(time.RFC3339, start)
	to, err2 := time.Parse(time.RFC3339, end)
	if errors.Join(err, err2) != nil {
		return errors.New("use START/END with times such as 2026-11-27T00:00:00Z, or none")
	}
	*f = append(*f, &dkimv1.FreezeWindow{StartTime: timestamppb.New(from), EndTime: timestamppb.New(to)})
	return nil
}

func (*freezeFlags) Type() string { return "start/end" }

func freezeText(w *dkimv1.FreezeWindow) string {
	return timeText(w.GetStartTime()) + "/" + timeText(w.GetEndTime())
}

// policyText says what a policy sets, in the words of the flags.
func policyText(p *dkimv1.RotationPolicy) string {
	if p == nil {
		return ""
	}
	var words []string
	add := func(flag, value string) {
		if value != "" {
			words = append(words, flag+" "+value)
		}
	}
	add("rotate-every", spanText(p.GetInterval()))
	add("jitter", (&countFlag{&p.JitterPercent}).String())
	add("drain", spanText(p.GetDrain()))
	add("gap", spanText(p.GetGap()))
	add("publish-lead", spanText(p.GetPublishLead()))
	add("check-interval", spanText(p.GetCheckInterval()))
	add("max-per-hour", (&countFlag{&p.MaxSwitchesPerHour}).String())
	add("paused", (&switchFlag{&p.Paused}).String())
	for _, w := range p.GetFreezeWindows() {
		add("freeze", freezeText(w))
	}
	return strings.Join(words, ", ")
}
