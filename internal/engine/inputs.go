package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/spec"
)

// maxSeccompProfile bounds a Localhost profile; the largest known ones are 40 KiB.
const maxSeccompProfile = 1 << 20

// inputs looks up everything on the node that the specification depends on.
func (e *Engine) inputs(ctx context.Context, op *operation, box pod.Sandbox, v pod.Container, img image.Image) (spec.Input, error) {
	group, err := e.Cgroups.ContainerGroup(v.CgroupParent, v.ID)
	if err != nil {
		return spec.Input{}, fmt.Errorf("cgroup %s: %w", v.ID, err)
	}
	hostname, err := e.hostname(box)
	if err != nil {
		return spec.Input{}, err
	}
	in := spec.Input{
		Node: e.node(e.configured(v.Handler)), Config: v.Config, Image: img.Config, Rootfs: v.Rootfs,
		CgroupsPath: group.OCIPath(), Hostname: hostname, Shm: e.Layout.Shm(box.ID),
	}
	in.Annotations = allowed(e.configured(v.Handler).AllowedAnnotations, box.Config.GetAnnotations(), v.Config.GetAnnotations())
	if box.HostIPC() {
		in.Shm = "/dev/shm"
		// Systemd mounts it; a node without systemd may have none.
		_, err := os.Stat("/dev/mqueue")
		in.HostMqueue = err == nil
	}
	for name, value := range runtimeSandbox(v.Handler, v.ID, box.ID) {
		if in.Annotations == nil {
			in.Annotations = map[string]string{}
		}
		in.Annotations[name] = value
	}
	if in.Namespaces, err = e.namespaces(box, v); err != nil {
		return in, err
	}
	dir := e.Layout.SandboxDir(box.ID)
	in.Files = map[string]string{
		"/etc/resolv.conf": dir + "/resolv.conf", "/etc/hostname": dir + "/hostname", "/etc/hosts": dir + "/hosts",
	}
	if in.Mounts, err = e.mounts(ctx, op, v); err != nil {
		return in, err
	}
	if err = checkPropagation(ctx, in.Mounts); err != nil {
		return in, err
	}
	if err = checkKernelPlaces(ctx, in.Mounts, e.configured(v.Handler).Features.Runc); err != nil {
		return in, err
	}
	if in.Devices, err = devices(ctx, v.Config, in.Node.WithoutNodeDevices); err != nil {
		return in, err
	}
	if err = e.checkAppArmor(v.Config.GetLinux().GetSecurityContext()); err != nil {
		return in, err
	}
	in.SeccompProfile, err = e.seccompProfile(ctx, v.Config)
	return in, err
}

// allowed are the annotations that a pattern names; later maps override.
func allowed(patterns []string, all ...map[string]string) map[string]string {
	var out map[string]string
	for _, annotations := range all {
		for name, value := range annotations {
			if !slices.ContainsFunc(patterns, func(p string) bool {
				prefix, wild := strings.CutSuffix(p, "*")
				return name == p || wild && strings.HasPrefix(name, prefix)
			}) {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[name] = value
		}
	}
	return out
}

// namespaces are the pod's, and the PID namespace that the container asks for.
func (e *Engine) namespaces(box pod.Sandbox, v pod.Container) (spec.Namespaces, error) {
	n := e.podNamespaces(box)
	if box.Handler.Sandbox {
		// Without one of its own a container is in the sandbox's, beside the pause process.
		n.HostPID = v.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == cri.NamespaceMode_POD
		return n, nil
	}
	switch o := v.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o.GetPid() {
	case cri.NamespaceMode_NODE:
		n.HostPID = true
	case cri.NamespaceMode_POD:
		if box.Pause == nil {
			// The sandbox was made with another mode: the container's own is the closest that is safe.
			return n, fault.New(fault.InvalidArgument, "namespace_options.pid is POD, but sandbox %s was made with %s",
				box.ID, box.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid())
		}
		n.PID = e.Layout.Namespace(box.ID, "pid")
	case cri.NamespaceMode_TARGET:
		t, err := e.target(v)
		if err != nil {
			return n, err
		}
		// Pinned, since between create and start the target may end and its pid become
		// another's, a process of the node's even.
		n.PID = e.Layout.TargetNamespace(v.ID)
		if err := os.MkdirAll(e.Layout.ContainerDir(v.ID), 0o700); err != nil {
			return n, err
		}
		if err := netns.PinPID(n.PID, t.Init.Pid, t.Init.StartTicks); err != nil {
			return n, fault.New(fault.FailedPrecondition, "namespace_options.target_id: %s: %w", t.ID, err)
		}
	}
	return n, nil
}

// target is the running container of the same pod whose PID namespace v joins.
func (e *Engine) target(v pod.Container) (pod.Container, error) {
	target, err := e.index.container(v.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetTargetId())
	if err != nil {
		return pod.Container{}, fmt.Errorf("namespace_options.target_id: %w", err)
	}
	t := target.snapshot()
	if t.SandboxID != v.SandboxID || t.Phase != pod.ContainerRunning {
		return t, fault.New(fault.FailedPrecondition, "namespace_options.target_id: %s is not a running container of this pod", t.ID)
	}
	return t, nil
}

// mounts resolves the host paths; images are mounted already. A stat of a file system that does not answer must
// not hold the operation for ever, so that each runs in a goroutine of its own, and the
// operation names the path meanwhile.
func (e *Engine) mounts(ctx context.Context, op *operation, v pod.Container) ([]spec.Mount, error) {
	var out []spec.Mount
	for i, m := range v.Config.GetMounts() {
		if m.GetImage() != nil {
			out = append(out, spec.Mount{Mount: m, Source: e.Layout.ImageMount(v.ID, i)})
			continue
		}
		if !filepath.IsAbs(m.GetHostPath()) {
			return nil, fault.New(fault.InvalidArgument, "mounts: host_path %q of %s is not absolute", m.GetHostPath(), m.GetContainerPath())
		}
		op.beginsOn("inputs", m.GetHostPath())
		source, err := resolve(ctx, m.GetHostPath())
		if os.IsNotExist(err) {
			return nil, fault.New(fault.InvalidArgument, "mounts: host_path %s does not exist", m.GetHostPath())
		}
		if badPath(err) {
			return nil, fault.New(fault.InvalidArgument, "mounts: host_path %.200q of %s: %w", m.GetHostPath(), m.GetContainerPath(), reason(err))
		}
		if err != nil {
			return nil, fmt.Errorf("mounts: host_path %s: %w", m.GetHostPath(), err)
		}
		out = append(out, spec.Mount{Mount: m, Source: source})
	}
	op.begins("inputs")
	return out, nil
}

func resolve(ctx context.Context, path string) (string, error) {
	return within(ctx, func() (string, error) { return followed(path) })
}

// followed is the path without symbolic links, of which there may be as many as the
// kernel follows: path_resolution(7).
func followed(path string) (string, error) {
	if _, err := os.Stat(path); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// badPath: the name itself is wrong, whoever asks for it.
func badPath(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.EXDEV}, func(e error) bool {
		return errors.Is(err, e)
	})
}

// reason is err without the path, which may be as long as it is wrong.
func reason(err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// seccompProfile reads a Localhost profile.
func (e *Engine) seccompProfile(ctx context.Context, config *cri.ContainerConfig) ([]byte, error) {
	p, err := spec.SeccompProfile(config.GetLinux().GetSecurityContext())
	if err != nil {
		return nil, fault.As(fault.InvalidArgument, err)
	}
	if p.GetProfileType() != cri.SecurityProfile_Localhost {
		return e.Settings.Node.SeccompProfile, nil
	}
	if !filepath.IsAbs(p.GetLocalhostRef()) {
		return nil, fault.New(fault.InvalidArgument, "seccomp: localhost_ref %q is not an absolute path", p.GetLocalhostRef())
	}
	data, err := within(ctx, func() ([]byte, error) { return readProfile(p.GetLocalhostRef()) })
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "seccomp: localhost_ref %.200q: %w", p.GetLocalhostRef(), reason(err))
	}
	return data, nil
}

// readProfile opens regular files only: on anything else the open alone may block or do
// something.
func readProfile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Another one may be there by now.
	if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSeccompProfile+1))
	if err == nil && len(data) > maxSeccompProfile {
		err = fmt.Errorf("more than %d bytes", maxSeccompProfile)
	}
	return data, err
}
