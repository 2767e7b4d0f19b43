package stats

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/cgroup"
)

// fileSystem is the one that the layers are on.
type fileSystem struct {
	device                    string
	bytes, inodes, inodesFree cgroup.Count
}

func (c *Collector) fileSystem(s *scrape) fileSystem {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(c.Storage, &fs), unix.Stat(c.Storage, &st)); err != nil {
		c.Log.Warn("statistics of the layers' file system", "directory", c.Storage, "err", err)
		return fileSystem{}
	}
	return fileSystem{
		device: s.device(uint64(unix.Major(st.Dev)), uint64(unix.Minor(st.Dev))),
		bytes:  number(fs.Blocks * uint64(fs.Bsize)), inodes: number(fs.Files), inodesFree: number(fs.Ffree),
	}
}

// device names a block device by its node, /dev/sda; by its number where it is none, as
// a tmpfs is.
func (s *scrape) device(major, minor uint64) string {
	number := fmt.Sprintf("%d:%d", major, minor)
	if name, ok := s.devices.Load(number); ok {
		return name.(string)
	}
	name := number
	event, err := os.ReadFile("/sys/dev/block/" + number + "/uevent")
	if _, rest, ok := strings.Cut(string(event), "DEVNAME="); ok && err == nil {
		name, _, _ = strings.Cut(rest, "\n")
		name = "/dev/" + name
	}
	s.devices.Store(number, name)
	return name
}

// mostDescriptors bounds what is read for one container, which a pod could make long.
// Beyond it descriptors and sockets are not known.
const mostDescriptors = 10_000

// processes of a container.
type processes struct {
	count                int
	descriptors, sockets cgroup.Count
	// openFiles is the soft limit of the first process.
	openFiles cgroup.Count
}

// processesOf looks at the processes of a group; first is the container's first one. What
// ends meanwhile does not count.
func processesOf(group cgroup.Group, first int) (processes, error) {
	pids, err := group.Pids()
	if err != nil {
		return processes{}, err
	}
	p := processes{count: len(pids), descriptors: number(0), sockets: number(0)}
	for _, pid := range pids {
		p.look("/proc/" + strconv.Itoa(pid) + "/fd")
	}
	// Only a pid of the group is sure to be no other's by now.
	if slices.Contains(pids, first) {
		p.openFiles = openFiles(first)
	}
	return p, nil
}

// look adds the descriptors of one process. Without os.File, as in cgroup: there is one
// directory per process of the node.
func (p *processes) look(dir string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var names []string
	for entries := make([]byte, 4096); p.descriptors.N+uint64(len(names)) < mostDescriptors; {
		n, err := unix.ReadDirent(fd, entries)
		if err != nil {
			return
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(entries[:n], -1, names)
	}
	p.descriptors.N += uint64(len(names))
	if p.descriptors.N >= mostDescriptors {
		p.descriptors.Known, p.sockets.Known = false, false
		return
	}
	var target [8]byte
	for _, name := range names {
		n, err := unix.Readlinkat(fd, name, target[:])
		if err == nil && bytes.HasPrefix(target[:n], []byte("socket:")) {
			p.sockets.N++
		}
	}
}

// openFiles is the soft limit of a process (prlimit(2), for which another user's takes
// CAP_SYS_RESOURCE); unknown where it is unlimited, for which a metric has no number.
func openFiles(pid int) cgroup.Count {
	var limit unix.Rlimit
	err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit)
	return cgroup.Count{N: limit.Cur, Known: err == nil && limit.Cur != unix.RLIM_INFINITY}
}
