package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// countEvery is how often a run without a terminal says how far it is.
const countEvery = 500

// fileJob is a file of domains to provision.
type fileJob struct {
	brand    string
	file     string
	parallel int
	flags    provisionFlags
	waiting  waiting
}

// title says on what it depends that a line is done: the brand, also whether it
// was created anew, and how domains are provisioned.
func (j fileJob) title(b *dkimv1.Brand) string {
	words := []string{"#", b.GetName(), b.GetCreateTime().AsTime().UTC().Format(time.RFC3339Nano)}
	if j.flags.algorithm != 0 {
		words = append(words, "--algorithm", j.flags.algorithm.String())
	}
	for _, s := range j.flags.selectors {
		words = append(words, "--selector", (&selectorFlags{s}).String())
	}
	if j.flags.testing {
		words = append(words, "--testing")
	}
	if j.flags.ttl != 0 {
		words = append(words, "--ttl", fmt.Sprint(j.flags.ttl))
	}
	return strings.Join(words, " ")
}

// result is what became of a line.
type result struct {
	line   line
	domain *dkimv1.Domain
	err    error
}

func (r *run) provisionFile(ctx context.Context, api dkimv1.KeyManagementClient, job fileJob) (err error) {
	lines, bad, err := job.read()
	if err != nil {
		return err
	}
	brand, err := call(ctx, r, api.GetBrand, &dkimv1.GetBrandRequest{Name: brandName(job.brand)})
	if err != nil {
		return err
	}
	kept, err := openJournal(job.file+".done", job.title(brand))
	if err != nil {
		return err
	}
	complete := false
	defer func() { err = errors.Join(err, kept.end(complete)) }()
	todo := slices.DeleteFunc(slices.Clone(lines), func(l line) bool { return kept.done[l.String()] })

	before := len(lines) - len(todo)
	done := before
	out := r.newList("domains")
	bar := r.newCounts(len(todo), "domains", countEvery)
	stop := r.provisionLines(ctx, api, job, todo, func(res result) error {
		bar.step()
		if res.err != nil {
			bad = append(bad, &lineError{res.line.number, res.err})
			return nil
		}
		if r.format != formatTable {
			out.add(res.domain)
		}
		done++
		return errors.Join(kept.add(res.line.String()), out.err)
	})
	bar.finish()
	failed := job.report(r, bad)
	if r.format != formatTable {
		stop = errors.Join(stop, out.end())
	}
	if stop != nil {
		return fmt.Errorf("%w; %d of %d domains are provisioned, run the same command again to go on", stop, done, len(lines))
	}
	if r.format == formatTable {
		text := fmt.Sprintf("%d domains are provisioned", done)
		if before > 0 {
			text += fmt.Sprintf(", %d of them in an earlier run", before)
		}
		if err := say(r.Stdout, "%s", text); err != nil {
			return err
		}
	}
	if failed == nil {
		complete = true
	}
	return errors.Join(failed, r.waitForZone(ctx, api, job.waiting, brand.GetZone()))
}

func (j fileJob) read() ([]line, []*lineError, error) {
	f, err := os.Open(j.file)
	if err != nil {
		return nil, nil, fmt.Errorf("domains: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines, bad, err := readLines(f)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", j.file, err)
	}
	return lines, bad, nil
}

// report writes the bad lines in the order of the file.
func (j fileJob) report(r *run, bad []*lineError) error {
	if len(bad) == 0 {
		return nil
	}
	slices.SortFunc(bad, func(a, b *lineError) int { return cmp.Compare(a.number, b.number) })
	for _, e := range bad {
		_, _ = fmt.Fprintln(r.Stderr, oneLine(e.Error()))
	}
	return fmt.Errorf("%d lines of %s could not be done; the others are, and are not done again when they are mended and the same command is run", len(bad), j.file)
}

// waitForZone waits for all that the zone holds now.
func (r *run) waitForZone(ctx context.Context, api dkimv1.KeyManagementClient, w waiting, zone string) error {
	if !w.wanted {
		return nil
	}
	z, err := call(ctx, r, api.GetZone, &dkimv1.GetZoneRequest{Name: zone})
	if err != nil {
		return err
	}
	return r.wait(ctx, api, w, served{zone: zone, revision: z.GetRevision()})
}

// provisionLines provisions several domains at a time and hands the results to
// take, one after the other. It stops early, with an error, when ctx ends, when
// take fails, or when something is wrong that no further line can do without.
func (r *run) provisionLines(ctx context.Context, api dkimv1.KeyManagementClient, job fileJob, todo []line, take func(result) error) error {
	return inParallel(ctx, job.parallel, todo, func(ctx context.Context, l line) (*dkimv1.Domain, error) {
		return persist(ctx, r, func() (*dkimv1.Domain, error) {
			return call(ctx, r, api.ProvisionDomain, job.flags.request(job.brand, string(l.domain), l.algorithm))
		})
	}, func(l line, d *dkimv1.Domain, err error) error { return take(result{l, d, err}) })
}

// passing reports whether a call that failed so may succeed the next time.
func passing(code codes.Code) bool {
	return code == codes.Unavailable || code == codes.Aborted || code == codes.DeadlineExceeded
}

// passes reports whether the same call may succeed the next time.
func (f *failure) passes() bool {
	return passing(f.code) || f.code == codes.ResourceExhausted && f.retryAfter > 0
}

// fatal reports whether the other lines would fail in the same way.
func fatal(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return !ok || f.code == codes.Unavailable || f.code == codes.ResourceExhausted || f.code == codes.Unauthenticated || f.code == codes.PermissionDenied && f.reason != "ADMISSION_DENIED" ||
		f.reason == "BRAND_NOT_FOUND" || f.reason == "INVALID_TTL"
}
