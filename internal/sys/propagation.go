package sys

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is the mount that a path lies on, and how it passes on what is mounted below it
// (mount_namespaces(7)). One that is neither shared nor a slave is private.
type Mount struct {
	// Point is where it is mounted, as this process sees it.
	Point string
	// Shared: it tells its peers of mounts and is told.
	Shared bool
	// Slave: it is told.
	Slave bool
}

// MountsOf returns the mount of each path, which is the kernel's own answer and no
// comparison of names. Symbolic links are followed. It reads /proc/self/mountinfo once.
// It blocks while a file system that one of the paths is on does not answer.
func MountsOf(paths []string) ([]Mount, error) {
	ids := make([]uint64, len(paths))
	for i, path := range paths {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
			return nil, fmt.Errorf("statx %s: %w", path, err)
		}
		if st.Mask&unix.STATX_MNT_ID == 0 {
			return nil, fmt.Errorf("statx %s: the kernel does not tell the mount (it is older than 5.8)", path)
		}
		ids[i] = st.Mnt_id
	}
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	mounts := make([]Mount, len(paths))
	for i, id := range ids {
		m, ok := table[id]
		if !ok {
			return nil, fmt.Errorf("the mount of %s has just gone, or is not below our root", paths[i])
		}
		mounts[i] = m
	}
	return mounts, nil
}

// mountTable reads /proc/self/mountinfo by the IDs of the mounts (proc_pid_mountinfo(5)).
func mountTable() (map[uint64]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	table := map[uint64]Mount{}
	lines := bufio.NewScanner(f)
	// A line holds three paths and the options of the file system, a page each.
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		id, m, err := parseMount(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("/proc/self/mountinfo: %w", err)
		}
		table[id] = m
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("/proc/self/mountinfo: %w", err)
	}
	return table, nil
}

// parseMount reads "36 35 98:0 /root /point options optional-field... - type source options".
func parseMount(line string) (uint64, Mount, error) {
	const point, firstOptional = 4, 6
	fields := strings.Split(line, " ")
	if len(fields) <= firstOptional {
		return 0, Mount{}, fmt.Errorf("a line of %d fields", len(fields))
	}
	id, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil {
		return 0, Mount{}, err
	}
	m := Mount{Point: unescape(fields[point])}
	for _, field := range fields[firstOptional:] {
		switch tag, _, _ := strings.Cut(field, ":"); tag {
		case "shared":
			m.Shared = true
		case "master":
			m.Slave = true
		case "-":
			return id, m, nil
		}
	}
	return 0, Mount{}, fmt.Errorf("mount %d: a line without its end", id)
}

// unescape undoes what the kernel does to spaces and the like in paths: \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
