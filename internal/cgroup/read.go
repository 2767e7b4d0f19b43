package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Count is a number of the kernel's. Known is false where it has none: the controller
// or the file is not there, or the group is gone.
type Count struct {
	N     uint64
	Known bool
}

// Unlimited is the N of a limit that is none: "max" in v2, and in v1 the largest number
// of whole pages, which no machine has.
const Unlimited = math.MaxUint64

const v1Unlimited = 1 << 62

func known(n uint64) Count { return Count{N: n, Known: true} }

// files are what the readers of a Tree share: descriptors of the roots of its hierarchies, by
// path, and readers that have done. The way to a file of a group takes longer than the file,
// and the first half of it is the same for all. The descriptors are there for as long as the
// process.
type files struct {
	byRoot  sync.Map
	readers sync.Pool
}

func (f *files) root(path string) (int, error) {
	if fd, ok := f.byRoot.Load(path); ok {
		return fd.(int), nil
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	first, there := f.byRoot.LoadOrStore(path, fd)
	if there {
		unix.Close(fd)
	}
	return first.(int), nil
}

// reader reads the kernel's files of a group, one after the other into the same memory. What
// is not there leaves its values unknown; err is the first thing that went wrong otherwise.
type reader struct {
	group  Group
	dirs   []openDir
	buffer []byte
	err    error
}

// openDir is the group's directory in one hierarchy. It takes the kernel much longer to walk
// down to it than to find a file in it, and most have several that are read.
type openDir struct {
	path string
	fd   int
}

// readSize has room for the longest file: io.stat of a node with a hundred disks.
const readSize = 16 << 10

// newReader returns one that its user closes.
func (g Group) newReader() *reader {
	r, ok := g.files.readers.Get().(*reader)
	if !ok {
		r = &reader{buffer: make([]byte, readSize)}
	}
	r.group, r.err = g, nil
	return r
}

func (r *reader) close() {
	for _, d := range r.dirs {
		unix.Close(d.fd)
	}
	r.dirs = r.dirs[:0]
	r.group.files.readers.Put(r)
}

// open returns a descriptor that close closes.
func (r *reader) open(dir string) (int, error) {
	for _, d := range r.dirs {
		if d.path == dir {
			return d.fd, nil
		}
	}
	root, err := r.group.files.root(strings.TrimSuffix(dir, r.group.below))
	if err != nil {
		return -1, err
	}
	fd, err := unix.Openat(root, r.group.below[1:], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		r.dirs = append(r.dirs, openDir{dir, fd})
	}
	return fd, err
}

// file returns what is in a file until the next call, nil when there is none. dir is the
// group's in one hierarchy, "" where that is not mounted.
func (r *reader) file(dir, name string) []byte {
	if dir == "" {
		return nil
	}
	n, err := r.read(dir, name)
	switch {
	case err == nil:
		return r.buffer[:n]
	case gone(err), errors.Is(err, unix.EOPNOTSUPP): // the latter: pressure is turned off
	case r.err == nil:
		r.err = fmt.Errorf("read %s/%s: %w", dir, name, err)
	}
	return nil
}

// read takes one read: the kernel gives all of such a file to the first, as far as the
// buffer has room. Without os.File: a list of 250 pods reads thousands of them.
func (r *reader) read(dir, name string) (int, error) {
	in, err := r.open(dir)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Openat(in, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, r.buffer)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// count reads a file that is one number, or "max".
func (r *reader) count(dir, name string) Count {
	return parseCount(bytes.TrimSpace(r.file(dir, name)))
}

// keyed reads a file of lines "key value" into the fields that want names.
func (r *reader) keyed(dir, name string, want map[string]*Count) {
	for line := range bytes.Lines(r.file(dir, name)) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if field := want[string(key)]; field != nil {
			*field = parseCount(value)
		}
	}
}

func (r *reader) pressure(dir, name string) Pressure { return parsePressure(r.file(dir, name)) }

func parseCount(text []byte) Count {
	if string(text) == "max" {
		return known(Unlimited)
	}
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return Count{}
	}
	return known(n)
}

// Pressure is what a file of Documentation/accounting/psi.rst tells; nil where the
// kernel does not tell it.
type Pressure struct{ Some, Full *Stall }

// Stall is how long tasks waited: as shares of the last 10, 60 and 300 seconds in
// percent, and all in all in microseconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

func parsePressure(text []byte) Pressure {
	var p Pressure
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		s := &Stall{}
		averages := map[string]*float64{"avg10": &s.Avg10, "avg60": &s.Avg60, "avg300": &s.Avg300}
		ok := false
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte("="))
			if average := averages[string(key)]; average != nil {
				*average, _ = strconv.ParseFloat(string(value), 64)
			} else if string(key) == "total" {
				total := parseCount(value)
				s.Total, ok = total.N, total.Known
			}
		}
		switch {
		case ok && string(fields[0]) == "some":
			p.Some = s
		case ok && string(fields[0]) == "full":
			p.Full = s
		}
	}
	return p
}

// Operation is what a group has done of one kind on one block device.
type Operation struct {
	Major, Minor uint64
	// Name as in v1: Read, Write, Discard, Sync, Async, Total; the first three in v2.
	Name         string
	Bytes, Times uint64
}

// parseIOStat reads io.stat of v2.
func parseIOStat(text []byte) []Operation {
	var all []Operation
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		major, minor, ok := parseDevice(fields[0])
		if !ok {
			continue
		}
		values := map[string]uint64{}
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte("="))
			values[string(key)] = parseCount(value).N
		}
		for name, key := range map[string]string{"Read": "r", "Write": "w", "Discard": "d"} {
			all = append(all, Operation{Major: major, Minor: minor, Name: name, Bytes: values[key+"bytes"], Times: values[key+"ios"]})
		}
	}
	return all
}

// parseBlkio reads a v1 file of lines "major:minor Operation value"; add gets each.
func parseBlkio(text []byte, add func(o Operation, value uint64)) {
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) != 3 {
			continue // the sum of all devices
		}
		major, minor, ok := parseDevice(fields[0])
		if value := parseCount(fields[2]); ok && value.Known {
			add(Operation{Major: major, Minor: minor, Name: string(fields[1])}, value.N)
		}
	}
}

func parseDevice(text []byte) (major, minor uint64, ok bool) {
	before, after, _ := bytes.Cut(text, []byte(":"))
	a, b := parseCount(before), parseCount(after)
	return a.N, b.N, a.Known && b.Known && a.N != Unlimited && b.N != Unlimited
}

// missing tells that nothing is at the path any more.
func missing(path string) bool {
	var st unix.Stat_t
	return errors.Is(unix.Stat(path, &st), fs.ErrNotExist)
}
