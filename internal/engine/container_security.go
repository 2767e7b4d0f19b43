package engine

import (
	"context"
	"errors"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/apparmor"
	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/selinux"
	"github.com/crio-minimal/crio/internal/spec"
)

// checkAppArmor refuses a profile that the kernel does not have: the runtime would say
// only that a file could not be written.
func (e *Engine) checkAppArmor(security *cri.LinuxContainerSecurityContext) error {
	profile, err := spec.AppArmorProfile(security)
	if err != nil {
		return fault.As(fault.InvalidArgument, err)
	}
	if profile.GetProfileType() != cri.SecurityProfile_Localhost {
		return nil
	}
	name := profile.GetLocalhostRef()
	if !e.Settings.Node.AppArmor {
		return fault.New(fault.InvalidArgument, "apparmor: profile %q: %w", name, spec.ErrNoAppArmor)
	}
	loaded, err := apparmor.Loaded(name)
	if err != nil {
		return err
	}
	if !loaded {
		return fault.New(fault.InvalidArgument, "apparmor: profile %q is not loaded on the node: load it with apparmor_parser", name)
	}
	return nil
}

// podLabels are new labels for a pod. Their level is held until Release.
func (e *Engine) podLabels(config *cri.PodSandboxConfig) (selinux.Labels, error) {
	o := config.GetLinux().GetSecurityContext().GetSelinuxOptions()
	if o != nil && !e.Labels.Enabled() {
		m := config.GetMetadata()
		e.warnOnce(fmt.Sprintf("pod %s/%s has selinux_options, which have no effect: crio.runtime.selinux is false, or the kernel has no SELinux", m.GetNamespace(), m.GetName()))
	}
	labels, err := e.Labels.Pod(o)
	return labels, fault.As(fault.InvalidArgument, err)
}

func labelsOf(v pod.Sandbox) selinux.Labels {
	return selinux.Labels{Process: v.ProcessLabel, Mount: v.MountLabel}
}

// containerLabels are the pod's with what the container asks for. A privileged one has
// none for its processes (LinuxContainerSecurityContext.privileged, effect 8), and one in
// a namespace of the node's, where all that it would meet has other labels, only if
// somebody asked for it.
func (e *Engine) containerLabels(box pod.Sandbox, security *cri.LinuxContainerSecurityContext) (selinux.Labels, error) {
	own := security.GetSelinuxOptions()
	asked := own != nil || box.Config.GetLinux().GetSecurityContext().GetSelinuxOptions() != nil
	n := security.GetNamespaceOptions()
	ofNode := box.HostNetwork() || box.HostIPC() || n.GetPid() == cri.NamespaceMode_NODE
	labels := labelsOf(box)
	switch {
	case security.GetPrivileged():
		if own != nil {
			e.warnOnce(fmt.Sprintf("selinux_options of a privileged container of pod %s/%s have no effect",
				box.Config.GetMetadata().GetNamespace(), box.Config.GetMetadata().GetName()))
		}
		labels.Process = ""
	case ofNode && !asked:
		labels.Process = ""
	default:
		var err error
		if labels, err = e.Labels.Container(labels, own); err != nil {
			return labels, fault.As(fault.InvalidArgument, err)
		}
		if own != nil && labels.Process == "" {
			e.warnOnce(fmt.Sprintf("selinux_options of a container of pod %s/%s have no effect: crio.runtime.selinux is false or was when the pod was made, or the kernel has no SELinux",
				box.Config.GetMetadata().GetNamespace(), box.Config.GetMetadata().GetName()))
		}
	}
	if !e.Labels.Enabled() {
		return selinux.Labels{}, nil
	}
	return labels, nil
}

// relabel gives the files of the mounts that ask for it (Mount.selinux_relabel) the
// container's label. A walk that is given up goes on, and the next one finds what it did.
func (e *Engine) relabel(ctx context.Context, mounts []spec.Mount, labels selinux.Labels) error {
	for _, m := range mounts {
		// An image has the label of the container's own layer.
		if !m.GetSelinuxRelabel() || m.GetImage() != nil {
			continue
		}
		_, err := within(ctx, func() (struct{}, error) { return struct{}{}, e.Labels.Relabel(m.Source, labels) })
		if errors.Is(err, selinux.ErrProtected) {
			return fault.New(fault.InvalidArgument, "mounts: %s: %w", m.GetContainerPath(), err)
		}
		if err != nil {
			return fmt.Errorf("mounts: %s: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}
