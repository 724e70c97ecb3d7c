package cli

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

const (
	// keyBatch and keyBatchSize bound a batch: dkimd takes 1000 keys and 1 MiB.
	keyBatch     = 500
	keyBatchSize = 768 << 10
	// maxKeyLine is more than a domain, a selector and an RSA-4096 key need.
	maxKeyLine = 16 << 10
	// defaultKeyParallel batches keep dkimd busy and no more.
	defaultKeyParallel = 4
	// countKeysEvery and syncKeysEvery are for hundreds of thousands of lines. It
	// does no harm to publish a key again.
	countKeysEvery = 50_000
	syncKeysEvery  = 10_000
)

// keyJob is a file of keys to publish.
type keyJob struct {
	brand    string
	file     string
	parallel int
	ttl      int32
	testing  bool
	waiting  waiting
}

// title says on what it depends that a line is done; see fileJob.title.
func (j keyJob) title(b *dkimv1.Brand) string {
	words := []string{"#", "keys", b.GetName(), b.GetCreateTime().AsTime().UTC().Format(time.RFC3339Nano)}
	if j.testing {
		words = append(words, "--testing")
	}
	if j.ttl != 0 {
		words = append(words, "--ttl", fmt.Sprint(j.ttl))
	}
	return strings.Join(words, " ")
}

// keyLine is a line of a file of keys.
type keyLine struct {
	number   int // from 1
	domain   string
	selector string
	key      string // as it stands there
}

// parseKeyLine takes a line apart and refuses private keys. The rest is for dkimd
// to judge.
func parseKeyLine(text string) (keyLine, error) {
	fields := strings.Split(text, "\t")
	if len(fields) != 3 {
		return keyLine{}, fmt.Errorf("%d fields, expected a domain, a selector and a public key with a tab between them", len(fields))
	}
	l := keyLine{domain: strings.TrimSpace(fields[0]), selector: strings.ToLower(strings.TrimSpace(fields[1])), key: strings.TrimSpace(fields[2])}
	for _, field := range fields { // wherever it stands
		if err := keypair.RefusePrivate([]byte(field)); err != nil {
			return keyLine{}, err
		}
	}
	d, err := dnsname.ParseDomain(l.domain)
	if err != nil {
		return keyLine{}, err
	}
	l.domain = string(d)
	return l, nil
}

// done is how the journal keeps the line: with a digest for the key.
func (l keyLine) done() string {
	sum := sha256.Sum256([]byte(l.key))
	return l.domain + " " + l.selector + " " + base64.RawStdEncoding.EncodeToString(sum[:12])
}

// keyReader reads a file of keys line by line: of the file it holds no more in
// memory than which selectors and keys were there, some 80 octets for each.
type keyReader struct {
	scanner *bufio.Scanner
	number  int
	seen    map[[16]byte]keyPlace // by digest of domain and selector
	keys    map[[12]byte]int      // lines, by digest of the key
}

type keyPlace struct {
	line   int
	digest [12]byte // of the key
}

func newKeyReader(in io.Reader) *keyReader {
	r := &keyReader{scanner: bufio.NewScanner(in), seen: make(map[[16]byte]keyPlace), keys: make(map[[12]byte]int)}
	r.scanner.Buffer(make([]byte, 0, 4<<10), maxKeyLine)
	return r
}

// next returns the next line that is there to be done; a bad one is a
// *lineError. It returns io.EOF at the end and other errors when it cannot read.
func (r *keyReader) next() (keyLine, error) {
	for r.scanner.Scan() {
		r.number++
		text := r.scanner.Text()
		if r.number == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if trimmed := strings.TrimSpace(text); trimmed == "" || trimmed[0] == '#' {
			continue
		}
		l, err := parseKeyLine(text)
		if err != nil {
			return keyLine{}, &lineError{r.number, err}
		}
		l.number = r.number
		name := sha256.Sum256([]byte(l.domain + "\x00" + l.selector))
		key := sha256.Sum256([]byte(l.key))
		at, digest := [16]byte(name[:]), [12]byte(key[:])
		before, again := r.seen[at]
		elsewhere, twice := r.keys[digest]
		switch {
		case again && before.digest == digest:
			continue
		case again:
			return keyLine{}, &lineError{r.number, fmt.Errorf("selector %s of %s is on line %d with another key", l.selector, l.domain, before.line)}
		case twice: // dkimd would give it to whichever comes first, and batches overtake each other
			return keyLine{}, &lineError{r.number, fmt.Errorf("this key is on line %d for another name; a key must not stand under two names, make one of its own", elsewhere)}
		}
		r.seen[at], r.keys[digest] = keyPlace{r.number, digest}, r.number
		return l, nil
	}
	switch err := r.scanner.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return keyLine{}, fmt.Errorf("line %d is longer than %d octets", r.number+1, maxKeyLine)
	case err != nil:
		return keyLine{}, err
	}
	return keyLine{}, io.EOF
}

// countLines is how many lines a file has.
func countLines(in io.Reader) (lines int, _ error) {
	buf := make([]byte, 256<<10)
	last := byte('\n')
	for {
		n, err := in.Read(buf)
		for _, c := range buf[:n] {
			if c == '\n' {
				lines++
			}
			last = c
		}
		if errors.Is(err, io.EOF) {
			if last != '\n' {
				lines++
			}
			return lines, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// keyRun is a run of a keyJob.
type keyRun struct {
	*run
	job  keyJob
	api  dkimv1.KeyManagementClient
	kept *journal

	// Of the goroutine that takes results.
	bar    *progress
	out    *list
	done   int
	before int
	bad    []*lineError
}

// keyResult is what became of a batch: of each line a result, or an error that
// ends the run. Lines that are not sent have their errors, or were done before.
type keyResult struct {
	lines   []keyLine
	results []*dkimv1.BatchPublishKeysResponse_Result
	skipped int // lines that need nothing
	before  int // of them, those done in an earlier run
	bad     []*lineError
	err     error
}

func (r *run) publishFile(ctx context.Context, api dkimv1.KeyManagementClient, job keyJob) (err error) {
	f, err := os.Open(job.file)
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = f.Close() }()
	total, err := countLines(f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", job.file, err)
	}
	brand, err := call(ctx, r, api.GetBrand, &dkimv1.GetBrandRequest{Name: brandName(job.brand)})
	if err != nil {
		return err
	}
	kept, err := openJournal(job.file+".done", job.title(brand))
	if err != nil {
		return err
	}
	kept.syncEvery = syncKeysEvery
	complete := false
	defer func() { err = errors.Join(err, kept.end(complete)) }()

	k := &keyRun{run: r, job: job, api: api, kept: kept, bar: r.newCounts(total, "keys", countKeysEvery), out: r.newList("results")}
	stop := k.publish(ctx, f)
	k.bar.finish()
	failed := fileJob{file: job.file}.report(r, k.bad)
	if r.format != formatTable {
		stop = errors.Join(stop, k.out.end())
	}
	if stop != nil {
		return fmt.Errorf("%w; %d keys are published, run the same command again to go on", stop, k.done)
	}
	if r.format == formatTable {
		text := fmt.Sprintf("%d keys are published", k.done)
		if k.before > 0 {
			text += fmt.Sprintf(", %d of them in an earlier run", k.before)
		}
		if err := say(r.Stdout, "%s", text); err != nil {
			return err
		}
	}
	complete = failed == nil
	return errors.Join(failed, r.waitForZone(ctx, api, job.waiting, brand.GetZone()))
}

// publish sends batch after batch, several at a time. It stops early, with an
// error, when ctx ends or something is wrong that no further line can do without.
func (k *keyRun) publish(ctx context.Context, in io.Reader) error {
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches, results := make(chan keyResult), make(chan keyResult, k.job.parallel)
	go func() {
		defer close(batches)
		k.read(work, in, batches)
	}()
	var workers sync.WaitGroup
	for range k.job.parallel {
		workers.Go(func() {
			for b := range batches {
				if b.err == nil && len(b.lines) > 0 {
					b.results, b.err = k.send(work, b.lines)
				}
				results <- b
			}
		})
	}
	go func() {
		workers.Wait()
		close(results)
	}()
	for b := range results {
		if err := k.take(b); err != nil {
			cancel(err) // the first one counts
		}
	}
	if ctx.Err() != nil {
		return errInterrupted
	}
	return context.Cause(work)
}

// read sorts the lines into batches.
func (k *keyRun) read(ctx context.Context, in io.Reader, batches chan<- keyResult) {
	reader := newKeyReader(in)
	var b keyResult
	size, last := 0, 0
	flush := func() bool {
		b.skipped += reader.number - last - len(b.lines) - len(b.bad)
		last = reader.number
		select {
		case batches <- b:
			b, size = keyResult{}, 0
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		l, err := reader.next()
		bad, isBad := errors.AsType[*lineError](err)
		switch {
		case errors.Is(err, io.EOF):
			flush()
			return
		case isBad:
			b.bad = append(b.bad, bad)
		case err != nil:
			b.err = fmt.Errorf("%s: %w", k.job.file, err)
			flush()
			return
		case k.kept.done[l.done()]:
			b.before++
		default:
			b.lines = append(b.lines, l)
			size += len(l.domain) + len(l.selector) + len(l.key) + 100
		}
		if (len(b.lines) == keyBatch || size > keyBatchSize || len(b.bad) == keyBatch || b.before == 100*keyBatch) && !flush() {
			return
		}
	}
}

// send publishes a batch; what fails for a while it sends again, but not longer
// than the time limit after the first failure.
func (k *keyRun) send(ctx context.Context, lines []keyLine) ([]*dkimv1.BatchPublishKeysResponse_Result, error) {
	results := make([]*dkimv1.BatchPublishKeysResponse_Result, len(lines))
	todo := make([]int, len(lines))
	for i := range todo {
		todo[i] = i
	}
	var pause backoff
	var deadline time.Time
	for {
		req := &dkimv1.BatchPublishKeysRequest{Parent: brandName(k.job.brand)}
		for _, i := range todo {
			req.Requests = append(req.Requests, &dkimv1.PublishKeyRequest{
				Parent: domainName(k.job.brand, lines[i].domain), Selector: lines[i].selector, PublicKey: lines[i].key,
				TtlSeconds: k.job.ttl, Testing: k.job.testing,
			})
		}
		resp, err := call(ctx, k.run, k.api.BatchPublishKeys, req)
		var again []int
		var retryAfter time.Duration
		switch failed, ok := errors.AsType[*failure](err); {
		case err == nil && len(resp.GetResults()) != len(todo):
			return nil, fmt.Errorf("dkimd sent %d results for %d keys", len(resp.GetResults()), len(todo))
		case err == nil:
			for n, i := range todo {
				results[i] = resp.GetResults()[n]
				if e := results[i].GetError(); e != nil && passing(codes.Code(e.GetCode())) { //nolint:gosec // a code of gRPC
					again = append(again, i)
				}
			}
		case ok && failed.passes():
			again, retryAfter = todo, failed.retryAfter
		default:
			return nil, err
		}
		if len(again) == 0 {
			return results, nil
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(k.timeout)
		}
		if !time.Now().Before(deadline) || pause.wait(ctx, retryAfter) != nil {
			if err != nil {
				return nil, err
			}
			return results, nil // with their errors
		}
		todo = again
	}
}

// take notes what became of a batch.
func (k *keyRun) take(b keyResult) error {
	k.bad = append(k.bad, b.bad...)
	k.before, k.done = k.before+b.before, k.done+b.before
	k.bar.add(b.skipped + len(b.bad) + len(b.results))
	if b.err != nil {
		return b.err
	}
	var done strings.Builder
	n := 0
	for i, res := range b.results {
		if e := res.GetError(); e != nil {
			f := k.failure(status.FromProto(e).Err())
			if fatal(f) {
				return f
			}
			k.bad = append(k.bad, &lineError{b.lines[i].number, f})
			continue
		}
		if k.format != formatTable {
			k.out.add(res)
		}
		n++
		done.WriteString(b.lines[i].done())
		done.WriteByte('\n')
	}
	k.done += n
	return errors.Join(k.kept.addLines(done.String(), n), k.out.err)
}
