//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/dataset"
)

// transfer transfers the zone from a DNS node (AXFR) under queries.
func (b *bench) transfer(ctx context.Context) (err error) {
	const quiet = 5 * time.Second
	dir, err := b.nodeDir(ctx, "node.transfer", nil)
	if err != nil {
		return err
	}
	n, err := b.startNode(ctx, dir, nowhere, b.cpu)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	head("AXFR", "s", "records/s", "octets", "messages", "CPU s of the node", "memory MiB before", "peak MiB")
	// Once with nothing else, once under queries.
	if err := b.axfr(ctx, n, "nothing else"); err != nil {
		return err
	}
	probe, err := b.startProber(n.addr)
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // of the prober's own start
	var at [3]time.Time
	at[0] = time.Now()
	time.Sleep(quiet)
	at[1] = time.Now()
	err = b.axfr(ctx, n, "2000 queries/s beside it")
	at[2] = time.Now()
	all, perr := probe.stop()
	if err := errors.Join(err, perr); err != nil {
		return err
	}
	fmt.Println()
	head(append([]any{"while"}, latencyColumns...)...)
	row(append([]any{"nothing else happens"}, all.between(at[0], at[1]).columns()...)...)
	row(append([]any{"the zone is transferred"}, all.between(at[1], at[2]).columns()...)...)
	return nil
}

func (b *bench) axfr(ctx context.Context, n *node, beside string) error {
	before, err1 := n.memory("VmRSS")
	err := errors.Join(err1, n.forgetPeak())
	used, err2 := n.cpu()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	began := time.Now()
	messages, octets, err := b.receiveZone(ctx, n)
	if err != nil {
		return err
	}
	took := time.Since(began)
	peak, err1 := n.memory("VmHWM")
	after, err2 := n.cpu()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	row(beside, fmt.Sprintf("%.1f", took.Seconds()), fmt.Sprintf("%.0f", float64(b.set.Len())/took.Seconds()),
		octets, messages, fmt.Sprintf("%.1f", (after-used).Seconds()), fmt.Sprintf("%.0f", before), fmt.Sprintf("%.0f", peak))
	return nil
}

// receiveZone takes the messages of a transfer without looking into them, until
// all records have come.
func (b *bench) receiveZone(ctx context.Context, n *node) (messages, octets int, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", n.addr)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close() //nolint:errcheck // all was read
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	question, err := new(dns.Msg).SetAxfr(dataset.Zone + ".").Pack()
	if err != nil {
		return 0, 0, err
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)); err != nil { //nolint:gosec // a short name
		return 0, 0, err
	}
	apex := dataset.Apex()
	want := b.set.Len() + 2 // the SOA record, twice
	for _, ns := range apex.NameServers {
		want += 1 + len(ns.Addresses)
	}
	const room = 256 << 10
	r := bufio.NewReaderSize(conn, room)
	const header = 12
	var buf [dns.MaxMsgSize]byte
	for records := 0; records < want; messages++ {
		var length uint16
		if err := binary.Read(r, binary.BigEndian, &length); err != nil {
			return 0, 0, fmt.Errorf("after %d records: %w", records, err)
		}
		m := buf[:length]
		if _, err := io.ReadFull(r, m); err != nil {
			return 0, 0, fmt.Errorf("after %d records: %w", records, err)
		}
		if length < header || m[3]&0xf != dns.RcodeSuccess || binary.BigEndian.Uint16(m[6:]) == 0 {
			return 0, 0, fmt.Errorf("after %d records: no message of a transfer", records)
		}
		records += int(binary.BigEndian.Uint16(m[6:]))
		octets += 2 + int(length)
	}
	return messages, octets, nil
}
