package untrusted

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxDatabase is the most that an image's passwd or group file may have, in bytes
	// and in lines. The reader is root's daemon, and the file is anybody's (CVE-2025-4437).
	maxDatabase  = 1 << 20
	maxUserLines = 1 << 16
)

// database is the image's passwd(5) and group(5). Where an entry occurs twice the
// first counts, as it does for the C library.
type database struct {
	passwd, group []byte
}

type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

func readDatabase(root string) (db database, err error) {
	for _, file := range []struct {
		name string
		data *[]byte
	}{{"/etc/passwd", &db.passwd}, {"/etc/group", &db.group}} {
		if *file.data, err = readRegular(root, file.name, maxDatabase); err != nil {
			return db, err
		}
		if lines := bytes.Count(*file.data, []byte("\n")); lines > maxUserLines {
			return db, fmt.Errorf("%s of the image has %d lines, more than %d", file.name, lines, maxUserLines)
		}
	}
	return db, nil
}

// entries yields the fields of each line that has at least want of them.
func entries(data []byte, want int) iter.Seq[[][]byte] {
	return func(yield func([][]byte) bool) {
		for line := range bytes.Lines(data) {
			fields := bytes.Split(bytes.TrimRight(line, "\r\n"), []byte(":"))
			if len(fields) >= want && len(fields[0]) > 0 && !yield(fields) {
				return
			}
		}
	}
}

// passwdOf reads name:password:uid:gid:gecos:home:shell; what follows gid may be missing.
func passwdOf(fields [][]byte) (e passwdEntry, err error) {
	e.name = string(fields[0])
	if e.uid, err = parseID(string(fields[2])); err != nil {
		return e, err
	}
	if e.gid, err = parseID(string(fields[3])); err != nil {
		return e, err
	}
	if len(fields) > 5 {
		e.home = string(fields[5])
	}
	return e, nil
}

// userByID returns the entry, or one without name and home whose group is 0.
func (db database) userByID(uid uint32) (e passwdEntry, known bool) {
	for fields := range entries(db.passwd, 4) {
		if e, err := passwdOf(fields); err == nil && e.uid == uid {
			return e, true
		}
	}
	return passwdEntry{uid: uid}, false
}

func (db database) userByName(name string) (e passwdEntry, known bool, err error) {
	for fields := range entries(db.passwd, 4) {
		if string(fields[0]) != name {
			continue
		}
		if e, err = passwdOf(fields); err != nil {
			return e, false, fmt.Errorf("/etc/passwd of the image: %q: %w", name, err)
		}
		return e, true, nil
	}
	return e, false, fmt.Errorf("%q is not in the image's /etc/passwd", name)
}

func (db database) groupByName(name string) (uint32, error) {
	for fields := range entries(db.group, 3) {
		if string(fields[0]) != name {
			continue
		}
		gid, err := parseID(string(fields[2]))
		if err != nil {
			return 0, fmt.Errorf("/etc/group of the image: %q: %w", name, err)
		}
		return gid, nil
	}
	return 0, fmt.Errorf("%q is not in the image's /etc/group", name)
}

// memberships are the groups whose member list has name.
func (db database) memberships(name string) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for fields := range entries(db.group, 4) {
			gid, err := parseID(string(fields[2]))
			if err != nil {
				continue
			}
			for member := range bytes.SplitSeq(fields[3], []byte(",")) {
				if string(member) == name {
					if !yield(gid) {
						return
					}
					break
				}
			}
		}
	}
}

// readRegular reads a whole file of the root. A path that leads nowhere is an empty
// file; what is not a regular file of at most limit bytes is an error. Nothing but a
// regular file is ever opened for reading: the open alone can block on a pipe, and
// does something on a device.
func readRegular(root, name string, limit int64) ([]byte, error) {
	handle, err := openInRoot(root, name, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s of the image is not a regular file", name)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s of the image has %d bytes, more than %d", name, info.Size(), limit)
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(handle.Fd())), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s of the image has more than %d bytes", name, limit)
	}
	return data, nil
}
