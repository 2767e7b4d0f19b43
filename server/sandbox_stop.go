package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopPodSandbox is idempotent; an unknown sandbox is a stopped one.
func (s *Server) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	if err := s.engine.StopSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &cri.StopPodSandboxResponse{}, nil
}
