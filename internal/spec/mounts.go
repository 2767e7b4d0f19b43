package spec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts lays the kernel's file systems first, then the pod's files, then the
// pod's mounts from the shallowest to the deepest, so that none hides another.
func (b *builder) mounts() error {
	all := b.kernelMounts()
	access := "rw"
	if b.ReadOnlyRoot() {
		// Else a container whose root is read-only could rewrite what the whole pod reads.
		access = "ro"
	}
	for _, v := range b.Volumes {
		all = append(all, bind(v.Source, v.Target, "rw"))
	}
	for target, source := range b.Files {
		all = append(all, bind(source, target, access))
	}
	all = append(all, bind(b.Shm, "/dev/shm", "rw", "nosuid", "nodev", "noexec"))
	seen := map[string]bool{}
	shared := false
	for _, m := range b.Mounts {
		target := path.Clean(m.GetContainerPath())
		if !path.IsAbs(m.GetContainerPath()) || target == "/" {
			return fmt.Errorf("mounts: container_path %q is not an absolute path below /", m.GetContainerPath())
		}
		if seen[target] {
			return fmt.Errorf("mounts: container_path %q is given twice", target)
		}
		seen[target] = true
		options, err := b.mountOptions(m.Mount)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(o specs.Mount) bool { return o.Destination == target })
		mount := specs.Mount{Destination: target, Type: "bind", Source: m.Source, Options: options}
		if err := b.mapMount(m.Mount, &mount); err != nil {
			return err
		}
		all = append(all, mount)
		shared = shared || m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE
	}
	slices.SortStableFunc(all, func(x, y specs.Mount) int {
		if d := cmp.Compare(depth(x.Destination), depth(y.Destination)); d != 0 {
			return d
		}
		return strings.Compare(x.Destination, y.Destination)
	})
	b.g.Config.Mounts = all
	if shared {
		// rslave and rshared mounts need a root that receives events; rprivate, the
		// runtime's default, would cut them off.
		b.g.Config.Linux.RootfsPropagation = "rslave"
		if slices.ContainsFunc(b.Mounts, func(m Mount) bool {
			return m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}) {
			b.g.Config.Linux.RootfsPropagation = "rshared"
		}
	}
	return nil
}

func depth(p string) int { return strings.Count(p, "/") }

func bind(source, target string, options ...string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)}
}

func (b *builder) kernelMounts() []specs.Mount {
	access := "ro"
	if b.privileged() {
		access = "rw"
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if b.Namespaces.User != "" && b.Namespaces.HostNet {
		// The kernel lets nobody mount it who does not own the network namespace.
		sys = bind("/sys", "/sys", "nosuid", "noexec", "nodev", b.recursive(access))
	}
	terminals := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	const tty = 5 // the group of terminals in Debian and most others
	if b.Namespaces.User == "" || b.Namespaces.GIDs.Size > tty {
		terminals = append(terminals, "gid=5")
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: terminals},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	switch {
	case b.Namespaces.HostIPC && !b.HostMqueue:
		return all
	case b.Namespaces.HostIPC:
		return append(all, bind("/dev/mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"))
	}
	return append(all, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
}

// recursive is how the access of a bind mount is told so that it holds below it, too,
// where the runtime can.
func (b *builder) recursive(access string) string {
	if access == "ro" && b.Node.RecursiveReadOnly {
		return "rro"
	}
	return access
}

// mapMount gives the mount the owners that the pod asks for (Mount.uidMappings). Mounts
// below it keep theirs, as with the other daemons: not every file system can be mapped.
func (b *builder) mapMount(m *cri.Mount, out *specs.Mount) error {
	uids, gids := m.GetUidMappings(), m.GetGidMappings()
	switch {
	// The source of an image is mapped already.
	case len(uids)+len(gids) == 0 || m.GetImage() != nil:
		return nil
	case len(uids) == 0:
		return fmt.Errorf("mounts: gidMappings of %s need uidMappings", m.GetContainerPath())
	case len(gids) == 0:
		return fmt.Errorf("mounts: uidMappings of %s need gidMappings", m.GetContainerPath())
	case !b.Node.IDMap:
		return fmt.Errorf("mounts: uidMappings of %s: the runtime handler does not support idmapped mounts", m.GetContainerPath())
	}
	out.UIDMappings, out.GIDMappings = ociMappings(uids), ociMappings(gids)
	return nil
}

func ociMappings(mappings []*cri.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range mappings {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// CheckMount refuses what the fields of Mount can never mean together, whatever the node.
func CheckMount(m *cri.Mount) error {
	private := m.GetPropagation() == cri.MountPropagation_PROPAGATION_PRIVATE
	if _, ok := cri.MountPropagation_name[int32(m.GetPropagation())]; !ok {
		return fmt.Errorf("mounts: propagation %d of %s is unknown", m.GetPropagation(), m.GetContainerPath())
	}
	if path.IsAbs(m.GetContainerPath()) {
		if err := checkPath(m.GetContainerPath()); err != nil {
			return fmt.Errorf("mounts: container_path %.200q: %w", m.GetContainerPath(), err)
		}
	}
	if m.GetRecursiveReadOnly() && (!m.GetReadonly() || !private) {
		return fmt.Errorf("mounts: recursive_read_only of %s needs readonly and private propagation", m.GetContainerPath())
	}
	for _, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return fmt.Errorf("mounts: mount_options %q of %s is none of noexec, nodev, nosuid", o, m.GetContainerPath())
		}
	}
	return nil
}

// mountOptions follows the fields of Mount in the proto.
func (b *builder) mountOptions(m *cri.Mount) ([]string, error) {
	if err := CheckMount(m); err != nil {
		return nil, err
	}
	options := []string{"rbind"}
	switch m.GetPropagation() {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
	}
	switch {
	case m.GetRecursiveReadOnly() && !b.Node.RecursiveReadOnly:
		return nil, fmt.Errorf("mounts: recursive_read_only of %s: %w", m.GetContainerPath(), ErrRecursiveReadOnly)
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly():
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	if m.GetImage() != nil {
		// Programs in an image may be run (core/v1 ImageVolumeSource promises "ro" and no
		// longer "noexec"), but not with more rights than the container has.
		options = append(options, "nosuid", "nodev")
	}
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(options, o) {
			options = append(options, o)
		}
	}
	return options, nil
}
