package engine

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/spec"
)

// UpdateSandbox keeps what the client says of the pod's resources after it has changed
// the pod's cgroup, which is its own; nil leaves what is known. No process is touched.
func (e *Engine) UpdateSandbox(ctx context.Context, id string, overhead, resources *cri.LinuxContainerResources) error {
	s, err := e.index.sandbox(id)
	if err != nil {
		return err
	}
	if err := e.checkPodResources(overhead, resources); err != nil {
		return fault.As(fault.InvalidArgument, err)
	}
	id = s.snapshot().ID
	// Only the same change may be joined.
	key := opKey{fmt.Sprintf("update sandbox to {%s} {%s}", overhead, resources), id}
	_, err = e.run(ctx, key, updateBudget, func(ctx context.Context, op *operation) (string, error) {
		return id, s.queue.wait(func() error {
			op.stage("record")
			v := s.snapshot()
			event := pod.SandboxResources{Overhead: v.Overhead, Resources: v.Resources}
			if overhead != nil {
				event.Overhead = overhead
			}
			if resources != nil {
				event.Resources = resources
			}
			return e.commitSandbox(s, event)
		})
	})
	return err
}

// checkPodResources refuses what the node cannot have, though the client sets it itself:
// what is kept is told to others.
func (e *Engine) checkPodResources(overhead, resources *cri.LinuxContainerResources) error {
	node := e.node(Handler{})
	if err := spec.CheckResources(overhead, node); err != nil {
		return fmt.Errorf("overhead: %w", err)
	}
	if err := spec.CheckResources(resources, node); err != nil {
		return fmt.Errorf("resources: %w", err)
	}
	return nil
}
