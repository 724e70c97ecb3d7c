package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func zoneName(zone string) string { return "zones/" + zone }

func (r *run) zone() *cobra.Command {
	return r.group(&cobra.Command{
		Use:   "zone",
		Short: "Hosting zones, which customers' CNAMEs point into",
		Example: `  dkimctl zone create keys.example.net --name-server ns1.keys.example.net=192.0.2.1,2001:db8::1
  dkimctl zone list`,
	}, r.zoneCreate(), r.zoneGet(), r.zoneList(), r.zoneUpdate(), r.zoneDelete(), r.zoneAcceptDeletions(), r.zoneExport())
}

// zoneFlags are the settings of a zone; each flag stands for a field.
type zoneFlags struct {
	zone        dkimv1.Zone
	nameServers nameServerFlags
	policy      policyFlags
	fields      map[string]string // field by flag
}

func (f *zoneFlags) define(c *cobra.Command) {
	flags := c.Flags()
	f.fields = map[string]string{"name-server": "name_servers", "mailbox": "mailbox"}
	flags.Var(&f.nameServers, "name-server", "a name server and, if it lies inside the zone, its addresses; repeat it for each")
	flags.StringVar(&f.zone.Mailbox, "mailbox", "", "mail `address` of the administrator (default hostmaster at the zone)")
	for _, s := range []struct {
		flag, field string
		value       *int32
		usage       string
	}{
		{"record-ttl", "record_ttl_seconds", &f.zone.RecordTtlSeconds, "`seconds` a resolver may keep a key record (default 3600)"},
		{"negative-ttl", "negative_ttl_seconds", &f.zone.NegativeTtlSeconds, "`seconds` a resolver may keep that there is no record (default 300)"},
		{"apex-ttl", "apex_ttl_seconds", &f.zone.ApexTtlSeconds, "`seconds` a resolver may keep SOA, NS and name server addresses (default 86400)"},
		{"refresh", "refresh_seconds", &f.zone.RefreshSeconds, "SOA refresh in `seconds` (default 3600)"},
		{"retry", "retry_seconds", &f.zone.RetrySeconds, "SOA retry in `seconds` (default 600)"},
		{"expire", "expire_seconds", &f.zone.ExpireSeconds, "SOA expire in `seconds` (default 1209600)"},
	} {
		flags.Int32Var(s.value, s.flag, 0, s.usage)
		f.fields[s.flag] = s.field
	}
	noFiles(c, "name-server", "mailbox", "record-ttl", "negative-ttl", "apex-ttl", "refresh", "retry", "expire")
	f.policy.define(c)
	maps.Copy(f.fields, f.policy.fields)
}

func (r *run) zoneCreate() *cobra.Command {
	var f zoneFlags
	c := r.command(&cobra.Command{
		Use:   "create ZONE",
		Short: "Create a zone",
		Long: `Creates a hosting zone. Its name servers are those that the parent zone delegates it to; give the addresses of those that
lie inside the zone.

` + policyHelp,
		Example: `  dkimctl zone create keys.example.net --name-server ns1.keys.example.net=192.0.2.1,2001:db8::1 \
    --name-server ns2.keys.example.net=198.51.100.1
  dkimctl zone create keys.example.net --name-server ns1.example.org --name-server ns2.example.org --negative-ttl 60`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		f.zone.NameServers, f.zone.RotationPolicy = f.nameServers, &f.policy.policy
		z, err := call(ctx, r, api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: args[0], Zone: &f.zone})
		if err != nil {
			return err
		}
		return r.printZone(z)
	})
	f.define(c)
	require(c, "name-server")
	return c
}

func (r *run) zoneGet() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "get ZONE",
		Short:   "Show a zone",
		Example: "  dkimctl zone get keys.example.net",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		z, err := call(ctx, r, api.GetZone, &dkimv1.GetZoneRequest{Name: zoneName(args[0])})
		if err != nil {
			return err
		}
		return r.printZone(z)
	})
}

func (r *run) zoneList() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "list",
		Short:   "List the zones",
		Example: "  dkimctl zone list",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, _ []string) error {
		l := r.newList("zones", "ZONE", "SERIAL", "NAME SERVERS", "CREATED")
		return l.pages(func(token string) (string, error) {
			resp, err := call(ctx, r, api.ListZones, &dkimv1.ListZonesRequest{PageSize: pageSize, PageToken: token})
			for _, z := range resp.GetZones() {
				var hosts []string
				for _, ns := range z.GetNameServers() {
					hosts = append(hosts, ns.GetHost())
				}
				l.add(z, lastPart(z.GetName()), strconv.FormatInt(z.GetSerial(), 10), strings.Join(hosts, " "), timeText(z.GetCreateTime()))
			}
			return resp.GetNextPageToken(), err
		})
	})
}

func (r *run) zoneUpdate() *cobra.Command {
	var f zoneFlags
	var c *cobra.Command
	c = r.command(&cobra.Command{
		Use:   "update ZONE",
		Short: "Change a zone's settings",
		Long: `Changes those settings of a zone that flags name; 0 or "" stands for the default. Name servers are replaced all together:
name those that stay, too.

` + policyHelp,
		Example: `  dkimctl zone update keys.example.net --record-ttl 7200
  dkimctl zone update keys.example.net --name-server ns1.keys.example.net=192.0.2.1 --name-server ns2.keys.example.net=192.0.2.2`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		f.zone.Name, f.zone.NameServers, f.zone.RotationPolicy = zoneName(args[0]), f.nameServers, &f.policy.policy
		z, err := call(ctx, r, api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: &f.zone, UpdateMask: mask(c, f.fields)})
		if err != nil {
			return err
		}
		return r.printZone(z)
	})
	f.define(c)
	etagFlag(c, &f.zone.Etag)
	c.PreRunE = func(c *cobra.Command, _ []string) error { return needChange(c, f.fields) }
	return c
}

// mask names the fields whose flags were given.
func mask(c *cobra.Command, fields map[string]string) *fieldmaskpb.FieldMask {
	m := &fieldmaskpb.FieldMask{}
	for flag, field := range fields {
		if c.Flags().Changed(flag) {
			m.Paths = append(m.Paths, field)
		}
	}
	m.Normalize()
	return m
}

func needChange(c *cobra.Command, fields map[string]string) error {
	if len(mask(c, fields).GetPaths()) == 0 {
		return usageError{"nothing to change is given"}
	}
	return nil
}

func (r *run) zoneDelete() *cobra.Command {
	var yes bool
	req := &dkimv1.DeleteZoneRequest{}
	c := r.command(&cobra.Command{
		Use:   "delete ZONE",
		Short: "Delete a zone that no brand uses",
		Long:  "Deletes a zone that no brand uses, and with it which brand its host labels are reserved for.\n\n" + confirmHelp,
		Example: `  dkimctl zone delete keys.example.net
  dkimctl zone delete keys.example.net --yes`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		if err := r.confirm(ctx, yes, fmt.Sprintf("Delete zone %s? Name servers will no longer answer for it.", args[0])); err != nil {
			return err
		}
		req.Name = zoneName(args[0])
		resp, err := call(ctx, r, api.DeleteZone, req)
		if err != nil {
			return err
		}
		return r.print(resp, func(w io.Writer) error { return say(w, "zone %s is deleted", args[0]) })
	})
	yesFlag(c, &yes)
	etagFlag(c, &req.Etag)
	return c
}

func (r *run) zoneAcceptDeletions() *cobra.Command {
	return r.command(&cobra.Command{
		Use:   "accept-deletions ZONE",
		Short: "Let name servers apply a resync that deletes many records",
		Long: `Lets name servers go on that hold a resync of the zone because it would delete too many of its records at once. Look first
whether these records are to go: a store restored from an old copy looks the same.`,
		Example: "  dkimctl zone accept-deletions keys.example.net",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		z, err := call(ctx, r, api.AcceptZoneDeletions, &dkimv1.AcceptZoneDeletionsRequest{Name: zoneName(args[0])})
		if err != nil {
			return err
		}
		return r.printZone(z)
	})
}

func (r *run) printZone(z *dkimv1.Zone) error {
	return r.print(z, func(w io.Writer) error {
		pairs := []string{"Zone", lastPart(z.GetName())}
		for _, ns := range z.GetNameServers() {
			pairs = append(pairs, "Name server", nameServerText(ns))
		}
		return details(w, append(pairs,
			"Mailbox", z.GetMailbox(),
			"Record TTL", seconds(z.GetRecordTtlSeconds()),
			"Negative TTL", seconds(z.GetNegativeTtlSeconds()),
			"Apex TTL", seconds(z.GetApexTtlSeconds()),
			"Refresh", seconds(z.GetRefreshSeconds()),
			"Retry", seconds(z.GetRetrySeconds()),
			"Expire", seconds(z.GetExpireSeconds()),
			"Rotation", policyText(z.GetRotationPolicy()),
			"Serial", strconv.FormatInt(z.GetSerial(), 10),
			"Created", timeText(z.GetCreateTime()),
			"Etag", z.GetEtag(),
		)...)
	})
}

func seconds(n int32) string { return strconv.Itoa(int(n)) + " s" }
