package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crio-minimal/crio/internal/event"
	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/spec"
)

func TestEveryErrorHasItsCodeAndItsWords(t *testing.T) {
	for _, tt := range []struct {
		err   error
		code  codes.Code
		begin string // the kubelet looks for it at the beginning
	}{
		{context.DeadlineExceeded, codes.DeadlineExceeded, ""},
		{context.Canceled, codes.Canceled, ""},
		{fault.As(fault.NotFound, context.DeadlineExceeded), codes.DeadlineExceeded, ""},
		{image.ErrNotFound, codes.NotFound, ""},
		{image.ErrInvalid, codes.InvalidArgument, ""},
		{image.ErrInUse, codes.FailedPrecondition, ""},
		{image.ErrUnauthorized, codes.PermissionDenied, ""},
		{image.ErrUnavailable, codes.Unavailable, "RegistryUnavailable: "},
		{image.ErrPolicy, codes.Internal, "SignatureValidationFailed: "},
		{spec.ErrRecursiveReadOnly, codes.InvalidArgument, "RROUnsupported: "},
		{event.ErrSlow, codes.ResourceExhausted, ""},
		{fault.New(fault.NotFound, "x"), codes.NotFound, ""},
		{fault.New(fault.AlreadyExists, "x"), codes.AlreadyExists, ""},
		{fault.New(fault.InvalidArgument, "x"), codes.InvalidArgument, ""},
		{fault.New(fault.FailedPrecondition, "x"), codes.FailedPrecondition, ""},
		{fault.New(fault.Unavailable, "x"), codes.Unavailable, ""},
		{fault.New(fault.Unimplemented, "x"), codes.Unimplemented, ""},
		{errors.New("whatever"), codes.Internal, ""},
		{status.Error(codes.ResourceExhausted, "as it is"), codes.ResourceExhausted, ""},
	} {
		err := tt.err
		if _, ready := status.FromError(err); !ready {
			err = fmt.Errorf("stage: object: %w", err)
		}
		server := &Server{Options: Options{Log: slog.New(slog.DiscardHandler)}}
		_, got := server.intercept(t.Context(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { return nil, err })
		s, ok := status.FromError(got)
		if !ok || s.Code() != tt.code || !strings.HasPrefix(s.Message(), tt.begin) {
			t.Errorf("%v becomes %v, want %s with %q", err, got, tt.code, tt.begin)
		}
		if !strings.Contains(got.Error(), tt.err.Error()) && tt.code != codes.ResourceExhausted {
			t.Errorf("%v loses its words in %v", err, got)
		}
	}
}
