package server

import (
	"context"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainerStats reads the counters of the containers that run.
func (s *Server) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	all, err := s.containerStats(ctx, r.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: all}, err
}

// StreamContainerStats is ListContainerStats in messages of a bounded size.
func (s *Server) StreamContainerStats(r *cri.StreamContainerStatsRequest, out cri.RuntimeService_StreamContainerStatsServer) error {
	all, err := s.containerStats(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(out.Context(), chunkBytes, slices.Values(all), func(chunk []*cri.ContainerStats) error {
		return out.Send(&cri.StreamContainerStatsResponse{ContainerStats: chunk})
	})
}

// containerStats is the whole list, of one snapshot.
func (s *Server) containerStats(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	filter := &cri.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()}
	return s.stats.Containers(ctx, slices.Collect(s.wantedContainers(filter)))
}
