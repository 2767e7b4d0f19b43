package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/stream"
)

// Exec returns the URL at which a client finds a command that starts when it comes.
func (s *Server) Exec(_ context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	p := stream.Process{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	if err := checkStreams(p); err != nil {
		return nil, err
	}
	if len(r.GetCmd()) == 0 {
		return nil, fault.New(fault.InvalidArgument, "cmd is empty")
	}
	id, ends, err := s.engine.Runnable(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	p.Container, p.Over, p.Exited = id, ends.Over, ends.Exited
	url, err := s.streams.Exec(p, r.GetCmd())
	if err != nil {
		return nil, err
	}
	return &cri.ExecResponse{Url: url}, nil
}

// checkStreams holds ExecRequest and AttachRequest to what api.proto says of them.
func checkStreams(p stream.Process) error {
	switch {
	case !p.Stdin && !p.Stdout && !p.Stderr:
		return fault.New(fault.InvalidArgument, "stdin, stdout and stderr are all false: set one")
	case p.TTY && p.Stderr:
		return fault.New(fault.InvalidArgument, "stderr: a tty has all of its output on stdout: set one of the two")
	}
	return nil
}
