package server

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/crio-minimal/crio/internal/engine"
	"github.com/crio-minimal/crio/internal/event"
	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/spec"
)

// code is the only place where an error becomes a gRPC code. A context's end comes
// first: whatever failed because of it, that is what the caller has to know.
func code(err error) codes.Code {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, image.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, image.ErrInvalid), errors.Is(err, spec.ErrRecursiveReadOnly):
		return codes.InvalidArgument
	case errors.Is(err, image.ErrInUse):
		return codes.FailedPrecondition
	case errors.Is(err, image.ErrUnavailable):
		return codes.Unavailable
	case errors.Is(err, image.ErrUnauthorized):
		return codes.PermissionDenied
	case errors.Is(err, event.ErrSlow):
		return codes.ResourceExhausted
	case fault.Exhausted(err) != nil:
		return codes.ResourceExhausted
	}
	switch fault.Of(err) {
	case fault.NotFound:
		return codes.NotFound
	case fault.AlreadyExists:
		return codes.AlreadyExists
	case fault.InvalidArgument:
		return codes.InvalidArgument
	case fault.FailedPrecondition:
		return codes.FailedPrecondition
	case fault.Unavailable:
		return codes.Unavailable
	case fault.ResourceExhausted:
		return codes.ResourceExhausted
	case fault.Unimplemented:
		return codes.Unimplemented
	}
	return codes.Internal
}

// sentinel puts the words in front by which the kubelet recognises a reason
// (k8s.io/cri-api/pkg/errors): it looks for them at the beginning of the message.
func sentinel(err error) string {
	for _, s := range []struct{ ours, theirs error }{
		{image.ErrUnavailable, crierrors.ErrRegistryUnavailable},
		{image.ErrPolicy, crierrors.ErrSignatureValidationFailed},
		{engine.ErrImageMount, crierrors.ErrImageVolumeMountFailed},
		{spec.ErrRecursiveReadOnly, crierrors.ErrRROUnsupported},
	} {
		if errors.Is(err, s.ours) {
			return s.theirs.Error() + ": " + err.Error()
		}
	}
	return err.Error()
}

// intercept gives every unary call its log line and its code.
func (s *Server) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	s.calls.begin()
	defer s.calls.end()
	begun := time.Now()
	answer, err := handler(ctx, req)
	if err = logged(s.Log, info.FullMethod, begun, err); err != nil {
		return nil, err
	}
	return answer, nil
}

// interceptStream is the same for calls that answer with a stream.
func (s *Server) interceptStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	begun := time.Now()
	return logged(s.Log, info.FullMethod, begun, handler(server, stream))
}

// logged logs how a call ended, and returns its error with the code. A message is never
// formatted: only the method, the duration and the error are.
func logged(log *slog.Logger, method string, begun time.Time, err error) error {
	if err == nil {
		log.Debug("rpc", "method", method, "took", time.Since(begun))
		return nil
	}
	if _, ok := status.FromError(err); !ok {
		err = status.Error(code(err), sentinel(err))
	}
	log.Warn("rpc", "method", method, "took", time.Since(begun), "code", status.Code(err), "err", err)
	return err
}
