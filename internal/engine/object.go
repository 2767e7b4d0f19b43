package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/pod"
)

// retry is the one timer that tries a failed stop or teardown again.
type retry struct {
	mu    sync.Mutex // held for the field alone
	timer *time.Timer
}

// after replaces what was to come.
func (r *retry) after(delay time.Duration, again func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
	r.timer = time.AfterFunc(delay, again)
}

func (r *retry) cancel() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
}

// blocked says why an object cannot be stopped or torn down, since when, and how often it
// was tried.
type blocked struct {
	err   error
	since time.Time
	tries int
}

// attempts are those to tear something down.
type attempts struct {
	blocked atomic.Pointer[blocked]
	retry   retry
}

// note keeps the reason of a failed stop or teardown visible and has it tried again; a
// success clears it.
func (a *attempts) note(err error, again func()) {
	if err == nil {
		a.blocked.Store(nil)
		a.retry.cancel()
		return
	}
	next := &blocked{err: err, since: time.Now(), tries: 1}
	if last := a.blocked.Load(); last != nil {
		next.since, next.tries = last.since, last.tries+1
	}
	a.blocked.Store(next)
	a.retry.after(min(retryFirst<<min(next.tries-1, 10), retryMost), again)
}

// object is what a sandbox and a container share.
type object[V any] struct {
	// value is the snapshot: immutable, replaced by commit alone.
	value atomic.Pointer[V]
	// committing orders the triples of "save, then swap, then publish". It is held over
	// one small write and never by a reader.
	committing sync.Mutex
	queue      queue
	// conn is the connection to the monitor of the object's process; nil without one.
	conn atomic.Pointer[monitor.Conn]
	attempts
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
	// paused is closed when the pause process has ended; it stays open without one.
	paused chan struct{}
	// over is closed when the sandbox is about to lose its network, by leave.
	over chan struct{}
	once sync.Once
}

func (s *sandbox) leave() { s.once.Do(func() { close(s.over) }) }

type container struct {
	object[pod.Container]
	// exited is closed when nothing of the container runs any more.
	exited chan struct{}
	once   sync.Once
	stop   stopper
}

func newSandbox(v pod.Sandbox) *sandbox {
	s := &sandbox{paused: make(chan struct{}), over: make(chan struct{})}
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

// commitSandbox is the only way to change a sandbox: step, save, swap, publish. The
// caller answers its client after it. On an error nothing has changed. A fact counts
// whether or not the disk takes it.
func (e *Engine) commitSandbox(s *sandbox, event pod.SandboxEvent) error {
	s.committing.Lock()
	defer s.committing.Unlock()
	last := s.snapshot()
	next, err := last.Step(event)
	if err != nil {
		return fault.As(fault.FailedPrecondition, err)
	}
	if next.Phase == pod.SandboxGone {
		err = e.sandboxRecords.Delete(next.ID)
	} else {
		err = e.sandboxRecords.Save(next)
	}
	if err != nil {
		if !sandboxFact(event) {
			return err
		}
		e.Log.Error("what became of a sandbox could not be recorded", "sandbox", next.ID, "phase", next.Phase, "err", err)
	}
	s.value.Store(&next)
	e.publish(last.Phase.Change(next.Phase), next.ID, next.ID)
	return nil
}

// sandboxFact tells of events that a daemon with the record before them finds out
// again: by looking, or by repeating an idempotent teardown. A full disk must not
// keep anybody from removing what fills it.
func sandboxFact(event pod.SandboxEvent) bool {
	switch event.(type) {
	case pod.StopRequest, pod.SandboxStopped, pod.SandboxLost, pod.SandboxRemoval:
		return true
	}
	return false
}

// containerFact is the same for containers. The monitor's own record of an exit, on
// tmpfs, serves the next daemon, as does the monitor itself for a start.
func containerFact(event pod.ContainerEvent) bool {
	switch event.(type) {
	case pod.Started, pod.StartUndone, pod.StartFailed, pod.Ended, pod.ContainerRemoval:
		return true
	}
	return false
}

// commitContainer is the same for containers.
func (e *Engine) commitContainer(c *container, event pod.ContainerEvent) error {
	c.committing.Lock()
	defer c.committing.Unlock()
	last := c.snapshot()
	next, err := last.Step(event)
	if err != nil {
		return fault.As(fault.FailedPrecondition, err)
	}
	if next.Phase == pod.ContainerGone {
		err = e.containerRecords.Delete(next.ID)
	} else {
		err = e.containerRecords.Save(next)
	}
	if err != nil {
		if !containerFact(event) {
			return err
		}
		e.Log.Error("what became of a container could not be recorded", "container", next.ID, "phase", next.Phase, "err", err)
	}
	c.value.Store(&next)
	e.publish(last.Phase.Change(next.Phase), next.ID, next.SandboxID)
	c.announce(next)
	return nil
}
