package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/stream"
)

// Attach returns the URL at which a client finds the stdio of a running container.
func (s *Server) Attach(_ context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	p := stream.Process{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	if err := checkStreams(p); err != nil {
		return nil, err
	}
	id, ends, err := s.engine.Attachable(r.GetContainerId(), p.TTY, p.Stdin)
	if err != nil {
		return nil, err
	}
	p.Container, p.Over, p.Exited = id, ends.Over, ends.Exited
	url, err := s.streams.Attach(p)
	if err != nil {
		return nil, err
	}
	return &cri.AttachResponse{Url: url}, nil
}
