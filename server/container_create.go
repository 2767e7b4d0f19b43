package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
)

// CreateContainer makes a container; nothing of it runs yet. The request's
// sandbox_config repeats the one of RunPodSandbox, which is kept, and is not read.
func (s *Server) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	if r.GetConfig() == nil {
		return nil, fault.New(fault.InvalidArgument, "config is missing")
	}
	id, err := s.engine.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}
