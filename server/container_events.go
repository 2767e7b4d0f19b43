package server

import (
	"context"

	"google.golang.org/grpc/metadata"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/engine"
	"github.com/crio-minimal/crio/internal/pod"
)

// GetContainerEvents tells what happens from now on, to containers and to sandboxes, as
// evented PLEG wants it: each event has the whole pod. It ends with the client, with the
// daemon, or, as ResourceExhausted, when the client does not read: nobody waits for it.
// The header is sent when the subscription has begun; who has it and then lists misses
// nothing.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, out cri.RuntimeService_GetContainerEventsServer) error {
	events := s.engine.Subscribe()
	defer events.Close()
	if err := out.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(out.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.ending, func() { cancel(errEnding) })()
	for {
		told, err := events.Next(ctx)
		if err != nil {
			return err
		}
		if err := out.Send(s.containerEvent(told)); err != nil {
			return err
		}
	}
}

func (s *Server) containerEvent(told *engine.Event) *cri.ContainerEventResponse {
	answer := &cri.ContainerEventResponse{ContainerId: told.ID, ContainerEventType: eventType(told.Change), CreatedAt: told.At}
	if told.Sandbox != nil {
		answer.PodSandboxStatus = s.sandboxStatus(told.Sandbox)
	}
	for _, v := range told.Containers {
		answer.ContainersStatuses = append(answer.ContainersStatuses, s.containerStatus(v))
	}
	return answer
}

func eventType(change pod.Change) cri.ContainerEventType {
	switch change {
	case pod.SeenStarted:
		return cri.ContainerEventType_CONTAINER_STARTED_EVENT
	case pod.SeenStopped:
		return cri.ContainerEventType_CONTAINER_STOPPED_EVENT
	case pod.SeenDeleted:
		return cri.ContainerEventType_CONTAINER_DELETED_EVENT
	}
	return cri.ContainerEventType_CONTAINER_CREATED_EVENT
}
