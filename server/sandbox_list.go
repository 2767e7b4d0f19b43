package server

import (
	"context"
	"iter"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// ListPodSandbox reads snapshots and waits for nothing.
func (s *Server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: slices.Collect(s.sandboxes(r.GetFilter()))}, nil
}

// StreamPodSandboxes is ListPodSandbox in messages of a bounded size.
func (s *Server) StreamPodSandboxes(r *cri.StreamPodSandboxesRequest, out cri.RuntimeService_StreamPodSandboxesServer) error {
	return sendChunks(out.Context(), chunkBytes, s.sandboxes(r.GetFilter()), func(chunk []*cri.PodSandbox) error {
		return out.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: chunk})
	})
}

// wantedSandboxes are those that the filter wants out of one snapshot.
func (s *Server) wantedSandboxes(filter *cri.PodSandboxFilter) iter.Seq[*pod.Sandbox] {
	return func(yield func(*pod.Sandbox) bool) {
		for _, v := range s.engine.Sandboxes() {
			if matchSandbox(v, filter) && !yield(v) {
				return
			}
		}
	}
}

// sandboxes encodes them.
func (s *Server) sandboxes(filter *cri.PodSandboxFilter) iter.Seq[*cri.PodSandbox] {
	return func(yield func(*cri.PodSandbox) bool) {
		for v := range s.wantedSandboxes(filter) {
			if !yield(&cri.PodSandbox{
				Id: v.ID, Metadata: v.Config.GetMetadata(), State: sandboxState(v), CreatedAt: v.CreatedAt,
				Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(), RuntimeHandler: v.Handler.Name,
			}) {
				return
			}
		}
	}
}

// matchSandbox ANDs the fields of the filter that are set (PodSandboxFilter). The
// id may be the beginning of one.
func matchSandbox(v *pod.Sandbox, f *cri.PodSandboxFilter) bool {
	return strings.HasPrefix(v.ID, f.GetId()) &&
		(f.GetState() == nil || f.GetState().GetState() == sandboxState(v)) &&
		matchLabels(v.Config.GetLabels(), f.GetLabelSelector())
}

func matchLabels(labels, selector map[string]string) bool {
	for key, want := range selector {
		if have, ok := labels[key]; !ok || have != want {
			return false
		}
	}
	return true
}

func sandboxState(v *pod.Sandbox) cri.PodSandboxState {
	if v.Phase == pod.SandboxReady {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}
