package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/stats"
)

// PodSandboxStats reads the counters of the pod and its containers. Of one that is not
// ready there is nothing to read.
func (s *Server) PodSandboxStats(ctx context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	v, err := s.engine.Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	one, err := s.stats.Sandbox(ctx, stats.Pod{Sandbox: v, Containers: s.engine.ContainersOf(v.ID)})
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: one}, nil
}
