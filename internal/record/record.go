// Package record keeps one small file per object on disk: what the daemon made or
// was about to make. It loads each file alone, so that a broken one costs one object.
package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

// Version of the record format: that of the daemon which wrote the record last. A reader
// takes every version up to its own, and newer ones too as long as the body still
// decodes: fields it does not know are kept and written back, but for those of the
// elements of a list.
const Version = 1

const (
	// maxSize bounds one state of an object, in bytes. gRPC messages are bounded at 80 MiB
	// by default, but a pod's configuration of more than this does not exist.
	maxSize = 16 << 20
	// A file is written anew before it has more bytes than keepSize, unless its state is
	// larger than a page of memory, for which there is a new file each time.
	keepSize = 64 << 10
	page     = 4 << 10
)

// Broken says why a record cannot be used. The file is in the quarantine, now or since
// an earlier start: until somebody deletes it there, what it stands for may run.
type Broken struct {
	ID, Path string
	Err      error
}

func (b Broken) Error() string { return fmt.Sprintf("record %s: %v", b.Path, b.Err) }

// ErrEmpty is a record without any content. Save never makes one: it is what a power cut
// leaves of a file whose name reached the disk before its content.
var ErrEmpty = errors.New("the file is empty")

var errSetAside = errors.New("set aside at an earlier start")

// envelope is a line of the file. Body is kept raw so that the checksum is over the bytes
// as they lie on disk.
type envelope struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Body    json.RawMessage `json:"body"`
}

// Dir is a directory of records of one kind, one file per ID. Its methods may be
// called concurrently for different IDs; the caller orders those for one ID.
//
// A file has a line for each of the last states of its object, and the last one counts. To
// add one is a single write; for each new file ext4 looks at all the inodes that were
// deleted in the last minutes, one by one. A daemon that is killed leaves the line or
// nothing of it. A power cut may take lines, but none that was synced.
type Dir struct {
	path, quarantine string

	mu sync.Mutex
	// unknown holds, per ID, an object of the fields of a newer daemon's record that this
	// one does not know. Only IDs that have any are in it.
	unknown map[string]json.RawMessage
}

// Open makes the directories where they are missing (0700).
func Open(path, quarantine string) (*Dir, error) {
	for _, p := range []string{path, quarantine} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			return nil, fmt.Errorf("record directory %s: %w", p, err)
		}
	}
	return &Dir{path: path, quarantine: quarantine, unknown: map[string]json.RawMessage{}}, nil
}

// writer makes or replaces a file: sys.WriteFile or sys.WriteFileSync.
type writer func(path string, data []byte, perm fs.FileMode) error

// Save records the state of id. body must marshal to a JSON object. A power cut may take
// it back, down to what was synced; all that is left of a file that anew has replaced is
// what anew has put on the disk.
func (d *Dir) Save(id string, body any, anew writer) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	if raw, err = d.addUnknown(id, raw); err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	data, err := encode(raw)
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	if len(data) > maxSize {
		return fmt.Errorf("record %s: %d bytes are more than the %d that would be read again", id, len(data), maxSize)
	}
	if err := add(filepath.Join(d.path, id), data, anew); err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	sys.Failpoint("record", "saved")
	return nil
}

// add appends a line to a file, or makes the file of it. After an error the last line is
// what it was, unless a file that was written anew could not be synced.
func add(path string, line []byte, anew writer) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return sys.WriteFile(path, line, 0o600)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if len(line) > page || info.Size()+page+int64(len(line)) > keepSize {
		return anew(path, line, 0o600)
	}
	if _, err := f.Write(slices.Concat(gap(info.Size(), len(line)), line)); err != nil {
		return errors.Join(err, f.Truncate(info.Size()))
	}
	return nil
}

// gap is the empty lines, at least one, after which a line of at most a page does not cross
// the border of one: a write stops there when its process is killed, and nowhere else.
func gap(size int64, line int) []byte {
	n := 1
	if room := page - int(size+1)%page; line > room {
		n += room
	}
	return bytes.Repeat([]byte("\n"), n)
}

// Sync returns when what Save wrote last of id is on the disk.
func (d *Dir) Sync(id string) error {
	if err := sys.Sync(filepath.Join(d.path, id)); err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	return nil
}

// Delete removes the record; nil when there is none.
func (d *Dir) Delete(id string) error {
	d.mu.Lock()
	delete(d.unknown, id)
	d.mu.Unlock()
	if err := os.Remove(filepath.Join(d.path, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", id, err)
	}
	sys.Failpoint("record", "deleted")
	return nil
}

// LoadAll calls decode with each record's body. A record that cannot be read,
// whose checksum is wrong or that decode refuses goes to the quarantine and is
// returned, with those that are there already; the error is for the directory itself.
// An earlier state than that of the last line is taken only where dead says that nothing of
// the object can run.
func (d *Dir) LoadAll(dead func(id string) bool, decode func(id string, body []byte) (known any, err error)) ([]Broken, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("record directory %s: %w", d.path, err)
	}
	broken, err := d.quarantined()
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		id := entry.Name()
		path := filepath.Join(d.path, id)
		// A crash between write and rename leaves the new file; the old one rules.
		if strings.HasPrefix(id, ".") && entry.Type().IsRegular() {
			if err := os.Remove(path); err != nil {
				broken = append(broken, Broken{ID: id, Path: path, Err: fmt.Errorf("unfinished: %w", err)})
			}
			continue
		}
		if err := d.load(id, path, dead, decode); err != nil {
			moved, mvErr := d.setAside(id)
			broken = append(broken, Broken{ID: id, Path: moved, Err: errors.Join(err, mvErr)})
		}
	}
	return broken, nil
}

// quarantined are the records of this kind that were set aside before.
func (d *Dir) quarantined() ([]Broken, error) {
	entries, err := os.ReadDir(d.quarantine)
	if err != nil {
		return nil, fmt.Errorf("quarantine %s: %w", d.quarantine, err)
	}
	var broken []Broken
	for _, entry := range entries {
		if id, ok := strings.CutPrefix(entry.Name(), d.quarantineName("")); ok {
			broken = append(broken, Broken{ID: id, Path: filepath.Join(d.quarantine, entry.Name()), Err: errSetAside})
		}
	}
	return broken, nil
}

// quarantineName keeps the kinds apart in the quarantine that they share.
func (d *Dir) quarantineName(id string) string { return filepath.Base(d.path) + "-" + id }

func (d *Dir) load(id, path string, dead func(string) bool, decode func(string, []byte) (any, error)) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSize {
		return fmt.Errorf("not a regular file of at most %d bytes", maxSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	body, err := last(data, func() bool { return dead(id) })
	if err != nil {
		return err
	}
	known, err := decode(id, body)
	if err != nil {
		return err
	}
	return d.keepUnknown(id, body, known)
}

// setAside moves a record to the quarantine and returns where it is now.
func (d *Dir) setAside(id string) (string, error) {
	from, to := filepath.Join(d.path, id), filepath.Join(d.quarantine, d.quarantineName(id))
	if err := os.Rename(from, to); err != nil {
		return from, fmt.Errorf("quarantine: %w", err)
	}
	return to, nil
}

// last returns the body of the line that counts.
func last(data []byte, dead func() bool) ([]byte, error) {
	if len(data) == 0 {
		return nil, ErrEmpty
	}
	var first error
	for _, line := range slices.Backward(bytes.Split(data, []byte("\n"))) {
		if len(line) == 0 {
			continue
		}
		body, err := Decode(line)
		if err == nil {
			return body, nil
		}
		if first == nil {
			first = err
		}
		if !dead() {
			break
		}
	}
	switch {
	case first == nil:
		first = errors.New("not a record: no line")
	case bytes.IndexByte(data, 0) >= 0 && dead():
		return nil, ErrEmpty // of the first line the disk never had all: nothing was synced
	}
	return nil, first
}

// Decode checks a line of a record file and returns its body.
func Decode(data []byte) ([]byte, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("not a record: %w", err)
	}
	if e.Version < 1 {
		return nil, fmt.Errorf("version %d is not one", e.Version)
	}
	if sum := sha256.Sum256(e.Body); hex.EncodeToString(sum[:]) != e.SHA256 {
		return nil, errors.New("checksum does not match")
	}
	return e.Body, nil
}

func encode(body []byte) ([]byte, error) {
	// Marshal compacts a RawMessage; the checksum has to be over the compact form.
	var compact bytes.Buffer
	if err := json.Compact(&compact, body); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(compact.Bytes())
	var out bytes.Buffer
	fmt.Fprintf(&out, `{"version":%d,"sha256":"%s","body":`, Version, hex.EncodeToString(sum[:]))
	out.Write(compact.Bytes())
	out.WriteString("}\n")
	return out.Bytes(), nil
}

func (d *Dir) keepUnknown(id string, body []byte, known any) error {
	ours, err := json.Marshal(known)
	if err != nil {
		return err
	}
	if bytes.Equal(ours, body) { // as nearly all are, and taking them apart takes as long as the rest
		return nil
	}
	if extra := without(body, ours); extra != nil {
		d.mu.Lock()
		d.unknown[id] = extra
		d.mu.Unlock()
	}
	return nil
}

func (d *Dir) addUnknown(id string, raw []byte) ([]byte, error) {
	d.mu.Lock()
	extra := d.unknown[id]
	d.mu.Unlock()
	if extra == nil {
		return raw, nil
	}
	return with(raw, extra)
}

// object is nil for what is no JSON object.
func object(data []byte) (fields map[string]json.RawMessage) {
	if json.Unmarshal(data, &fields) != nil {
		return nil
	}
	return fields
}

// without returns the fields of one object, and of the objects in it, that another has
// not; nil when there are none.
func without(all, ours json.RawMessage) json.RawMessage {
	known := object(ours)
	if known == nil {
		return nil
	}
	extra := map[string]json.RawMessage{}
	for key, value := range object(all) {
		if mine, ok := known[key]; ok {
			value = without(value, mine)
		}
		if value != nil {
			extra[key] = value
		}
	}
	if len(extra) == 0 {
		return nil
	}
	data, err := json.Marshal(extra)
	if err != nil {
		return nil // not of what was just decoded
	}
	return data
}

// with adds to an object the fields that without has taken from another. What is no
// object any more stays as it is.
func with(ours, extra json.RawMessage) (json.RawMessage, error) {
	fields := object(ours)
	if fields == nil {
		return ours, nil
	}
	for key, value := range object(extra) {
		if mine, ok := fields[key]; ok {
			var err error
			if value, err = with(mine, value); err != nil {
				return nil, err
			}
		}
		fields[key] = value
	}
	return json.Marshal(fields)
}
