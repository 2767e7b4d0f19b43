package server

import (
	"context"
	"iter"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// ListContainers reads snapshots and waits for nothing.
func (s *Server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: slices.Collect(s.containers(r.GetFilter()))}, nil
}

// StreamContainers is ListContainers in messages of a bounded size.
func (s *Server) StreamContainers(r *cri.StreamContainersRequest, out cri.RuntimeService_StreamContainersServer) error {
	return sendChunks(out.Context(), chunkBytes, s.containers(r.GetFilter()), func(chunk []*cri.Container) error {
		return out.Send(&cri.StreamContainersResponse{Containers: chunk})
	})
}

// wantedContainers are those that the filter wants out of one snapshot.
func (s *Server) wantedContainers(filter *cri.ContainerFilter) iter.Seq[*pod.Container] {
	return func(yield func(*pod.Container) bool) {
		for _, v := range s.engine.Containers() {
			if matchContainer(v, filter) && !yield(v) {
				return
			}
		}
	}
}

// containers encodes them.
func (s *Server) containers(filter *cri.ContainerFilter) iter.Seq[*cri.Container] {
	return func(yield func(*cri.Container) bool) {
		for v := range s.wantedContainers(filter) {
			if !yield(&cri.Container{
				Id: v.ID, PodSandboxId: v.SandboxID, Metadata: v.Config.GetMetadata(), Image: imageSpec(v),
				ImageRef: v.ImageRef, ImageId: v.ImageID, State: containerState(v), CreatedAt: v.CreatedAt,
				Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(),
			}) {
				return
			}
		}
	}
}

// matchContainer ANDs the fields of the filter that are set (ContainerFilter). The
// ids may be the beginning of one.
func matchContainer(v *pod.Container, f *cri.ContainerFilter) bool {
	return strings.HasPrefix(v.ID, f.GetId()) && strings.HasPrefix(v.SandboxID, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == containerState(v)) &&
		matchLabels(v.Config.GetLabels(), f.GetLabelSelector())
}

// containerState of one that is being removed is exited: nothing of it runs or will
// run any more.
func containerState(v *pod.Container) cri.ContainerState {
	switch v.Phase {
	case pod.ContainerCreated:
		return cri.ContainerState_CONTAINER_CREATED
	case pod.ContainerRunning:
		return cri.ContainerState_CONTAINER_RUNNING
	}
	return cri.ContainerState_CONTAINER_EXITED
}
