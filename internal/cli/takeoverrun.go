package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/takeover"
)

// foundKey is a key of an installation, and what becomes of it.
type foundKey struct {
	takeover.Key

	algorithm   keypair.Algorithm
	fingerprint [32]byte
	warning     string      // about its file
	note        string      // what is done in another way than the installation does
	refused     error       // why it is not taken over
	taken       *dkimv1.Key // what dkimd answered
	before      bool        // done in an earlier run
}

// done is how the journal keeps the key.
func (k *foundKey) done() string {
	return string(k.Domain) + " " + string(k.Selector) + " " + base64.RawStdEncoding.EncodeToString(k.fingerprint[:12])
}

// reason is the class of a refusal, for the sums.
func (k *foundKey) reason() string {
	if f, ok := errors.AsType[*failure](k.refused); ok {
		return cmp.Or(f.reason, f.code.String())
	}
	if e, ok := errors.AsType[*keypair.InvalidError](k.refused); ok {
		return string(e.Reason)
	}
	if errors.Is(k.refused, errSameKey) {
		return "SAME_KEY"
	}
	return "UNREADABLE"
}

// errSameKey is for a key that other names of the installation have, too.
var errSameKey = errors.New("a key must not stand under two names: give this one a key of its own (domain provision)")

// read reads a key and looks at it. The caller clears the octets.
func (k *foundKey) read() ([]byte, error) {
	data, info, err := k.Key.Read()
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			return nil, fmt.Errorf("%s: %w", e.Path, e.Err)
		}
		return nil, err
	}
	if info != nil {
		k.warning = openToOthers(k.File, info)
	}
	pair, err := keypair.ParsePrivateKey(data)
	if err != nil {
		clear(data)
		return nil, err
	}
	k.algorithm, k.fingerprint = pair.Algorithm(), pair.Public().Fingerprint()
	return data, nil
}

// takeoverRun is a run of a takeoverJob.
type takeoverRun struct {
	*run

	job  takeoverJob
	api  dkimv1.KeyManagementClient
	keys []*foundKey
	bad  []takeover.Problem
	kept *journal // nil in a dry run
}

// takeOver takes over what list lists.
func (r *run) takeOver(ctx context.Context, api dkimv1.KeyManagementClient, job takeoverJob, list func() (takeover.Inventory, error)) (err error) {
	if job.journal == "" {
		job.journal = "import-" + job.brand + ".done"
	}
	inv, err := list()
	if err != nil {
		return err
	}
	brand, err := call(ctx, r, api.GetBrand, &dkimv1.GetBrandRequest{Name: brandName(job.brand)})
	if err != nil {
		return err
	}
	t := &takeoverRun{run: r, job: job, api: api, bad: inv.Problems}
	for _, k := range inv.Keys {
		t.keys = append(t.keys, &foundKey{Key: k})
	}
	complete := false
	if !job.dryRun {
		if t.kept, err = openJournal(job.journal, job.title(brand)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.kept.end(complete)) }()
	}
	if err := t.inspect(ctx); err != nil {
		return err
	}
	begin := time.Now()
	domains := byDomain(t.keys)
	for _, d := range domains {
		d.settle(job.allInUse)
	}
	if err := t.send(ctx, domains); err != nil {
		return fmt.Errorf("%w; %d keys are taken over, run the same command again to go on", err, t.count(func(k *foundKey) bool { return k.taken != nil }))
	}
	failed := t.report(len(domains), time.Since(begin))
	complete = failed == nil
	return errors.Join(failed, r.waitForZone(ctx, api, job.waiting, brand.GetZone()))
}

// inspect looks at all keys, and refuses those that others have too. The first
// name in the order of the configuration has the key.
func (t *takeoverRun) inspect(ctx context.Context) error {
	bar := t.newCounts(len(t.keys), "keys read", countKeysEvery)
	err := inParallel(ctx, t.job.parallel, t.keys, func(_ context.Context, k *foundKey) (struct{}, error) {
		data, err := k.read()
		clear(data)
		k.refused = err
		return struct{}{}, nil
	}, func(*foundKey, struct{}, error) error {
		bar.step()
		return nil
	})
	bar.finish()
	first := make(map[[32]byte]*foundKey)
	for _, k := range t.keys {
		if k.refused != nil {
			continue
		}
		if before, ok := first[k.fingerprint]; ok {
			k.refused = fmt.Errorf("it is the key of selector %s of %s: %w", before.Selector, before.Domain, errSameKey)
			continue
		}
		first[k.fingerprint] = k
		k.before = t.kept != nil && t.kept.done[k.done()]
	}
	return err
}

// send hands the keys to dkimd, those of a domain in their order.
func (t *takeoverRun) send(ctx context.Context, domains []ofDomain) error {
	bar := t.newCounts(len(domains), "domains", countEvery)
	err := inParallel(ctx, t.job.parallel, domains, func(ctx context.Context, d ofDomain) (struct{}, error) {
		for _, k := range d.keys {
			if err := t.sendKey(ctx, k); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	}, func(d ofDomain, _ struct{}, err error) error {
		bar.step()
		for _, k := range d.keys {
			if k.taken != nil && t.kept != nil {
				err = errors.Join(err, t.kept.add(k.done()))
			}
		}
		return err
	})
	bar.finish()
	return err
}

// sendKey hands over one key. An error is one that no other key can do without.
func (t *takeoverRun) sendKey(ctx context.Context, k *foundKey) error {
	if k.refused != nil || k.before {
		return nil
	}
	data, err := k.read() // again: private keys do not wait in memory
	if err != nil {
		k.refused = err
		return nil
	}
	defer clear(data)
	req := &dkimv1.ImportKeyRequest{
		Parent: domainName(t.job.brand, string(k.Domain)), Selector: string(k.Selector), PrivateKey: string(data),
		TtlSeconds: t.job.ttl, Testing: t.job.testing, InUse: k.InUse, ValidateOnly: t.job.dryRun,
	}
	taken, err := t.importKey(ctx, req)
	if f, ok := errors.AsType[*failure](err); ok && f.reason == "KEY_ACTIVE" {
		k.note, req.InUse = "not in use: "+f.Error(), false
		taken, err = t.importKey(ctx, req)
	}
	switch {
	case err == nil:
		k.taken = taken
		if taken.GetName() == "" { // of a dry run
			taken.Name = req.GetParent() + "/keys/-"
		}
	case ctx.Err() != nil || fatal(err):
		return err
	default:
		k.refused = err
	}
	return nil
}

func (t *takeoverRun) importKey(ctx context.Context, req *dkimv1.ImportKeyRequest) (*dkimv1.Key, error) {
	return persist(ctx, t.run, func() (*dkimv1.Key, error) { return call(ctx, t.run, t.api.ImportKey, req) })
}

func (t *takeoverRun) count(is func(*foundKey) bool) (n int) {
	for _, k := range t.keys {
		if is(k) {
			n++
		}
	}
	return n
}

// report prints what became of each key: in a dry run all, else those that are
// not as the installation has them.
func (t *takeoverRun) report(domains int, took time.Duration) error {
	for _, p := range t.bad {
		_, _ = fmt.Fprintln(t.Stderr, oneLine(p.Error()))
	}
	out := t.newList("keys")
	if t.job.dryRun {
		out = t.newList("keys", "DOMAIN", "SELECTOR", "ALGORITHM", "STATE", "WHAT")
	}
	for _, k := range t.keys {
		if k.warning != "" {
			_, _ = fmt.Fprintln(t.Stderr, oneLine(k.warning))
		}
		if !t.job.dryRun && (k.refused != nil || k.note != "") {
			_, _ = fmt.Fprintln(t.Stderr, oneLine(fmt.Sprintf("%s: %s of %s: %s", k.Place, k.Selector, k.Domain, k.what())))
		}
		switch {
		case t.format == formatTable && t.job.dryRun:
			out.add(nil, string(k.Domain), string(k.Selector), k.algorithmText(), stateOf(k.taken), k.what())
		case t.format != formatTable && k.taken != nil:
			out.add(k.taken)
		}
	}
	if err := out.end(); err != nil {
		return err
	}
	if t.format == formatTable {
		if err := say(t.Stdout, "%s", t.sums(domains, took)); err != nil {
			return err
		}
	}
	if refused := t.count(func(k *foundKey) bool { return k.refused != nil }); refused+len(t.bad) > 0 {
		return fmt.Errorf("%d keys cannot be taken over, and %d entries of the configuration not be read; the others are not affected", refused, len(t.bad))
	}
	return nil
}

func (k *foundKey) algorithmText() string {
	if k.algorithm == 0 {
		return ""
	}
	return k.algorithm.String()
}

func stateOf(k *dkimv1.Key) string {
	if k == nil {
		return ""
	}
	return stateText(k.GetState())
}

// what says what becomes of the key.
func (k *foundKey) what() string {
	switch {
	case k.refused != nil:
		return "refused: " + k.refused.Error()
	case k.taken != nil && strings.HasSuffix(k.taken.GetName(), "/-"):
		return strings.TrimSuffix("to be taken over; "+k.note, "; ")
	case k.taken != nil:
		return cmp.Or(k.note, "is there")
	}
	return ""
}

// sums is the line at the end.
func (t *takeoverRun) sums(domains int, took time.Duration) string {
	states, reasons, before := make(map[string]int), make(map[string]int), 0
	taken := 0
	for _, k := range t.keys {
		switch {
		case k.refused != nil:
			reasons[k.reason()]++
		case k.before:
			before++
		case k.taken != nil:
			taken++
			states[stateOf(k.taken)]++
		}
	}
	text := fmt.Sprintf("%d keys of %d domains are taken over", taken+before, domains)
	if t.job.dryRun {
		text = fmt.Sprintf("%d keys of %d domains would be taken over", taken, domains)
	}
	if before > 0 {
		text += fmt.Sprintf(", %d of them in an earlier run", before)
	}
	if taken > 0 {
		text += " (" + counts(states) + ")"
	}
	if !t.job.dryRun && took > 0 {
		text += fmt.Sprintf(", %.0f a second", float64(taken)/took.Seconds())
	}
	if len(reasons) > 0 {
		text += "; refused: " + counts(reasons)
	}
	return text
}

// counts lists words with how often they are there.
func counts(words map[string]int) string {
	var parts []string
	for _, w := range slices.Sorted(maps.Keys(words)) {
		parts = append(parts, fmt.Sprintf("%d %s", words[w], w))
	}
	return strings.Join(parts, ", ")
}
