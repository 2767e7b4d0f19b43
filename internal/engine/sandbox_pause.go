package engine

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// startPause runs the built-in pause process as PID 1 of the pod's PID namespace.
func (e *Engine) startPause(ctx context.Context, s *sandbox) (*pod.Process, error) {
	v := s.snapshot()
	h := e.configured(v.Handler)
	group, err := e.Cgroups.ContainerGroup(v.Config.GetLinux().GetCgroupParent(), v.ID)
	if err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	root, err := e.bindRootfs(v, v.ID, e.Layout.PauseRootfs())
	if err != nil {
		return nil, fmt.Errorf("pause %s: root file system: %w", v.ID, err)
	}
	in := spec.Input{
		Node: e.node(h), Rootfs: root, Namespaces: e.podNamespaces(v), CgroupsPath: group.OCIPath(),
		Config: pauseConfig(v.Config), Annotations: runtimeSandbox(v.Handler, v.ID, ""),
	}
	if v.Handler.Sandbox {
		// The UTS namespace that all of the pod's containers see is its.
		in.Hostname = v.Config.GetHostname()
	}
	if in.User, err = pauseUser(v.Config.GetLinux().GetSecurityContext()); err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	if in.SeccompProfile, err = e.seccompProfile(ctx, in.Config); err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	labels, err := e.containerLabels(v, in.Config.GetLinux().GetSecurityContext())
	if err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	in.ProcessLabel, in.MountLabel = labels.Process, labels.Mount
	oci, err := spec.Pause(in)
	if err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	if err := e.writeBundle(v.ID, oci); err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	conn, status, err := e.spawn(ctx, launch{
		id: v.ID, parent: v.Config.GetLinux().GetCgroupParent(), handler: v.Handler,
	}, e.pauseEnded(s))
	if err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	s.conn.Store(conn)
	p := pod.Process{Pid: status.Pid, StartTicks: status.StartTicks}
	if v.Handler.Sandbox {
		return &p, nil
	}
	sys.Failpoint("pause", "runs")
	if err := netns.PinPID(e.Layout.Namespace(v.ID, "pid"), p.Pid, p.StartTicks); err != nil {
		return nil, fmt.Errorf("pause %s: %w", v.ID, err)
	}
	return &p, nil
}

// pauseConfig is what of the sandbox's security context concerns its one process.
func pauseConfig(config *cri.PodSandboxConfig) *cri.ContainerConfig {
	s := config.GetLinux().GetSecurityContext()
	return &cri.ContainerConfig{Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
		Seccomp: s.GetSeccomp(), Apparmor: s.GetApparmor(),
		//lint:ignore SA1019 older kubelets send it
		SeccompProfilePath: s.GetSeccompProfilePath(),
	}}}
}

// pauseUser is the sandbox's user by number: there is no image that knows names.
func pauseUser(s *cri.LinuxSandboxSecurityContext) (spec.User, error) {
	asked := untrusted.UserSpec{SupplementalGroups: s.GetSupplementalGroups(), Strict: true}
	if v := s.GetRunAsUser(); v != nil {
		asked.UID = &v.Value
	}
	if v := s.GetRunAsGroup(); v != nil {
		asked.GID = &v.Value
	}
	u, err := untrusted.UserByNumber(asked)
	if err != nil {
		return spec.User{}, fault.As(fault.InvalidArgument, err)
	}
	return spec.User{UID: u.UID, GID: u.GID, Groups: u.Groups}, nil
}
