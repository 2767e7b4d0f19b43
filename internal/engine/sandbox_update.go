package engine

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// UpdateSandbox keeps what the client says of the pod's resources after it has changed
// the pod's cgroup, which is its own; nil leaves what is known. No process is touched.
func (e *Engine) UpdateSandbox(id string, overhead, resources *cri.LinuxContainerResources) error {
	s, err := e.index.sandbox(id)
	if err != nil {
		return err
	}
	return s.queue.wait(func() error {
		v := s.snapshot()
		event := pod.SandboxResources{Overhead: v.Overhead, Resources: v.Resources}
		if overhead != nil {
			event.Overhead = overhead
		}
		if resources != nil {
			event.Resources = resources
		}
		return e.commitSandbox(s, event, false)
	})
}
