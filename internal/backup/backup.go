// Package backup is the form of a backup file: records, one after the other,
// encrypted as a whole by age (age-encryption.org/v1), to a passphrase or to
// recipients. A file that was cut or changed anywhere is told from a whole one.
//
// Inside, it is the line "dkimzone backup 1" and then the records, each after its
// length as an unsigned varint. A length of 0 is the end.
package backup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

var (
	// ErrNoBackup says that a file is none that this package wrote.
	ErrNoBackup = errors.New("not a backup of dkimzone")
	// ErrCut is wrapped when a file ends before the end, or was changed.
	ErrCut = errors.New("the backup is damaged or not complete")
	// ErrWrongKey is wrapped when a file was encrypted to others.
	ErrWrongKey = errors.New("the backup was encrypted to another passphrase or recipient")
)

const (
	magic = "dkimzone backup 1\n"
	// MaxRecord is how long a record may be, in octets.
	MaxRecord = 16 << 20
)

// Lock encrypts backups, and opens them: a passphrase does both; recipients and
// identities, those of age, only one each.
type Lock struct {
	recipients []age.Recipient
	identities []age.Identity
}

// Passphrase is a Lock by a passphrase, from which a key is derived by scrypt. It
// takes about a second of a CPU.
func Passphrase(text string) (Lock, error) {
	r, err := age.NewScryptRecipient(text)
	if err != nil {
		return Lock{}, fmt.Errorf("passphrase: %w", err)
	}
	i, err := age.NewScryptIdentity(text)
	if err != nil {
		return Lock{}, fmt.Errorf("passphrase: %w", err)
	}
	return Lock{recipients: []age.Recipient{r}, identities: []age.Identity{i}}, nil
}

// Recipients is a Lock that encrypts to each of the given recipients, age1....
func Recipients(recipients ...string) (Lock, error) {
	parsed, err := age.ParseRecipients(strings.NewReader(strings.Join(recipients, "\n")))
	if err != nil {
		return Lock{}, fmt.Errorf("recipient: %w", err)
	}
	return Lock{recipients: parsed}, nil
}

// Identities is a Lock that opens what was encrypted to one of the identities in a
// file as age-keygen writes it. Errors do not repeat what r holds.
func Identities(r io.Reader) (Lock, error) {
	identities, err := age.ParseIdentities(r)
	if err != nil {
		return Lock{}, errors.New("no file of identities as age-keygen writes it")
	}
	return Lock{identities: identities}, nil
}

// Writer writes a backup. It is not safe for concurrent use.
type Writer struct {
	age io.WriteCloser
	buf *bufio.Writer
}

// NewWriter begins a backup on w. The backup is whole once Close has returned nil.
func NewWriter(w io.Writer, lock Lock) (*Writer, error) {
	encrypted, err := age.Encrypt(w, lock.recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypt the backup: %w", err)
	}
	b := &Writer{age: encrypted, buf: bufio.NewWriter(encrypted)}
	if _, err := b.buf.WriteString(magic); err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	return b, nil
}

// Write adds a record of 1 to MaxRecord octets.
func (b *Writer) Write(record []byte) error {
	if len(record) == 0 || len(record) > MaxRecord {
		return fmt.Errorf("a record of %d octets cannot be in a backup", len(record))
	}
	_, err := b.buf.Write(binary.AppendUvarint(nil, uint64(len(record))))
	if err == nil {
		_, err = b.buf.Write(record)
	}
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// Close ends the backup. It does not close what is below.
func (b *Writer) Close() error {
	err := b.buf.WriteByte(0)
	if err == nil {
		err = b.buf.Flush()
	}
	if err == nil {
		err = b.age.Close()
	}
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// Reader reads a backup. It is not safe for concurrent use.
type Reader struct {
	buf *bufio.Reader
	end bool
}

// NewReader opens the backup in r. It returns ErrNoBackup, ErrWrongKey or ErrCut.
func NewReader(r io.Reader, lock Lock) (*Reader, error) {
	decrypted, err := age.Decrypt(r, lock.identities...)
	if err != nil {
		if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
			return nil, ErrWrongKey
		}
		return nil, fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	b := &Reader{buf: bufio.NewReader(decrypted)}
	line := make([]byte, len(magic))
	if _, err := io.ReadFull(b.buf, line); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCut, err)
	}
	if string(line) != magic {
		return nil, fmt.Errorf("%w: it begins with %q", ErrNoBackup, line)
	}
	return b, nil
}

// Next returns the next record, or io.EOF after the last one of a whole backup. It
// returns ErrCut if the backup is not whole.
func (b *Reader) Next() ([]byte, error) {
	if b.end {
		return nil, io.EOF
	}
	n, err := binary.ReadUvarint(b.buf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCut, err)
	}
	if n == 0 {
		if _, err := b.buf.ReadByte(); !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: it goes on after its end", ErrCut)
		}
		b.end = true
		return nil, io.EOF
	}
	if n > MaxRecord {
		return nil, fmt.Errorf("%w: a record of %d octets", ErrCut, n)
	}
	record := make([]byte, n)
	if _, err := io.ReadFull(b.buf, record); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCut, err)
	}
	return record, nil
}
