package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StartContainer answers when the container's first process runs.
func (s *Server) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	if err := s.engine.StartContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.StartContainerResponse{}, nil
}
