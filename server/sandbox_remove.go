package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemovePodSandbox is idempotent; an unknown sandbox is a removed one.
func (s *Server) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	if err := s.engine.RemoveSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &cri.RemovePodSandboxResponse{}, nil
}
