package pod

// Change is what a transition is to a client that knows only what is listed: CRI's
// ContainerEventType, which sandboxes share.
type Change uint8

const (
	// Unseen: the client sees no difference in state.
	Unseen Change = iota
	// SeenCreated: the object has come into the list, without anything of it that runs. One
	// that could not be made comes into it to be removed.
	SeenCreated
	// SeenStarted: a container runs, a sandbox is ready.
	SeenStarted
	// SeenStopped: it has ended, or will never run any more.
	SeenStopped
	// SeenDeleted: it has left the list.
	SeenDeleted
)

// view is what a client can tell apart of the phases of an object.
type view uint8

const (
	unlisted view = iota
	waiting       // CONTAINER_CREATED
	up            // CONTAINER_RUNNING, SANDBOX_READY
	down          // CONTAINER_EXITED, SANDBOX_NOTREADY
)

// Listed tells whether a client may see the container.
func (p ContainerPhase) Listed() bool { return p.view() != unlisted }

// Change is what a client sees when the container goes on to the next phase.
func (p ContainerPhase) Change(next ContainerPhase) Change { return change(p.view(), next.view()) }

func (p ContainerPhase) view() view {
	switch p {
	case ContainerCreated:
		return waiting
	case ContainerRunning:
		return up
	case ContainerExited, ContainerRemoving:
		return down
	}
	return unlisted
}

// Listed tells whether a client may see the sandbox.
func (p SandboxPhase) Listed() bool { return p.view() != unlisted }

// Change is the same for sandboxes, which are SeenStarted when they come into the list ready.
func (p SandboxPhase) Change(next SandboxPhase) Change { return change(p.view(), next.view()) }

func (p SandboxPhase) view() view {
	switch p {
	case SandboxReady:
		return up
	case SandboxNotReady, SandboxRemoving:
		return down
	}
	return unlisted
}

func change(was, is view) Change {
	switch {
	case was == is:
		return Unseen
	case is == unlisted:
		return SeenDeleted
	case is == up:
		return SeenStarted
	case was == unlisted:
		return SeenCreated
	}
	return SeenStopped
}
