package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats reads the container's counters. Of one that does not run it has what the
// container wrote.
func (s *Server) ContainerStats(_ context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	v, err := s.engine.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	stats, err := s.stats.Container(v)
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: stats}, nil
}
