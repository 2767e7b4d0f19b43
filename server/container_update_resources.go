package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
)

// UpdateContainerResources changes all that the request sets, or nothing.
func (s *Server) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	switch {
	case r.GetWindows() != nil:
		return nil, fault.New(fault.InvalidArgument, "windows: this node runs Linux")
	case len(r.GetAnnotations()) > 0:
		return nil, fault.New(fault.InvalidArgument, "annotations: none is known for an update")
	case r.GetLinux() == nil:
		return nil, fault.New(fault.InvalidArgument, "linux is missing")
	}
	if err := s.engine.UpdateContainer(ctx, r.GetContainerId(), r.GetLinux()); err != nil {
		return nil, err
	}
	return &cri.UpdateContainerResourcesResponse{}, nil
}
