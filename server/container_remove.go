package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveContainer is idempotent; an unknown container is a removed one.
func (s *Server) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	if err := s.engine.RemoveContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.RemoveContainerResponse{}, nil
}
