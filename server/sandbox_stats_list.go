package server

import (
	"context"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/stats"
)

// ListPodSandboxStats reads the counters of the pods that are ready.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	all, err := s.sandboxStats(ctx, r.GetFilter())
	return &cri.ListPodSandboxStatsResponse{Stats: all}, err
}

// StreamPodSandboxStats is ListPodSandboxStats in messages of a bounded size.
func (s *Server) StreamPodSandboxStats(r *cri.StreamPodSandboxStatsRequest, out cri.RuntimeService_StreamPodSandboxStatsServer) error {
	all, err := s.sandboxStats(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(out.Context(), chunkBytes, slices.Values(all), func(chunk []*cri.PodSandboxStats) error {
		return out.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: chunk})
	})
}

// sandboxStats is the whole list, of one snapshot.
func (s *Server) sandboxStats(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	filter := &cri.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()}
	return s.stats.Sandboxes(ctx, stats.Pods(slices.Collect(s.wantedSandboxes(filter)), s.engine.Containers()))
}
