package server

import (
	"context"
	"math"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopContainer is idempotent; an unknown container is a stopped one.
func (s *Server) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	if err := s.engine.StopContainer(ctx, r.GetContainerId(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &cri.StopContainerResponse{}, nil
}

// seconds turns a count from the wire into a duration; more than fits is as good as for ever.
func seconds(n int64) time.Duration {
	const most = int64(math.MaxInt64 / time.Second / 2)
	return time.Duration(min(max(n, 0), most)) * time.Second
}
