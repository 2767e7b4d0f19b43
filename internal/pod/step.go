package pod

import (
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TransitionError reports an event that the phase does not allow.
type TransitionError struct {
	Object, ID, Phase string
	Event             any
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("%s %s: %T is not possible in phase %s", e.Object, e.ID, e.Event, e.Phase)
}

// SandboxEvent is one thing that happens to a sandbox.
type SandboxEvent interface{ sandboxEvent() }

// The events of a sandbox.
type (
	// SandboxMade ends RunPodSandbox.
	SandboxMade struct {
		Network *Network
		Pause   *Process
	}
	// StopRequest is committed before a stop begins.
	StopRequest struct{}
	// SandboxStopped: its processes are gone and its network is given back.
	SandboxStopped struct{}
	// SandboxLost: its namespaces are gone without a stop; the network is still to be given back.
	SandboxLost struct{}
	// SandboxResources are told by the client after it has changed the pod's cgroup.
	SandboxResources struct{ Overhead, Resources *cri.LinuxContainerResources }
	// SandboxRemoval begins teardown.
	SandboxRemoval struct{}
	// SandboxRemoved ends it.
	SandboxRemoved struct{}
)

func (SandboxMade) sandboxEvent()      {}
func (StopRequest) sandboxEvent()      {}
func (SandboxStopped) sandboxEvent()   {}
func (SandboxLost) sandboxEvent()      {}
func (SandboxResources) sandboxEvent() {}
func (SandboxRemoval) sandboxEvent()   {}
func (SandboxRemoved) sandboxEvent()   {}

// Step returns the sandbox after the event, or a *TransitionError.
func (s Sandbox) Step(event SandboxEvent) (Sandbox, error) {
	switch e := event.(type) {
	case SandboxMade:
		if s.Phase == SandboxCreating {
			s.Phase, s.Network, s.Pause = SandboxReady, e.Network, e.Pause
			return s, nil
		}
	case StopRequest:
		if s.Phase == SandboxReady || s.Phase == SandboxNotReady {
			s.Phase, s.StopRequested = SandboxNotReady, true
			return s, nil
		}
	case SandboxStopped:
		if s.Phase == SandboxNotReady && s.StopRequested {
			// The addresses go too: another pod may hold them already.
			s.StopRequested, s.Network, s.Pause = false, nil, nil
			return s, nil
		}
	case SandboxLost:
		if s.Phase == SandboxReady || s.Phase == SandboxNotReady {
			s.Phase, s.Pause = SandboxNotReady, nil
			return s, nil
		}
	case SandboxResources:
		if s.Phase == SandboxReady || s.Phase == SandboxNotReady {
			s.Overhead, s.Resources = e.Overhead, e.Resources
			return s, nil
		}
	case SandboxRemoval:
		if s.Phase != SandboxGone {
			s.Phase = SandboxRemoving
			return s, nil
		}
	case SandboxRemoved:
		if s.Phase == SandboxRemoving {
			s.Phase = SandboxGone
			return s, nil
		}
	}
	return s, &TransitionError{Object: "sandbox", ID: s.ID, Phase: string(s.Phase), Event: event}
}

// ContainerEvent is one thing that happens to a container.
type ContainerEvent interface{ containerEvent() }

// The events of a container.
type (
	// ContainerMade ends CreateContainer; it brings what was resolved on the way.
	ContainerMade struct{ Made Container }
	// StartRequest is committed before the monitor is spawned.
	StartRequest struct{}
	// StartUndone takes the request back: nothing of it is left and no code of the container ran.
	StartUndone struct{}
	// Started brings the first process.
	Started struct {
		Init Process
		At   int64 // nanoseconds
	}
	// StartFailed ends a start that the runtime refused.
	StartFailed struct {
		At      int64 // nanoseconds
		Message string
	}
	// Ended brings the exit, from the monitor or in its stead.
	Ended struct {
		Code       int32
		Signal     int
		OOMKilled  bool
		StartedAt  int64 // nanoseconds; 0 keeps what is known
		At         int64 // nanoseconds
		LogDropped uint64
		Reason     string // "" is derived from code and OOMKilled
		Message    string
	}
	// UpdateRequest is committed before the first of the resources is changed.
	UpdateRequest struct{ Wanted *cri.LinuxContainerResources }
	// Updated ends an update with the resources that are in force: the wanted ones, or
	// those from before it where it was taken back.
	Updated struct{ Resources *cri.LinuxContainerResources }
	// ContainerRemoval begins teardown.
	ContainerRemoval struct{}
	// ContainerRemoved ends it.
	ContainerRemoved struct{}
)

func (ContainerMade) containerEvent()    {}
func (StartRequest) containerEvent()     {}
func (StartUndone) containerEvent()      {}
func (Started) containerEvent()          {}
func (StartFailed) containerEvent()      {}
func (Ended) containerEvent()            {}
func (UpdateRequest) containerEvent()    {}
func (Updated) containerEvent()          {}
func (ContainerRemoval) containerEvent() {}
func (ContainerRemoved) containerEvent() {}

// Step returns the container after the event, or a *TransitionError.
func (c Container) Step(event ContainerEvent) (Container, error) {
	switch e := event.(type) {
	case ContainerMade:
		if c.Phase == ContainerCreating {
			made := e.Made
			made.Phase = ContainerCreated
			return made, nil
		}
	case StartRequest:
		if c.Phase == ContainerCreated && !c.StartRequested {
			c.StartRequested = true
			return c, nil
		}
	case StartUndone:
		if c.Phase == ContainerCreated && c.StartRequested {
			c.StartRequested = false
			return c, nil
		}
	case Started:
		if c.Phase == ContainerCreated && c.StartRequested {
			c.Phase, c.Init, c.StartedAt = ContainerRunning, e.Init, e.At
			return c, nil
		}
	case StartFailed:
		if c.Phase == ContainerCreated {
			return c.end(Ended{Code: ExitStartFailed, At: e.At, Reason: ReasonStartError, Message: e.Message}), nil
		}
	case Ended:
		if c.Phase == ContainerRunning || c.Phase == ContainerCreated {
			return c.end(e), nil
		}
	case UpdateRequest:
		if c.Phase == ContainerCreated || c.Phase == ContainerRunning {
			c.Update = e.Wanted
			return c, nil
		}
	case Updated:
		if (c.Phase == ContainerCreated || c.Phase == ContainerRunning) && c.Update != nil {
			c.Resources, c.Update = e.Resources, nil
			return c, nil
		}
	case ContainerRemoval:
		if c.Phase != ContainerGone {
			c.Phase = ContainerRemoving
			return c, nil
		}
	case ContainerRemoved:
		if c.Phase == ContainerRemoving {
			c.Phase = ContainerGone
			return c, nil
		}
	}
	return c, &TransitionError{Object: "container", ID: c.ID, Phase: string(c.Phase), Event: event}
}

func (c Container) end(e Ended) Container {
	c.Phase, c.Update = ContainerExited, nil
	c.ExitCode, c.Signal, c.OOMKilled, c.FinishedAt = e.Code, e.Signal, e.OOMKilled, e.At
	c.LogDropped, c.Message, c.Reason = e.LogDropped, e.Message, e.Reason
	if e.StartedAt != 0 {
		c.StartedAt = e.StartedAt
	}
	if c.Reason != "" {
		return c
	}
	switch {
	case e.OOMKilled:
		c.Reason = ReasonOOMKilled
	case e.Code == 0:
		c.Reason = ReasonCompleted
	default:
		c.Reason = ReasonError
	}
	return c
}
