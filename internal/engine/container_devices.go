package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/selinux"
	"github.com/crio-minimal/crio/internal/spec"
)

// addDevices completes the finished specification: with CDI's devices, and with nodes for
// whom the runtime cannot make them.
func (e *Engine) addDevices(v *pod.Container, in spec.Input, s *specs.Spec) error {
	if len(v.Config.GetCDIDevices()) > 0 {
		if err := e.injectCDI(v, s); err != nil {
			return err
		}
	}
	if in.Namespaces.User == "" {
		return nil
	}
	return e.bindDevices(*v, in, s)
}

// injectCDI adds what the named devices need to the finished specification, and the
// groups that they bring to the user that the container is told to have. Devices are
// named by ContainerConfig.CDI_devices alone: annotations (cdi.k8s.io/...) are anybody's.
func (e *Engine) injectCDI(v *pod.Container, s *specs.Spec) error {
	var names []string
	for _, d := range v.Config.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	warnings, err := e.CDI.Inject(s, names)
	for _, message := range warnings {
		e.warnOnce(message)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", v.Config.GetMetadata().GetName(), err)
	}
	if h := e.configured(v.Handler); len(s.Linux.NetDevices) > 0 && !h.Features.NetDevices {
		return fault.New(fault.FailedPrecondition,
			"CDI_devices: %s moves a network device, which the runtime of handler %q (%s) cannot: install a newer one", names, v.Handler.Name, h.Features.Version)
	}
	v.User.SupplementalGroups = nil
	for _, gid := range s.Process.User.AdditionalGids {
		v.User.SupplementalGroups = append(v.User.SupplementalGroups, int64(gid))
	}
	return nil
}

// devices are the pod's, a directory standing for every node in it; a privileged
// container has all of the node's beside them, unless its handler keeps them from it.
func devices(ctx context.Context, config *cri.ContainerConfig, withoutNodes bool) ([]spec.Device, error) {
	return within(ctx, func() ([]spec.Device, error) {
		var out []spec.Device
		if config.GetLinux().GetSecurityContext().GetPrivileged() && !withoutNodes {
			all, err := walkDevices("/dev", "/dev")
			if err != nil {
				return nil, fmt.Errorf("devices of the node: %w", err)
			}
			for _, d := range all {
				out = append(out, spec.Device{LinuxDevice: d, Access: "rwm", OfNode: true})
			}
		}
		for _, d := range config.GetDevices() {
			found, err := askedDevices(d)
			if err != nil {
				return nil, err
			}
			for _, own := range found {
				out = slices.DeleteFunc(out, func(o spec.Device) bool { return o.Path == own.Path })
				out = append(out, spec.Device{LinuxDevice: own, Access: d.GetPermissions()})
			}
		}
		return out, nil
	})
}

// askedDevices are at least one, or an error that tells why there is none.
func askedDevices(d *cri.Device) ([]specs.LinuxDevice, error) {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.InvalidArgument, "devices: host_path %.200q: %w", d.GetHostPath(), fmt.Errorf(format, args...))
	}
	host, err := followed(d.GetHostPath())
	switch {
	case err != nil && badPath(err):
		return nil, refuse("%w", reason(err))
	case err != nil:
		return nil, fmt.Errorf("devices: host_path: %w", err)
	case runtimesOwn(host):
		return nil, refuse("%s is not the node's to give: the runtime makes one for each container", host)
	}
	info, err := os.Lstat(host)
	if err != nil {
		return nil, fmt.Errorf("devices: host_path: %w", err)
	}
	if !info.IsDir() && info.Mode()&fs.ModeDevice == 0 {
		return nil, refuse("it is neither a device nor a directory of devices")
	}
	found, err := walkDevices(host, d.GetContainerPath())
	if err != nil {
		return nil, fmt.Errorf("devices: host_path: %w", err)
	}
	if info.IsDir() {
		// A whole /dev may be given, whose ptmx is not for containers.
		found = slices.DeleteFunc(found, func(f specs.LinuxDevice) bool { return filepath.Dir(f.Path) == "/dev" && spec.RuntimeMakes(f.Path) })
	}
	if len(found) == 0 {
		return nil, refuse("no device for a container is in this directory")
	}
	for _, f := range found {
		if spec.RuntimeMakes(f.Path) {
			return nil, fault.New(fault.InvalidArgument, "devices: container_path %q: the runtime has something of its own at %s", d.GetContainerPath(), f.Path)
		}
	}
	return found, nil
}

// runtimesOwn: devpts, the pod's shm, mqueue and the terminal.
func runtimesOwn(path string) bool {
	return slices.ContainsFunc([]string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console"}, func(own string) bool {
		return path == own || strings.HasPrefix(path, own+"/")
	})
}

// walkDevices are the device at host, which is no link, or all that are in a directory.
func walkDevices(host, inside string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(host, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != host:
			return nil // gone since the directory was read
		case err != nil:
			return err
		case runtimesOwn(path) && entry.IsDir():
			return filepath.SkipDir
		case entry.Type()&fs.ModeDevice == 0 || runtimesOwn(path):
			return nil
		}
		device, err := deviceAt(path)
		if errors.Is(err, fs.ErrNotExist) && path != host {
			return nil
		}
		if err == nil {
			device.Path = filepath.Join(inside, strings.TrimPrefix(path, host))
			out = append(out, device)
		}
		return err
	})
	return out, err
}

func deviceAt(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, fmt.Errorf("stat %s: %w", path, err)
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := fs.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}

// bindDevices makes the nodes of a container in a user namespace, where the runtime may
// not. They are on a file system of their own, since the one of the bundle is often
// mounted without devices, and belong to the IDs of the container that own them on the
// node, or as CDI says.
func (e *Engine) bindDevices(v pod.Container, in spec.Input, s *specs.Spec) error {
	dir, mounted := e.Layout.DeviceMount(v.ID), false
	err := spec.BindDevices(s, in.Devices, func(d specs.LinuxDevice) (string, error) {
		if !mounted {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return "", err
			}
			options := e.Labels.MountOptions("mode=0700,size=64k", selinux.Labels{Process: in.ProcessLabel, Mount: in.MountLabel})
			if err := unix.Mount("devices", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, options); err != nil {
				return "", fmt.Errorf("mount %s: %w", dir, err)
			}
			mounted = true
		}
		node := filepath.Join(dir, strconv.Itoa(len(s.Mounts)))
		return node, makeNode(node, d, in.Namespaces)
	})
	if err != nil {
		return fmt.Errorf("devices of %s: %w", v.ID, err)
	}
	return nil
}

// makeNode follows OCI config-linux.md, "Devices".
func makeNode(path string, d specs.LinuxDevice, n spec.Namespaces) error {
	kind, ok := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
	if !ok {
		return fault.New(fault.InvalidArgument, "%s is of the type %q, which no device has", d.Path, d.Type)
	}
	mode := fs.FileMode(0o666)
	if d.FileMode != nil {
		mode = d.FileMode.Perm()
	}
	if err := unix.Mknod(path, kind, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))); err != nil {
		return fmt.Errorf("mknod %s: %w", d.Path, err)
	}
	uid, gid := n.OwnerInside(d)
	return errors.Join(os.Chown(path, int(n.UIDs.HostID+uid), int(n.GIDs.HostID+gid)), os.Chmod(path, mode))
}
