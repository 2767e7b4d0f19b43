package server

import (
	"context"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// ListPodSandbox reads snapshots and waits for nothing.
func (s *Server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	answer := &cri.ListPodSandboxResponse{}
	for _, v := range s.engine.Sandboxes() {
		if matchSandbox(v, r.GetFilter()) {
			answer.Items = append(answer.Items, &cri.PodSandbox{
				Id: v.ID, Metadata: v.Config.GetMetadata(), State: sandboxState(v), CreatedAt: v.CreatedAt,
				Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(), RuntimeHandler: v.Handler.Name,
			})
		}
	}
	return answer, nil
}

// matchSandbox ANDs the fields of the filter that are set (PodSandboxFilter). The
// id may be the beginning of one.
func matchSandbox(v pod.Sandbox, f *cri.PodSandboxFilter) bool {
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

func sandboxState(v pod.Sandbox) cri.PodSandboxState {
	if v.Phase == pod.SandboxReady {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}
