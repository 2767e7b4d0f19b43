package selftest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/sys"
)

// Node is what the checks look at: the parts that the daemon would use.
type Node struct {
	// Root, StateDir and RunDir of the daemon. They need not exist yet.
	Root, StateDir, RunDir string
	CgroupDriver           string
	Networks               *network.Network
	// Runtimes are the handlers by name with the version of each, or why it cannot be used.
	Runtimes map[string]RuntimeCheck
	// Programs are our own, by name, with the path or why there is none.
	Programs map[string]ProgramCheck
}

// RuntimeCheck is what was found of a handler.
type RuntimeCheck struct {
	Version string
	Err     error
}

// ProgramCheck is what was found of one of our programs.
type ProgramCheck struct {
	Path string
	Err  error
}

// Space below which a check warns or fails, in bytes.
const (
	spaceWarn = 5 << 30
	spaceFail = 200 << 20
)

// Check looks at the node and changes nothing.
func Check(ctx context.Context, n Node) []Line {
	lines := []Line{kernel(), overlay(), n.cgroups()}
	for _, name := range slices.Sorted(maps.Keys(n.Programs)) {
		p := n.Programs[name]
		lines = append(lines, verdict("program "+name, p.Path, p.Err, "run `make install`, or set its path in crio.conf"))
	}
	for _, name := range slices.Sorted(maps.Keys(n.Runtimes)) {
		r := n.Runtimes[name]
		lines = append(lines, verdict("runtime "+name, r.Version, r.Err, "install it, or set runtime_path of its handler"))
	}
	_, err := n.Networks.Choose(ctx)
	lines = append(lines, verdict("cni", "a pod can be attached", err, "Debian: apt-get install containernetworking-plugins; then put a .conflist into network_dir"))
	for _, dir := range []string{n.Root, n.StateDir, n.RunDir} {
		lines = append(lines, space(dir))
	}
	return lines
}

func verdict(name, detail string, err error, advice string) Line {
	if err != nil {
		return Line{Name: name, Result: Fail, Detail: err.Error(), Advice: advice}
	}
	return Line{Name: name, Result: OK, Detail: detail}
}

// kernel asks for what the daemon and the monitor cannot do without: pidfd_open
// (5.3), openat2 (5.6), and statx that tells mount points (5.8).
func kernel() Line {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return verdict("kernel", "", err, "")
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		unix.Close(fd)
		fd, err = unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	}
	if err == nil {
		unix.Close(fd)
		_, err = sys.IsMountpoint("/")
	}
	return verdict("kernel", unix.ByteSliceToString(u.Release[:]), err, "Linux 5.8 or newer is needed")
}

func overlay() Line {
	data, err := os.ReadFile("/proc/filesystems")
	if err == nil && !strings.Contains(string(data), "\toverlay\n") {
		err = errors.New("the kernel has no overlay file system")
	}
	return verdict("storage driver", "overlay", err, "modprobe overlay")
}

func (n Node) cgroups() Line {
	if err := cgroup.Check(n.CgroupDriver); err != nil {
		return verdict("cgroups", "", err, "set it in crio.conf")
	}
	t, err := cgroup.Open(n.CgroupDriver)
	if err != nil {
		return verdict("cgroups", "", err, "mount the unified hierarchy on /sys/fs/cgroup")
	}
	return verdict("cgroups", fmt.Sprintf("v%d, driver %s", t.Version(), t.Driver()), nil, "")
}

// space looks at the file system that the directory is on, or will be.
func space(dir string) Line {
	l := Line{Name: "space " + dir, Result: OK}
	at := dir
	var st unix.Statfs_t
	err := unix.Statfs(at, &st)
	for ; errors.Is(err, unix.ENOENT) && at != "/"; err = unix.Statfs(at, &st) {
		at = filepath.Dir(at)
	}
	if err != nil {
		return verdict(l.Name, "", err, "")
	}
	free := st.Bavail * uint64(st.Bsize)
	l.Detail = fmt.Sprintf("%d MiB free", free>>20)
	switch {
	case free < spaceFail:
		l.Result, l.Advice = Fail, "free some space, or put the directory elsewhere"
	case free < spaceWarn && st.Type != unix.TMPFS_MAGIC:
		l.Result, l.Advice = Warn, "images may not fit"
	}
	return l
}
