package server

import (
	"context"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/stats"
)

// ListPodSandboxMetrics reads the counters of the pods that are ready and of their
// containers that run.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	all, err := s.sandboxMetrics(ctx)
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: all}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in messages of a bounded size.
func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, out cri.RuntimeService_StreamPodSandboxMetricsServer) error {
	all, err := s.sandboxMetrics(out.Context())
	if err != nil {
		return err
	}
	return sendChunks(out.Context(), chunkBytes, slices.Values(all), func(chunk []*cri.PodSandboxMetrics) error {
		return out.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: chunk})
	})
}

// sandboxMetrics is the whole list, of one snapshot.
func (s *Server) sandboxMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	return s.stats.Metrics(ctx, stats.Pods(s.engine.Sandboxes(), s.engine.Containers()))
}
