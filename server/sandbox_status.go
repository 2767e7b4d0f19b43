package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// PodSandboxStatus includes the statuses of the containers, as evented PLEG wants them.
// All that it tells is from after its timestamp: of an event and an answer, the one with
// the later time knows no less.
func (s *Server) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	at := time.Now().UnixNano()
	v, err := s.engine.Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	answer := &cri.PodSandboxStatusResponse{Status: s.sandboxStatus(v), Timestamp: at}
	for _, c := range s.engine.ContainersOf(v.ID) {
		answer.ContainersStatuses = append(answer.ContainersStatuses, s.containerStatus(c))
	}
	if r.GetVerbose() {
		if answer.Info, err = s.sandboxInfo(v); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

func (s *Server) sandboxStatus(v *pod.Sandbox) *cri.PodSandboxStatus {
	status := &cri.PodSandboxStatus{
		Id: v.ID, Metadata: v.Config.GetMetadata(), State: sandboxState(v), CreatedAt: v.CreatedAt,
		Network: &cri.PodSandboxNetworkStatus{},
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{
			Options: v.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
		Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(), RuntimeHandler: v.Handler.Name,
	}
	for i, ip := range v.IPs() {
		if i == 0 {
			status.Network.Ip = ip
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &cri.PodIP{Ip: ip})
	}
	return status
}

// sandboxInfo is for people: where the parts of the pod are.
func (s *Server) sandboxInfo(v *pod.Sandbox) (map[string]string, error) {
	data, err := json.Marshal(map[string]any{
		"phase": v.Phase, "runtime": v.Handler, "network": v.Network, "pause": v.Pause,
		"namespaces": s.engine.Layout.NamespaceDir(v.ID), "overhead": v.Overhead, "resources": v.Resources,
	})
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", v.ID, err)
	}
	return map[string]string{"info": string(data)}, nil
}
