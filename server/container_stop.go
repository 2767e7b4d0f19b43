package server

import (
	"context"
	"math"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
)

// StopContainer is idempotent; an unknown container is a stopped one.
func (s *Server) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	timeout, err := seconds(r.GetTimeout())
	if err != nil {
		return nil, err
	}
	if err := s.engine.StopContainer(ctx, r.GetContainerId(), timeout); err != nil {
		return nil, err
	}
	return &cri.StopContainerResponse{}, nil
}

// seconds reads a timeout; one that is longer than a Duration can be is as good as none.
func seconds(n int64) (time.Duration, error) {
	if n < 0 {
		return 0, fault.New(fault.InvalidArgument, "timeout: %d seconds is negative", n)
	}
	const most = int64(math.MaxInt64 / time.Second / 2)
	return time.Duration(min(n, most)) * time.Second, nil
}
