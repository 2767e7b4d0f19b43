package server

import (
	"context"
	"math"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
)

// PortForward returns the URL at which a client finds ports of a pod. WebSocket clients
// get those of the request, SPDY clients those that they name then.
func (s *Server) PortForward(_ context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	for _, port := range r.GetPort() {
		if port < 1 || port > math.MaxUint16 {
			return nil, fault.New(fault.InvalidArgument, "port: %d is not between 1 and 65535", port)
		}
	}
	pod, over, err := s.engine.Forwardable(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	url, err := s.streams.PortForward(pod, r.GetPort(), over)
	if err != nil {
		return nil, err
	}
	return &cri.PortForwardResponse{Url: url}, nil
}
