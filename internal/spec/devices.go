package spec

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
)

// CheckDevice refuses what the fields of Device can never mean, whatever the node has.
func CheckDevice(d *cri.Device) error {
	for field, name := range map[string]string{"host_path": d.GetHostPath(), "container_path": d.GetContainerPath()} {
		if err := checkPath(name); err != nil {
			return fmt.Errorf("devices: %s %.200q: %w", field, name, err)
		}
	}
	if d.GetPermissions() == "" || strings.Trim(d.GetPermissions(), "rwm") != "" {
		return fmt.Errorf("devices: permissions %q of %s are not one or more of r, w, m", d.GetPermissions(), d.GetContainerPath())
	}
	return nil
}

// Limits of path_resolution(7), in bytes.
const (
	pathMax = 4096
	nameMax = 255
)

// checkPath takes an absolute path that the kernel could take.
func checkPath(name string) error {
	switch {
	case name == "":
		return errors.New("it is empty")
	case strings.Contains(name, "\x00"):
		return errors.New("it contains a NUL byte")
	case !path.IsAbs(name):
		return errors.New("it is not absolute")
	case len(name) >= pathMax || slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return len(part) > nameMax }):
		return errors.New("it is longer than the kernel takes")
	}
	return nil
}

// RuntimeMakes tells of what is at a place by the runtime's own doing, a device
// (OCI config-linux.md, "Default Devices") or a file system, so that no node can be put
// there. Runtimes pass over such a node without a word.
func RuntimeMakes(name string) bool {
	for _, top := range []string{"/proc", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue"} {
		if below(top, name) {
			return true
		}
	}
	return slices.Contains([]string{"/", "/dev", "/dev/console", "/dev/ptmx", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd", "/dev/core"}, name)
}

// below tells whether name, which is clean, is top or in it.
func below(top, name string) bool { return name == top || strings.HasPrefix(name, top+"/") }

// defaultDevice is the number of what the runtime makes at a place itself, unless the
// specification has a device for it.
func defaultDevice(name string) (number [2]int64, ok bool) {
	number, ok = map[string][2]int64{
		"/dev/null": {1, 3}, "/dev/zero": {1, 5}, "/dev/full": {1, 7}, "/dev/random": {1, 8}, "/dev/urandom": {1, 9}, "/dev/tty": {5, 0},
	}[name]
	return number, ok
}

// BindDevices replaces the devices that a process in a user namespace is to have by bind
// mounts of nodes, which makeNode makes and returns the path of. Nobody may make nodes there,
// and runtimes help themselves differently: runc binds what the node of this machine has
// at the place where the container is to see it, which may be another device or none,
// and in any case belongs to nobody.
//
// Nodes of the machine that were given unasked (Device.OfNode) are left to the runtime:
// who is root in a user namespace must not become their owner. So are those that the
// runtime has anyway. The access, which the cgroup rules, is not touched. Errors are
// makeNode's, or InvalidArgument.
func BindDevices(s *specs.Spec, given []Device, makeNode func(specs.LinuxDevice) (string, error)) error {
	var left []specs.LinuxDevice
	for _, d := range s.Linux.Devices {
		number, usual := defaultDevice(d.Path)
		if usual && number != [2]int64{d.Major, d.Minor} {
			return fault.New(fault.InvalidArgument, "devices: container_path %s: in a user namespace the runtime has its own device there", d.Path)
		}
		if usual || slices.ContainsFunc(given, func(g Device) bool { return g.OfNode && same(g.LinuxDevice, d) }) {
			left = append(left, d)
			continue
		}
		source, err := makeNode(d)
		if err != nil {
			return err
		}
		// Behind all others, as a runtime makes devices behind the mounts.
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: d.Path, Type: "bind", Source: source, Options: []string{"bind", "rprivate", "nosuid", "noexec", "rw"},
		})
	}
	s.Linux.Devices = left
	return nil
}

// same tells whether y is a copy of x, and not what CDI has put in its place.
func same(x, y specs.LinuxDevice) bool {
	return x.Path == y.Path && x.FileMode == y.FileMode
}

// OwnerInside is who a device belongs to by the IDs of the container; what its user
// namespace does not have belongs to its root.
func (n Namespaces) OwnerInside(d specs.LinuxDevice) (uid, gid uint32) {
	var root uint32
	uid, gid = *cmp.Or(d.UID, &root), *cmp.Or(d.GID, &root)
	if uid >= n.UIDs.Size {
		uid = 0
	}
	if gid >= n.GIDs.Size {
		gid = 0
	}
	return uid, gid
}

// CheckKernelPlace refuses a mount in the kernel's file systems that a runtime would
// refuse when the container starts. runc allows a list (its checkProcMount), and at /proc
// itself nothing but a proc file system; others allow what is there. ofProc tells whether
// the source is one.
func CheckKernelPlace(target string, runc, ofProc bool) error {
	target = path.Clean(target)
	switch {
	case !runc || !below("/proc", target) || slices.Contains(runcProcMounts(), target):
		return nil
	case target == "/proc" && !ofProc:
		return errors.New("mounts: container_path /proc: the runtime takes only a proc file system there")
	case target == "/proc":
		return nil
	}
	return fmt.Errorf("mounts: container_path %s: in /proc the runtime takes mounts at %s only", target, strings.Join(runcProcMounts(), ", "))
}

func runcProcMounts() []string {
	return []string{
		"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
		"/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
	}
}

// KernelFile tells whether a place for a mount is a file of the kernel's that is the same
// for all, and which nobody can make where it is not.
func KernelFile(target string) bool {
	target = path.Clean(target)
	top, rest, _ := strings.Cut(strings.TrimPrefix(target, "/"), "/")
	if (top != "proc" && top != "sys") || rest == "" {
		return false
	}
	first, _, _ := strings.Cut(rest, "/")
	if top == "proc" && (strings.Trim(first, "0123456789") == "" || slices.Contains([]string{"self", "thread-self", "net", "mounts"}, first)) {
		return false
	}
	return !slices.ContainsFunc([]string{"/proc/sys/net", "/sys/fs", "/sys/class/net", "/sys/devices/virtual/net"}, func(other string) bool {
		return below(other, target)
	})
}
