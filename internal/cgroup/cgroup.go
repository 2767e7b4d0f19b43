// Package cgroup names, makes, empties and removes control groups, in both versions
// of the kernel's interface and by both drivers that the kubelet knows. It never
// speaks to systemd: scopes are the OCI runtime's business, ours are plain directories.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The drivers, as the configuration and the kubelet name them.
const (
	Cgroupfs = "cgroupfs"
	Systemd  = "systemd"
)

// Defaults for pods that name no parent, and for the monitors. The monitors are
// outside of the pods' groups: a pod's memory limit must not kill what watches it.
const (
	defaultPods     = "/crio.pods"
	defaultMonitors = "/crio.monitors"
	defaultSlice    = "system.slice"
)

// Booted tells whether systemd runs the machine (sd_booted(3)), so that its driver can work.
func Booted() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// Check refuses a driver that cannot work on this machine.
func Check(driver string) error {
	if driver == Systemd && !Booted() {
		return errors.New(`cgroup_manager is "systemd", but systemd does not run this machine: set cgroup_manager = "cgroupfs"`)
	}
	return nil
}

// Tree is the node's hierarchy as it was when the daemon started.
type Tree struct {
	driver  string
	version int
	// roots are mount points: the one of v2, or one for each v1 hierarchy by controller.
	roots map[string]string
	// own is the daemon's cgroup below the v2 root.
	own string
	// hugetlb, swap and cpuset tell that huge pages, swap and the CPUs can be limited.
	hugetlb, swap, cpuset bool
	// pages are the sizes of huge pages that are counted.
	pages []string
	// wholePids tells that v1's pids is mounted from the root by which processes' cgroups
	// are named in /proc, and is not a view of a part of it.
	wholePids bool
	// What alone changes. hastening: a move of Hasten's is under way.
	hastening atomic.Bool
	files     files
}

// base is where every distribution mounts the hierarchies.
const base = "/sys/fs/cgroup"

// Keys of a v2 mount in Tree.roots: where it is all, and beside v1 on a hybrid node.
const (
	wholeTree  = ""
	hybridTree = "unified"
)

// Open finds the hierarchies. v2 is what /sys/fs/cgroup itself is mounted as; a
// hybrid machine, whose controllers are in v1 hierarchies, is v1. A Tree has descriptors, which
// stay: a process needs one.
func Open(driver string) (*Tree, error) {
	if driver != Cgroupfs && driver != Systemd {
		return nil, fmt.Errorf("cgroup_manager %q is neither %s nor %s", driver, Cgroupfs, Systemd)
	}
	t := &Tree{driver: driver, roots: map[string]string{}, pages: pageSizes()}
	var st unix.Statfs_t
	if err := unix.Statfs(base, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", base, err)
	}
	open := t.openV1
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		open = t.openV2
	}
	if err := open(); err != nil {
		return t, err
	}
	for _, root := range t.roots {
		if _, err := t.files.root(root); err != nil {
			return t, fmt.Errorf("%s: %w", root, err)
		}
	}
	return t, nil
}

func (t *Tree) openV2() (err error) {
	t.version, t.roots[wholeTree] = 2, base
	controllers, err := os.ReadFile(filepath.Join(base, "cgroup.controllers"))
	has := strings.Fields(string(controllers))
	t.hugetlb, t.cpuset = err == nil && slices.Contains(has, "hugetlb"), err == nil && slices.Contains(has, "cpuset")
	// The root itself has no limits.
	limits, _ := filepath.Glob(base + "/*/memory.swap.max")
	t.swap = len(limits) > 0
	t.own, err = ownCgroup(wholeTree)
	return err
}

func (t *Tree) openV1() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	t.version = 1
	if err := t.findV1(f); err != nil {
		return err
	}
	_, err = os.Stat(t.roots["memory"] + "/memory.memsw.limit_in_bytes")
	t.swap = err == nil
	return nil
}

// findV1 reads the mounts of v1 controllers from mountinfo (proc(5)). Those elsewhere
// are somebody's view of the same hierarchies, a chroot's perhaps, and may go away.
func (t *Tree) findV1(mountinfo io.Reader) error {
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 || !strings.HasPrefix(fields[4], base+"/") {
			continue
		}
		if tail[0] == "cgroup2" {
			// A hybrid machine: the runtime makes the container's group here too.
			t.roots[hybridTree] = fields[4]
		}
		if tail[0] != "cgroup" {
			continue
		}
		for _, option := range strings.Split(tail[2], ",") {
			if slices.Contains(controllers(), option) {
				t.roots[option] = fields[4]
				t.wholePids = t.wholePids || option == "pids" && fields[3] == "/"
			}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("mountinfo: %w", err)
	}
	t.hugetlb, t.cpuset = t.roots["hugetlb"] != "", t.roots["cpuset"] != ""
	if t.roots["memory"] == "" || t.roots["pids"] == "" {
		return errors.New("neither cgroup v2 nor the v1 controllers memory and pids are mounted below /sys/fs/cgroup")
	}
	return nil
}

// controllers are the v1 hierarchies in which a runtime makes a container's group.
func controllers() []string {
	return []string{
		"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory",
		"name=systemd", "net_cls", "net_prio", "perf_event", "pids", "rdma", "misc",
	}
}

// HasHugetlb tells whether huge pages can be limited: the controller is one that a
// kernel or a machine may be without.
func (t *Tree) HasHugetlb() bool { return t.hugetlb }

// HasCpuset tells whether CPUs and memory nodes can be chosen, which some kernels for
// virtual machines are built without.
func (t *Tree) HasCpuset() bool { return t.cpuset }

// HasSwap tells whether swap can be limited: a kernel may be without, or have it turned
// off by swapaccount=0.
func (t *Tree) HasSwap() bool { return t.swap }

// ownCgroup is the daemon's cgroup below the root of a controller's hierarchy (cgroups(7)).
func ownCgroup(controller string) (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && slices.Contains(strings.Split(fields[1], ","), controller) {
			return fields[2], nil
		}
	}
	return "", fmt.Errorf("/proc/self/cgroup has no line for %q", controller)
}

// Version is 1 or 2.
func (t *Tree) Version() int { return t.version }

// Driver is Cgroupfs or Systemd.
func (t *Tree) Driver() string { return t.driver }

// ContainerGroup names the group of a container in its pod's, and needs nothing of
// it to exist. parent is PodSandboxConfig.linux.cgroup_parent; "" is a default.
func (t *Tree) ContainerGroup(parent, id string) (Group, error) {
	p, oci, err := t.containerNames(parent, id)
	if err != nil {
		return Group{}, err
	}
	return t.group(p, oci), nil
}

// ContainerPath is the Path of that group.
func (t *Tree) ContainerPath(parent, id string) (string, error) {
	p, _, err := t.containerNames(parent, id)
	return p, err
}

func (t *Tree) containerNames(parent, id string) (p, oci string, err error) {
	if t.driver == Systemd {
		slice, err := sliceName(parent)
		return path.Join(expandSlice(slice), "crio-"+id+".scope"), slice + ":crio:" + id, err
	}
	dir, err := cgroupfsParent(parent, defaultPods)
	p = path.Join(dir, "crio-"+id)
	return p, p, err
}

// PodOOMFile is where the kernel counts the OOM kills of all of a pod's containers: it
// outlives the group of one that systemd removes at its end. "" in v1, where a group
// does not count for those inside it, and for a parent that is no pod's own.
func (t *Tree) PodOOMFile(parent string) string {
	g, ok := t.PodGroup(parent)
	if t.version == 1 || !ok {
		return ""
	}
	return g.OOMFile()
}

// PodGroup names the group that a pod's containers are in. It is the pod's own where
// its client named one, as the kubelet does; false for pods that share the default one.
func (t *Tree) PodGroup(parent string) (Group, bool) {
	if parent == "" {
		return Group{}, false
	}
	dir, err := cgroupfsParent(parent, defaultPods)
	if t.driver == Systemd {
		if dir, err = sliceName(parent); err == nil {
			dir = expandSlice(dir)
		}
	}
	if err != nil || dir == "/" {
		return Group{}, false
	}
	return t.group(dir, dir), true
}

// MonitorGroup names the group of the monitor of a container. With systemd it lies
// in the daemon's own, which its unit delegates to it.
func (t *Tree) MonitorGroup(parent, id string) (Group, error) {
	// CRI-O's "pod" would put the monitor under the pod's memory limit, which must not
	// kill what watches it (CVE-2019-14891).
	if parent == "pod" {
		parent = ""
	}
	if parent == "" && t.driver == Systemd && t.version == 2 {
		parent = path.Join(t.own, "monitors")
	}
	if strings.HasSuffix(parent, ".slice") {
		parent = expandSlice(path.Base(parent))
	}
	dir, err := cgroupfsParent(parent, defaultMonitors)
	if err != nil {
		return Group{}, err
	}
	p := path.Join(dir, "crio-conmon-"+id)
	return t.group(p, p).apart(), nil
}

// apart keeps those hierarchies of v1 in which a monitor must not be where the daemon is:
// it is charged for itself, found and killed by its group, and not by systemd with the
// daemon's unit. Each hierarchy more would cost every start and every removal; to find that
// no older daemon has made the group there costs some microseconds.
func (g Group) apart() Group {
	if g.version == 2 {
		return g
	}
	all, everywhere := g.of, g.dirs
	g.of, g.dirs, g.freezer = map[string]string{}, nil, ""
	for _, key := range []string{"cpu", "cpuacct", "memory", "name=systemd", "pids", hybridTree} {
		if dir, ok := all[key]; ok {
			g.of[key], g.dirs = dir, append(g.dirs, dir)
		}
	}
	slices.Sort(g.dirs)
	g.dirs = slices.Compact(g.dirs)
	g.older = slices.DeleteFunc(slices.Clone(everywhere), func(dir string) bool { return slices.Contains(g.dirs, dir) })
	return g
}

func cgroupfsParent(parent, byDefault string) (string, error) {
	if parent == "" {
		return byDefault, nil
	}
	if strings.ContainsAny(parent, "\x00\n") || slices.Contains(strings.Split(parent, "/"), "..") {
		return "", fmt.Errorf("cgroup parent %q is not a clean path", parent)
	}
	return path.Join("/", parent), nil
}

// sliceName takes the last part of a path: the kubelet sends both
// "/kubepods.slice/kubepods-podX.slice" and the name alone.
func sliceName(parent string) (string, error) {
	if parent == "" {
		return defaultSlice, nil
	}
	name := path.Base(parent)
	stem, ok := strings.CutSuffix(name, ".slice")
	// systemd takes no slice with an empty part between its dashes.
	if !ok || strings.Contains(name, ":") || slices.Contains(strings.Split(stem, "-"), "") {
		return "", fmt.Errorf("cgroup parent %q: with the systemd driver its last part must be a slice, as in kubepods.slice", parent)
	}
	return name, nil
}

// expandSlice gives the path that systemd gives to a slice: a-b.slice lies in
// a.slice (systemd.slice(5)).
func expandSlice(name string) string {
	stem := strings.TrimSuffix(name, ".slice")
	if stem == "-" {
		return "/"
	}
	dir, prefix := "/", ""
	for part := range strings.SplitSeq(stem, "-") {
		prefix += part
		dir = path.Join(dir, prefix+".slice")
		prefix += "-"
	}
	return dir
}

// MissingParents are the directories, outermost first, that have to be made before
// a container of the pod can be: the kubelet makes its own, crictl makes none. They
// are paths below the hierarchies' roots. With systemd the runtime's scope brings
// them about. made are those that were made for other pods, and count as missing: they
// go with the last pod, whichever that is.
func (t *Tree) MissingParents(parent string, made ...string) ([]string, error) {
	if t.driver == Systemd {
		_, err := sliceName(parent)
		return nil, err
	}
	dir, err := cgroupfsParent(parent, defaultPods)
	if err != nil {
		return nil, err
	}
	var missing []string
	for ; dir != "/" && dir != defaultPods; dir = path.Dir(dir) {
		if _, err := os.Stat(filepath.Join(t.probe(), dir)); err == nil && !slices.Contains(made, dir) {
			break
		}
		missing = append(missing, dir)
	}
	slices.Reverse(missing)
	return missing, nil
}

// RemoveDefaults removes the default parents when nothing is left in them.
func (t *Tree) RemoveDefaults() error {
	return t.RemoveParents([]string{defaultPods, defaultMonitors})
}

// probe is the hierarchy that stands for all when one has to be asked.
func (t *Tree) probe() string {
	if t.version == 2 {
		return t.roots[wholeTree]
	}
	return t.roots["memory"]
}

// MakeParents makes what MissingParents named.
func (t *Tree) MakeParents(dirs []string) error {
	for _, dir := range dirs {
		if err := t.group(dir, dir).Create(); err != nil {
			return err
		}
	}
	return nil
}

// RemoveParents removes what MakeParents made, innermost first, as far as it is
// empty: somebody else may have put a group there.
func (t *Tree) RemoveParents(dirs []string) error {
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		for _, d := range t.group(dir, dir).dirs {
			err := unix.Rmdir(d)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
				errs = append(errs, fmt.Errorf("rmdir %s: %w", d, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (t *Tree) group(p, oci string) Group {
	g := Group{oci: oci, path: p, version: t.version, of: make(map[string]string, len(t.roots)), pages: t.pages}
	g.below, g.files = path.Join("/", p), &t.files
	for controller, root := range t.roots {
		dir := root + g.below
		g.of[controller] = dir
		if !slices.Contains(g.dirs, dir) {
			g.dirs = append(g.dirs, dir)
		}
		switch controller {
		case "memory", wholeTree:
			g.memory = dir
		case "pids":
			g.pids = dir
		case "freezer":
			g.freezer = dir
		}
	}
	slices.Sort(g.dirs)
	if t.version == 2 {
		g.pids = g.memory
	}
	return g
}
