package engine

import (
	"time"

	"github.com/crio-minimal/crio/internal/event"
	"github.com/crio-minimal/crio/internal/pod"
)

// subscriberQueue is how many events may wait for one subscriber: more than the
// containers of a large node that is drained, and less than anybody would miss who reads.
const subscriberQueue = 1024

// Event is a change that a client sees, of a sandbox or a container, with the pod as it
// was then. Events of one pod never go back: what one of them shows, the next does, too.
type Event struct {
	Change pod.Change
	// ID of the sandbox or container that has changed.
	ID string
	// At is when, in nanoseconds since the epoch. Who reads a snapshot later than that
	// sees the change.
	At int64
	// Sandbox is nil where its record could not be read. One that is deleted is still told,
	// a container that is deleted is not.
	Sandbox    *pod.Sandbox
	Containers []*pod.Container
}

// Subscribe begins with the changes that are committed from now on. The caller closes
// the subscription; one that it does not read ends with event.ErrSlow.
func (e *Engine) Subscribe() *event.Subscription[*Event] { return e.events.Subscribe(subscriberQueue) }

// publish tells of a change that has been committed.
func (e *Engine) publish(change pod.Change, id, sandboxID string) {
	if change == pod.Unseen {
		return
	}
	e.events.Publish(func() *Event {
		told := &Event{Change: change, ID: id, At: time.Now().UnixNano()}
		if s, err := e.index.sandbox(sandboxID); err == nil {
			told.Sandbox = s.value.Load()
		}
		told.Containers = e.ContainersOf(sandboxID)
		return told
	})
}
