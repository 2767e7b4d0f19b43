package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// ContainerStatus reads a snapshot and waits for nothing.
func (s *Server) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	v, err := s.engine.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	answer := &cri.ContainerStatusResponse{Status: s.containerStatus(v)}
	if r.GetVerbose() {
		data, err := json.Marshal(map[string]any{
			"phase": v.Phase, "pid": v.Init.Pid, "sandboxID": v.SandboxID, "runtime": v.Handler, "rootfs": v.Rootfs,
			"bundle": s.engine.Layout.ContainerDir(v.ID), "logDroppedBytes": v.LogDropped,
		})
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", v.ID, err)
		}
		answer.Info = map[string]string{"info": string(data)}
	}
	return answer, nil
}

func (s *Server) containerStatus(v *pod.Container) *cri.ContainerStatus {
	return &cri.ContainerStatus{
		Id: v.ID, Metadata: v.Config.GetMetadata(), State: containerState(v),
		CreatedAt: v.CreatedAt, StartedAt: v.StartedAt, FinishedAt: v.FinishedAt, ExitCode: v.ExitCode,
		Image: imageSpec(v), ImageRef: v.ImageRef, ImageId: v.ImageID, Reason: v.Reason, Message: v.Message,
		Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(), Mounts: mounts(v),
		LogPath:   v.LogPath,
		Resources: &cri.ContainerResources{Linux: v.Resources},
		User:      &cri.ContainerUser{Linux: v.User}, StopSignal: pod.SignalValue(v.StopSignal),
	}
}

// mounts are those of the request; where the source is an image, with its digest
// (ImageSpec.image_ref).
func mounts(v *pod.Container) []*cri.Mount {
	if len(v.ImageMounts) == 0 {
		return v.Config.GetMounts()
	}
	out := slices.Clone(v.Config.GetMounts())
	for _, m := range v.ImageMounts {
		// The record's own must stay as it is: others read it meanwhile.
		told := proto.CloneOf(out[m.Mount])
		told.Image.ImageRef = m.ImageRef
		out[m.Mount] = told
	}
	return out
}

// imageSpec is the one of the request, with a name: the kubelet asks for an ID, and
// shows what it is answered.
func imageSpec(v *pod.Container) *cri.ImageSpec {
	asked := v.Config.GetImage()
	return &cri.ImageSpec{
		Image: v.ImageName, Annotations: asked.GetAnnotations(),
		UserSpecifiedImage: asked.GetUserSpecifiedImage(), RuntimeHandler: asked.GetRuntimeHandler(),
	}
}
