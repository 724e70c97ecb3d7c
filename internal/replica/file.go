package replica

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/errgroup"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// ErrInUse is wrapped by the error of Acquire when another process, or another
// replica of this one, has the zone's file open.
var ErrInUse = errors.New("replica: data file is in use")

// errCorrupt is wrapped by what loading says of a file that cannot be used.
var errCorrupt = errors.New("replica: data file is damaged")

const (
	fileFormat = 1
	// shardsPerStep is how much is loaded before the pages that were touched
	// are given back.
	shardsPerStep = 32
	lockTimeout   = time.Second

	// A record's value: flags u8, ttl u32, key, CRC-32C of owner name and value u32.
	valueHead = 5
	valueTail = 4
)

var (
	recordBucket = []byte("records") // shard u8 and owner name → value
	metaBucket   = []byte("meta")
	metaKey      = []byte("meta") // CRC-32C u32 and meta as JSON
)

// meta says what the records of a file stand for.
type meta struct {
	Format    int    `json:"format"`
	Zone      string `json:"zone"`
	ClusterID uint64 `json:"cluster_id"`
	Revision  int64  `json:"revision"` // all changes up to here are in
	Records   int    `json:"records"`
	Apex      []byte `json:"apex,omitempty"` // schema.Apex
	ApexRev   int64  `json:"apex_revision,omitempty"`

	// How often etcd has written the zone object; 0 if that is not known.
	ApexVersion int64 `json:"apex_version,omitempty"`

	Held      bool      `json:"held,omitempty"`
	Confirmed time.Time `json:"confirmed"` // when this was last known to be all
}

// file is a zone's records on disk. It belongs to one goroutine.
type file struct {
	path string
	zone string
	db   *bolt.DB
}

// openFile opens or creates the zone's file in dir. A file that is none is set
// aside, which aside reports with the reason.
func openFile(dir, zone string) (f *file, aside error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("replica: data directory: %w", err)
	}
	f = &file{path: filepath.Join(dir, zone+".db"), zone: zone}
	aside, err = f.openOrSetAside()
	return f, aside, err
}

func (f *file) openOrSetAside() (aside, err error) {
	err = f.open()
	if err == nil || errors.Is(err, ErrInUse) || errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	aside = err
	if err := f.setAside(); err != nil {
		return aside, err
	}
	return aside, f.open()
}

func (f *file) open() (err error) {
	defer recoverDamage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	f.db, err = bolt.Open(f.path, 0o600, &bolt.Options{
		Timeout: lockTimeout, FreelistType: bolt.FreelistMapType, NoStatistics: true,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("%w: %s: another process has locked it", ErrInUse, f.path)
	}
	if err != nil {
		return fmt.Errorf("replica: opening %s: %w", f.path, err)
	}
	return nil
}

// setAside moves the file out of the way, in place of one moved before.
func (f *file) setAside() error {
	if f.db != nil {
		// What the close of a damaged file says is of no use.
		_ = f.close()
	}
	if err := os.Rename(f.path, f.path+".corrupt"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replica: setting a damaged file aside: %w", err)
	}
	return nil
}

func (f *file) close() (err error) {
	if f.db == nil {
		return nil
	}
	defer recoverDamage(&err)
	db := f.db
	f.db = nil
	return db.Close()
}

// reopen gives back the memory of the pages that were touched since the file
// was opened; they count as resident as long as the file is mapped.
func (f *file) reopen() error {
	if err := f.close(); err != nil {
		return err
	}
	return f.open()
}

// load reads the whole file into v. It returns nil and no error for a new file,
// and an error that wraps errCorrupt for one that cannot be used, in which case
// v holds part of it. Since it opens the file again as it goes, the error may
// also wrap ErrInUse.
func (f *file) load(v *view) (m *meta, err error) {
	defer recoverDamage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	err = f.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(metaBucket)
		if b == nil {
			if tx.Bucket(recordBucket) != nil {
				return fmt.Errorf("%w: records without meta data", errCorrupt)
			}
			return nil
		}
		m, err = decodeMeta(b.Get(metaKey))
		return err
	})
	if err != nil || m == nil {
		return nil, err
	}
	switch {
	case m.Format != fileFormat:
		return nil, fmt.Errorf("%w: format %d, this program reads %d", errCorrupt, m.Format, fileFormat)
	case m.Zone != f.zone:
		return nil, fmt.Errorf("%w: it is of zone %q", errCorrupt, m.Zone)
	}
	if len(m.Apex) > 0 {
		if _, err := schema.UnmarshalApex(m.Apex); err != nil {
			return nil, fmt.Errorf("%w: %w", errCorrupt, err)
		}
	}
	there := f.readAhead(shardCount / shardsPerStep)
	for first := 0; first < shardCount; first += shardsPerStep {
		<-there[first/shardsPerStep]
		parts := min(runtime.GOMAXPROCS(0), shardsPerStep)
		var g errgroup.Group
		for p := range parts {
			g.Go(func() error {
				return f.loadShards(v, first+p*shardsPerStep/parts, first+(p+1)*shardsPerStep/parts)
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		if err := f.reopen(); err != nil {
			return nil, err
		}
	}
	if v.len() != m.Records {
		return nil, fmt.Errorf("%w: it has %d records and should have %d", errCorrupt, v.len(), m.Records)
	}
	return m, nil
}

// readAhead reads the file from its beginning to its end, and closes a channel
// after each of so many parts of it. bbolt tells the kernel not to read ahead, so
// that a file that is not in memory would be read page by page, ten times slower;
// and records are in the file nearly in the order in which they are loaded. An
// error is for load to find.
func (f *file) readAhead(parts int) []chan struct{} {
	there := make([]chan struct{}, parts)
	for i := range there {
		there[i] = make(chan struct{})
	}
	go func() {
		left := there
		defer func() {
			for _, c := range left {
				close(c)
			}
		}()
		r, err := os.Open(f.path)
		if err != nil {
			return
		}
		defer r.Close() //nolint:errcheck // only read
		info, err := r.Stat()
		if err != nil {
			return
		}
		at := int64(0)
		for buf := make([]byte, 1<<20); err == nil; {
			var n int
			n, err = r.Read(buf)
			at += int64(n)
			for len(left) > 0 && at*int64(parts) >= info.Size()*int64(parts-len(left)+1) {
				close(left[0])
				left = left[1:]
			}
		}
	}()
	return there
}

// loadShards reads the records of shards from to to-1. Loading runs it several
// times at once, which the view allows as long as nothing but put is called.
func (f *file) loadShards(v *view, from, to int) (err error) {
	defer recoverDamage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return f.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(recordBucket)
		if b == nil {
			return fmt.Errorf("%w: no records bucket", errCorrupt)
		}
		c := b.Cursor()
		for k, val := c.Seek([]byte{byte(from)}); k != nil && int(k[0]) < to; k, val = c.Next() { //nolint:gosec // a shard number
			owner := k[1:]
			rec, err := decodeValue(owner, val)
			if err != nil {
				return err
			}
			if shardOf(owner) != k[0] {
				return fmt.Errorf("%w: a record is out of order", errCorrupt)
			}
			if err := v.put(owner, rec, 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// save writes the records of v that names tells, or their absence, in one
// transaction with m.
func (f *file) save(v *view, names []string, m meta) (err error) {
	defer recoverDamage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	keys := make([][]byte, len(names))
	for i, name := range names {
		keys[i] = diskKey(name)
	}
	slices.SortFunc(keys, slices.Compare)
	return f.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(recordBucket)
		if err != nil {
			return err
		}
		old, err := readMeta(tx)
		if err != nil {
			return err
		}
		m.Records = old.Records
		buf := make([]byte, schema.MaxPublicKeyLen)
		for _, key := range keys {
			had := b.Get(key) != nil
			rec, result := v.lookup(key[1:], buf)
			switch result {
			case Found:
				if !had {
					m.Records++
				}
				err = b.Put(key, encodeValue(key[1:], rec))
			case Unavailable:
				return errClosed
			default:
				if had {
					m.Records--
				}
				err = b.Delete(key)
			}
			if err != nil {
				return err
			}
		}
		return writeMeta(tx, m)
	})
}

// replace writes all of v into a new file, which takes the place of this one
// when it is complete.
func (f *file) replace(v *view, m meta) (err error) {
	defer recoverDamage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	fresh := &file{path: f.path + ".new", zone: f.zone}
	if err := os.Remove(fresh.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replica: %w", err)
	}
	if err := fresh.open(); err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			_ = fresh.close()
			_ = os.Remove(fresh.path)
		}
	}()
	fresh.db.NoSync = true // nothing counts before the rename
	m.Records = 0
	var pace Pace
	for i := range shardCount {
		pace.Step()
		if err := fresh.db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(recordBucket)
			if err != nil {
				return err
			}
			b.FillPercent = 0.9 // keys come in order
			n, err := saveShard(b, v, i, &pace)
			if err != nil {
				return err
			}
			m.Records += n
			return writeMeta(tx, m)
		}); err != nil {
			return fmt.Errorf("replica: writing %s: %w", fresh.path, err)
		}
	}
	if err := fresh.db.Sync(); err != nil {
		return fmt.Errorf("replica: writing %s: %w", fresh.path, err)
	}
	fresh.db.NoSync = false
	if err := os.Rename(fresh.path, f.path); err != nil {
		return fmt.Errorf("replica: %w", err)
	}
	done = true
	if err := syncDir(filepath.Dir(f.path)); err != nil {
		return err
	}
	// The old file is closed last: at no time is the name without a lock.
	old := f.db
	f.db = fresh.db
	if old == nil {
		return nil
	}
	return old.Close()
}

// saveShard puts the records of one shard in key order.
func saveShard(b *bolt.Bucket, v *view, i int, pace *Pace) (int, error) {
	var names []string
	v.each(i, func(b block) { names = append(names, string(b.name())) })
	pace.Step()
	slices.Sort(names)
	buf := make([]byte, schema.MaxPublicKeyLen)
	n := 0
	for _, name := range names {
		pace.Step()
		key := diskKey(name)
		rec, result := v.lookup(key[1:], buf)
		switch result {
		case Found:
			if err := b.Put(key, encodeValue(key[1:], rec)); err != nil {
				return 0, err
			}
			n++
		case Unavailable:
			return 0, errClosed
		default: // removed since; the next save takes note
		}
	}
	return n, nil
}

func diskKey(owner string) []byte {
	key := make([]byte, 1, 1+len(owner))
	key = append(key, owner...)
	key[0] = shardOf(key[1:])
	return key
}

func encodeValue(owner []byte, rec schema.PublicRecord) []byte {
	b := make([]byte, 0, valueHead+len(rec.PublicKey)+valueTail)
	b = append(b, recordFlags(&rec))
	b = binary.LittleEndian.AppendUint32(b, rec.TTL)
	b = append(b, rec.PublicKey...)
	return binary.LittleEndian.AppendUint32(b, checksum(owner, b))
}

// decodeValue is the inverse of encodeValue; the record's key aliases b.
func decodeValue(owner, b []byte) (schema.PublicRecord, error) {
	if len(b) < valueHead+valueTail {
		return schema.PublicRecord{}, fmt.Errorf("%w: record of %d octets", errCorrupt, len(b))
	}
	body := b[:len(b)-valueTail]
	if checksum(owner, body) != binary.LittleEndian.Uint32(b[len(body):]) {
		return schema.PublicRecord{}, fmt.Errorf("%w: checksum of a record is wrong", errCorrupt)
	}
	rec := schema.PublicRecord{TTL: binary.LittleEndian.Uint32(body[1:]), PublicKey: body[valueHead:]}
	setFlags(&rec, body[0])
	if recordFlags(&rec) != body[0] || rec.KeyType > dkimrecord.Ed25519 || len(rec.PublicKey) > schema.MaxPublicKeyLen {
		return schema.PublicRecord{}, fmt.Errorf("%w: record with unknown flags or too long a key", errCorrupt)
	}
	return rec, nil
}

func checksum(owner, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(owner, castagnoli), castagnoli, value)
}

func decodeMeta(b []byte) (*meta, error) {
	if len(b) < 4 || crc32.Checksum(b[4:], castagnoli) != binary.LittleEndian.Uint32(b) {
		return nil, fmt.Errorf("%w: checksum of the meta data is wrong", errCorrupt)
	}
	var m meta
	if err := json.Unmarshal(b[4:], &m); err != nil {
		return nil, fmt.Errorf("%w: meta data: %w", errCorrupt, err)
	}
	return &m, nil
}

// readMeta returns the meta data of a file, the zero value for a new one.
func readMeta(tx *bolt.Tx) (*meta, error) {
	b := tx.Bucket(metaBucket)
	if b == nil {
		return &meta{}, nil
	}
	return decodeMeta(b.Get(metaKey))
}

func writeMeta(tx *bolt.Tx, m meta) error {
	b, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	val := binary.LittleEndian.AppendUint32(nil, crc32.Checksum(body, castagnoli))
	return b.Put(metaKey, append(val, body...))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("replica: %w", err)
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("replica: %w", err)
	}
	return nil
}

// recoverDamage turns a panic of bbolt, or a fault on a page that the disk does
// not give, into an error: neither may end a name server.
func recoverDamage(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %v", errCorrupt, r)
	}
}
