package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

const planHelp = `Each line says when the domain's next key is to sign, and what hinders it as things stand. With -o json each answer of dkimd
is one line, with -o yaml one document; the last has the sums, and without it the plan is not complete.`

func (r *run) brandPlan() *cobra.Command {
	return r.command(&cobra.Command{
		Use:     "plan BRAND",
		Short:   "Show when the keys of a brand's domains rotate, and what hinders it",
		Long:    "Shows when the keys of a brand's domains rotate by themselves.\n\n" + planHelp,
		Example: "  dkimctl brand plan acme",
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		return r.printPlan(ctx, api, &dkimv1.PlanRotationRequest{Parent: brandName(args[0])})
	})
}

// plan reads a plan and hands on each part of it.
func (r *run) plan(ctx context.Context, api dkimv1.KeyManagementClient, req *dkimv1.PlanRotationRequest, each func(*dkimv1.PlanRotationResponse) error) (*dkimv1.PlanSummary, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := api.PlanRotation(ctx, req)
	if err != nil {
		return nil, r.failure(err)
	}
	var sums *dkimv1.PlanSummary
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if sums == nil {
				return nil, errors.New("the plan ended before it was complete")
			}
			return sums, nil
		}
		if err != nil {
			return nil, r.failure(err)
		}
		if resp.GetSummary() != nil {
			sums = resp.GetSummary()
		}
		if err := each(resp); err != nil {
			return nil, err
		}
	}
}

func (r *run) printPlan(ctx context.Context, api dkimv1.KeyManagementClient, req *dkimv1.PlanRotationRequest) error {
	t := newTable(r.Stdout)
	row(t, "DOMAIN", "ROTATES", "BLOCKED BY", "WHY")
	sums, err := r.plan(ctx, api, req, func(resp *dkimv1.PlanRotationResponse) error {
		if r.format == formatTable {
			for _, p := range resp.GetRotations() {
				row(t, planCells(p)...)
			}
			return t.Flush()
		}
		text, err := r.document(resp)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(r.Stdout, "%s\n", text)
		return err
	})
	if err != nil || r.format != formatTable {
		return err
	}
	if _, err := fmt.Fprintln(r.Stdout); err != nil {
		return err
	}
	return printSums(r.Stdout, sums)
}

func planCells(p *dkimv1.PlannedRotation) []string {
	var reasons, messages []string
	for _, c := range p.GetBlockedBy() {
		reasons, messages = append(reasons, c.GetReason()), append(messages, c.GetMessage())
	}
	return []string{lastPart(p.GetDomain()), timeText(p.GetRotateTime()), strings.Join(slices.Compact(reasons), ","), strings.Join(slices.Compact(messages), "; ")}
}

func printSums(w io.Writer, sums *dkimv1.PlanSummary) error {
	text := fmt.Sprintf("%d domains: nothing hinders %d, %d are blocked, %d have no keys that rotate",
		sums.GetDomains(), sums.GetReady(), sums.GetBlocked(), sums.GetWithoutKeys())
	if sums.GetFirstRotationTime() != nil {
		text += fmt.Sprintf("; from %s to %s", timeText(sums.GetFirstRotationTime()), timeText(sums.GetLastRotationTime()))
	}
	if err := say(w, "%s", text); err != nil {
		return err
	}
	t := newTable(w)
	for _, reason := range slices.Sorted(maps.Keys(sums.GetBlockedByReason())) {
		row(t, reason, strconv.FormatInt(sums.GetBlockedByReason()[reason], 10))
	}
	return t.Flush()
}

// rotateJob is a rotation of all domains of a brand.
type rotateJob struct {
	brand    string
	journal  string
	parallel int
	yes      bool
}

func (r *run) brandRotate() *cobra.Command {
	var job rotateJob
	var now, dryRun bool
	c := r.command(&cobra.Command{
		Use:   "rotate BRAND",
		Short: "Rotate the keys of all domains of a brand",
		Long: `Asks for a rotation of each domain of a brand, now. Each happens as soon as DNS and the signers prove the domain's standby,
at the pace of --max-per-hour of the brand and its zone; what is blocked waits until it is not. --dry-run shows the plan and
changes nothing.

It can be interrupted and run again: what is done stands in the file of --journal and is not done again. When all are done,
that file is removed.

` + planHelp,
		Example: `  dkimctl brand rotate acme --now --dry-run
  dkimctl brand rotate acme --now`,
	}, func(ctx context.Context, api dkimv1.KeyManagementClient, args []string) error {
		if dryRun {
			return r.printPlan(ctx, api, &dkimv1.PlanRotationRequest{Parent: brandName(args[0]), Now: true})
		}
		if job.brand = args[0]; job.journal == "" {
			job.journal = "rotate-" + job.brand + ".done"
		}
		return r.rotateAll(ctx, api, job)
	})
	c.Flags().BoolVar(&now, "now", false, "do not wait until the interval of each is over")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show the plan only")
	c.Flags().StringVar(&job.journal, "journal", "", "`file` that keeps what is done (default rotate-BRAND.done)")
	c.Flags().IntVar(&job.parallel, "parallel", defaultParallel, "how many domains to ask for at the same time, 1 to 64")
	noFiles(c, "parallel")
	yesFlag(c, &job.yes)
	c.PreRunE = func(*cobra.Command, []string) error {
		switch {
		case !now:
			return usageError{"--now is missing: without it domains rotate by themselves, brand plan says when"}
		case job.parallel < 1 || job.parallel > maxParallel:
			return usageError{"--parallel takes 1 to 64"}
		}
		return nil
	}
	return c
}

func (r *run) rotateAll(ctx context.Context, api dkimv1.KeyManagementClient, job rotateJob) (err error) {
	brand, err := call(ctx, r, api.GetBrand, &dkimv1.GetBrandRequest{Name: brandName(job.brand)})
	if err != nil {
		return err
	}
	var domains []string
	sums, err := r.plan(ctx, api, &dkimv1.PlanRotationRequest{Parent: brand.GetName(), Now: true}, func(resp *dkimv1.PlanRotationResponse) error {
		for _, p := range resp.GetRotations() {
			if p.GetRotateTime() != nil || len(p.GetBlockedBy()) > 0 {
				domains = append(domains, p.GetDomain())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := printSums(r.Stderr, sums); err != nil {
		return err
	}
	if err := r.confirm(ctx, job.yes, fmt.Sprintf("Rotate the keys of %d domains of brand %s?", len(domains), job.brand)); err != nil {
		return err
	}
	title := strings.Join([]string{"# rotate", brand.GetName(), brand.GetCreateTime().AsTime().UTC().Format(time.RFC3339Nano)}, " ")
	kept, err := openJournal(job.journal, title)
	if err != nil {
		return err
	}
	complete := false
	defer func() { err = errors.Join(err, kept.end(complete)) }()
	todo := slices.DeleteFunc(slices.Clone(domains), func(name string) bool { return kept.done[name] })
	done := len(domains) - len(todo)
	bad := 0
	bar := r.newCounts(len(todo), "domains", countEvery)
	stop := inParallel(ctx, job.parallel, todo, func(ctx context.Context, name string) (*dkimv1.Domain, error) {
		return persist(ctx, r, func() (*dkimv1.Domain, error) {
			return call(ctx, r, api.RotateDomain, &dkimv1.RotateDomainRequest{Name: name, WhenReady: true})
		})
	}, func(name string, _ *dkimv1.Domain, err error) error {
		bar.step()
		if failed, ok := errors.AsType[*failure](err); ok && failed.code != codes.NotFound { // deleted meanwhile
			bad++
			_, _ = fmt.Fprintln(r.Stderr, lastPart(name)+": "+failed.Error())
			return nil
		}
		done++
		return kept.add(name)
	})
	bar.finish()
	if stop != nil {
		return fmt.Errorf("%w; rotations of %d of %d domains are asked for, run the same command again to go on", stop, done, len(domains))
	}
	if bad > 0 {
		return fmt.Errorf("rotations of %d domains could not be asked for; those of %d are, and are not asked for again when the same command is run", bad, done)
	}
	complete = true
	return say(r.Stdout, "rotations of %d domains of brand %s are asked for", done, job.brand)
}
