package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ReopenContainerLog answers when the monitor writes to the new file. On an error
// there is no new file.
func (s *Server) ReopenContainerLog(ctx context.Context, r *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	if err := s.engine.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.ReopenContainerLogResponse{}, nil
}
