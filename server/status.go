package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Status reports whether pods can be run. Handlers are sorted, the default one
// first under its empty name: a changing order would make the kubelet write its
// node object at every look.
func (s *Server) Status(_ context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	runtime := &cri.RuntimeCondition{Type: cri.RuntimeReady, Status: true}
	network := &cri.RuntimeCondition{Type: cri.NetworkReady, Status: true}
	if err := s.engine.Ready(); err != nil {
		runtime.Status, runtime.Reason, runtime.Message = false, "RuntimeNotReady", err.Error()
	}
	if err := s.networks.Ready(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	answer := &cri.StatusResponse{
		Status:          &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{runtime, network}},
		RuntimeHandlers: s.handlers(),
		Features: &cri.RuntimeFeatures{
			// The feature is the node's, the runtimes are several: the default one speaks for them.
			SupplementalGroupsPolicy: true, MountOptions: s.engine.Handlers[s.DefaultHandler].Features.BindOptions,
			UserNamespacesHostNetwork: s.engine.ServesUsers() == nil,
		},
	}
	if r.GetVerbose() {
		info, err := json.Marshal(s.engine.Report())
		if err != nil {
			return nil, fmt.Errorf("status: %w", err)
		}
		network, err := json.Marshal(s.networks.Report())
		if err != nil {
			return nil, fmt.Errorf("status: %w", err)
		}
		answer.Info = map[string]string{"engine": string(info), "network": string(network)}
	}
	return answer, nil
}

func (s *Server) handlers() []*cri.RuntimeHandler {
	features := func(name string) *cri.RuntimeHandlerFeatures {
		f := s.engine.Handlers[name].Features
		return &cri.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: f.RecursiveReadOnly,
			// "Support for both, user namespaces and idmap mounts" (the proto).
			UserNamespaces: f.UserNamespaces && f.IDMap && s.engine.ServesUsers() == nil,
		}
	}
	all := []*cri.RuntimeHandler{{Name: "", Features: features(s.DefaultHandler)}}
	for _, name := range slices.Sorted(maps.Keys(s.engine.Handlers)) {
		all = append(all, &cri.RuntimeHandler{Name: name, Features: features(name)})
	}
	return all
}
