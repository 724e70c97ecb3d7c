package service

import (
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/zonefile"
)

const (
	// exportPiece is how many octets of a zone file a response has before it is
	// sent, but for the last one.
	exportPiece = 64 << 10
	// exportRoom also has room for the record that makes a piece full.
	exportRoom = exportPiece + 4<<10
)

// ExportZone implements dkim.v1.KeyManagement.
func (s *Service) ExportZone(req *dkimv1.ExportZoneRequest, stream grpc.ServerStreamingServer[dkimv1.ExportZoneResponse]) error {
	name, err := parseZoneName("name", req.GetName())
	if err != nil {
		return err
	}
	var (
		lines    = make([]byte, 0, exportRoom)
		text     []byte // of one record
		revision int64
		records  int
	)
	send := func() error {
		err := stream.Send(&dkimv1.ExportZoneResponse{Data: lines, Revision: revision})
		lines = make([]byte, 0, exportRoom) // what was sent is gRPC's
		return err
	}
	err = s.store.ZoneSnapshot(stream.Context(), name, func(z keystore.Zone, at int64) error {
		revision = at
		lines = zonefile.AppendComment(lines, fmt.Sprintf("zone %s at revision %d", name, revision))
		lines = zonefile.AppendApex(lines, zoneFileApex(z))
		return nil
	}, func(relative string, r schema.PublicRecord) error {
		records++
		text = r.Record().AppendText(text[:0])
		lines = zonefile.AppendTXT(lines, relative, string(name), r.TTL, text)
		if len(lines) < exportPiece {
			return nil
		}
		return send()
	})
	if errors.Is(err, keystore.ErrCompacted) {
		return fail(codes.Aborted, "EXPORT_EXPIRED", fmt.Sprintf(
			"revision %d of zone %s is no longer known, reading all of it took too long; begin again", revision, name))
	}
	if err != nil {
		return storeFailure(err)
	}
	// The last line, so that a file cut short can be told.
	lines = zonefile.AppendComment(lines, fmt.Sprintf("end of zone %s, %d key records", name, records))
	return send()
}

func zoneFileApex(z keystore.Zone) zonefile.Apex {
	a := zonefile.Apex{
		Zone: string(z.Name), Serial: z.Serial(z.Revision), Mailbox: z.Mailbox, TTL: z.ApexTTL,
		Refresh: z.Refresh, Retry: z.Retry, Expire: z.Expire, NegativeTTL: z.NegativeTTL,
	}
	for _, ns := range z.NameServers {
		a.NameServers = append(a.NameServers, zonefile.NameServer(ns))
	}
	return a
}
