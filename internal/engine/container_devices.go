package engine

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
)

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
