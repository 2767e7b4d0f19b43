package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveImage removes the image with all of its names; one that is not there is removed.
func (s *Server) RemoveImage(ctx context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	if err := s.engine.RemoveImage(ctx, r.GetImage()); err != nil {
		return nil, err
	}
	return &cri.RemoveImageResponse{}, nil
}
