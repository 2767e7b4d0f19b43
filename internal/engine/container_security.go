package engine

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/apparmor"
	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/spec"
)

// checkAppArmor refuses a profile that the kernel does not have: the runtime would say
// only that a file could not be written. A kernel without AppArmor is the specification's
// to refuse.
func (e *Engine) checkAppArmor(security *cri.LinuxContainerSecurityContext) error {
	profile, err := spec.AppArmorProfile(security)
	if err != nil {
		return fault.As(fault.InvalidArgument, err)
	}
	if profile.GetProfileType() != cri.SecurityProfile_Localhost || !e.Settings.Node.AppArmor {
		return nil
	}
	loaded, err := apparmor.Loaded(profile.GetLocalhostRef())
	if err != nil {
		return err
	}
	if !loaded {
		return fault.New(fault.InvalidArgument, "apparmor: profile %q is not loaded on the node: load it with apparmor_parser", profile.GetLocalhostRef())
	}
	return nil
}

// pauseSecurity is what a pod asks for its own process (LinuxSandboxSecurityContext), in
// the words for containers.
func pauseSecurity(config *cri.PodSandboxConfig) *cri.LinuxContainerSecurityContext {
	s := config.GetLinux().GetSecurityContext()
	return &cri.LinuxContainerSecurityContext{Apparmor: s.GetApparmor()}
}
