package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecSync runs a command to its end. Its exit code is part of the answer; an error
// says that it did not run or did not end in time.
func (s *Server) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	timeout, err := seconds(r.GetTimeout())
	if err != nil {
		return nil, err
	}
	out, err := s.engine.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	return &cri.ExecSyncResponse{Stdout: out.Stdout, Stderr: out.Stderr, ExitCode: out.ExitCode}, nil
}
