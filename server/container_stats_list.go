package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// ListContainerStats reads the counters of the containers that run.
func (s *Server) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	all, err := s.containerStats(ctx, r.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: all}, err
}

// containerStats is the whole list, of one snapshot.
func (s *Server) containerStats(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	filter := &cri.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()}
	var wanted []pod.Container
	for _, v := range s.engine.Containers() {
		if matchContainer(v, filter) {
			wanted = append(wanted, v)
		}
	}
	return s.stats.Containers(ctx, wanted)
}
