package server

import (
	"context"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// ListContainers reads snapshots and waits for nothing.
func (s *Server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	answer := &cri.ListContainersResponse{}
	for _, v := range s.engine.Containers() {
		if matchContainer(v, r.GetFilter()) {
			answer.Containers = append(answer.Containers, &cri.Container{
				Id: v.ID, PodSandboxId: v.SandboxID, Metadata: v.Config.GetMetadata(), Image: imageSpec(v),
				ImageRef: v.ImageRef, ImageId: v.ImageID, State: containerState(v), CreatedAt: v.CreatedAt,
				Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(),
			})
		}
	}
	return answer, nil
}

// matchContainer ANDs the fields of the filter that are set (ContainerFilter). The
// ids may be the beginning of one.
func matchContainer(v pod.Container, f *cri.ContainerFilter) bool {
	return strings.HasPrefix(v.ID, f.GetId()) && strings.HasPrefix(v.SandboxID, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == containerState(v)) &&
		matchLabels(v.Config.GetLabels(), f.GetLabelSelector())
}

// containerState of one that is being removed is exited: nothing of it runs or will
// run any more.
func containerState(v pod.Container) cri.ContainerState {
	switch v.Phase {
	case pod.ContainerCreated:
		return cri.ContainerState_CONTAINER_CREATED
	case pod.ContainerRunning:
		return cri.ContainerState_CONTAINER_RUNNING
	}
	return cri.ContainerState_CONTAINER_EXITED
}
