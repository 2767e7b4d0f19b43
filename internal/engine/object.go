package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/record"
)

// blocked says why an object cannot be torn down, since when, and how often it was tried.
type blocked struct {
	err   error
	since time.Time
	tries int
}

// object is what a sandbox and a container share.
type object[V any] struct {
	// value is the snapshot: immutable, replaced by commit alone.
	value atomic.Pointer[V]
	// committing orders the pairs of "save, then swap". It is held over one small
	// write and never by a reader.
	committing sync.Mutex
	queue      queue
	// conn is the connection to the monitor of the object's process; nil without one.
	conn    atomic.Pointer[monitor.Conn]
	blocked atomic.Pointer[blocked]
}

func (o *object[V]) snapshot() V { return *o.value.Load() }

// disconnect leaves the monitor alone; it goes on without us.
func (o *object[V]) disconnect() {
	if conn := o.conn.Swap(nil); conn != nil {
		conn.Close()
	}
}

type sandbox struct {
	object[pod.Sandbox]
	// stopping is set before a stop lists the containers, so that none starts unseen.
	stopping atomic.Bool
	// paused is closed when the pause process has ended; it stays open without one.
	paused chan struct{}
}

type container struct {
	object[pod.Container]
	// exited is closed when nothing of the container runs any more.
	exited chan struct{}
	once   sync.Once
	stop   stopper
}

func newSandbox(v pod.Sandbox) *sandbox {
	s := &sandbox{paused: make(chan struct{})}
	s.value.Store(&v)
	return s
}

func newContainer(v pod.Container) *container {
	c := &container{exited: make(chan struct{})}
	c.value.Store(&v)
	c.announce(v)
	return c
}

// announce wakes whoever waits for the end.
func (c *container) announce(v pod.Container) {
	if v.Phase == pod.ContainerExited || v.Phase == pod.ContainerGone {
		c.once.Do(func() { close(c.exited) })
	}
}

// commitSandbox is the only way to change a sandbox: step, save, swap. The caller
// answers its client after it. On an error nothing has changed.
func (e *Engine) commitSandbox(s *sandbox, event pod.SandboxEvent, durable record.Durable) error {
	s.committing.Lock()
	defer s.committing.Unlock()
	next, err := s.snapshot().Step(event)
	if err != nil {
		return err
	}
	if next.Phase == pod.SandboxGone {
		err = e.sandboxRecords.Delete(next.ID)
	} else {
		err = e.sandboxRecords.Save(next, durable)
	}
	if err != nil {
		return err
	}
	s.value.Store(&next)
	return nil
}

// commitContainer is the same for containers.
func (e *Engine) commitContainer(c *container, event pod.ContainerEvent) error {
	c.committing.Lock()
	defer c.committing.Unlock()
	next, err := c.snapshot().Step(event)
	if err != nil {
		return err
	}
	if next.Phase == pod.ContainerGone {
		err = e.containerRecords.Delete(next.ID)
	} else {
		err = e.containerRecords.Save(next)
	}
	if err != nil {
		if _, ended := event.(pod.Ended); !ended {
			return err
		}
		// An exit is a fact, whether or not the disk takes it. The monitor's own
		// record of it, on tmpfs, serves the next daemon.
		e.Log.Error("the exit of a container could not be recorded", "container", next.ID, "err", err)
	}
	c.value.Store(&next)
	c.announce(next)
	return nil
}
