package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// stopper is the deadline of a stop. It only moves earlier, and is no lock: any
// number of callers may shorten it while others wait.
type stopper struct {
	mu       sync.Mutex // held for the fields alone
	begun    time.Time
	deadline time.Time // zero: no stop was asked for
	timer    *time.Timer
	failed   error // of the last kill
}

// shorten moves the deadline to at if that is earlier. It tells whether this is the
// first stop, and so has to signal. kill runs once the deadline has come.
func (s *stopper) shorten(at time.Time, kill func()) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first = s.deadline.IsZero(); first {
		s.begun = time.Now()
	}
	switch {
	case first, at.Before(s.deadline):
	case s.deadline.After(time.Now()):
		return false
	default:
		// It was killed before, to no avail.
		at = time.Now()
	}
	s.deadline = at
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timer = time.AfterFunc(time.Until(at), kill)
	return first
}

// report tells of a stop that was asked for, as of an operation.
func (s *stopper) report(id string) (r OperationReport, asked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r = OperationReport{Kind: "stop container", Object: id, Stage: "grace period", Age: time.Since(s.begun)}
	r.InStage = r.Age
	if killed := time.Since(s.deadline); killed > 0 {
		r.Stage, r.InStage = "killed", killed
	}
	return r, !s.deadline.IsZero()
}

// killed notes what came of a kill.
func (s *stopper) killed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

// reason is err and, where a kill failed, why.
func (s *stopper) reason(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return fmt.Errorf("%w; %w", err, s.failed)
	}
	return err
}

// cancel: there is nothing left to kill.
func (s *stopper) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
}

// StopContainer asks the container to end and kills it after the grace period. It
// succeeds for one that has ended or does not exist. ctx bounds the wait: the stop
// itself goes on, and a later call may shorten it.
func (e *Engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := e.index.container(id)
	if fault.Of(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return e.stopContainer(ctx, c, max(grace, 0))
}

func (e *Engine) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	v := c.snapshot()
	if v.Phase == pod.ContainerCreated && v.StartRequested {
		// A start is on its way; its end decides whether there is something to stop.
		if err := awaitQueue(ctx, &c.queue); err != nil {
			return fmt.Errorf("stop %s: its start has not ended: %w", v.ID, err)
		}
		if v = c.snapshot(); v.Phase == pod.ContainerCreated && v.StartRequested {
			// Nobody could undo it so far.
			if err := c.queue.wait(func() error { return e.undoStart(ctx, c) }); err != nil {
				return fmt.Errorf("stop %s: %w", v.ID, err)
			}
			v = c.snapshot()
		}
	}
	if v.Phase != pod.ContainerRunning {
		return nil
	}
	kill := func() { e.kill(c) }
	if c.stop.shorten(time.Now().Add(grace), kill) && grace > 0 {
		if err := e.signal(ctx, c, unix.Signal(v.StopSignal)); err != nil {
			e.Log.Warn("stop signal could not be sent; the container is killed after its grace period", "container", v.ID, "err", err)
		}
	}
	sys.Failpoint("stop container", "asked to end")
	late := time.NewTimer(grace + e.KillWait)
	defer late.Stop()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %s: %w", v.ID, describe(v.Init), ctx.Err())
	case <-late.C:
	}
	if e.dismissMonitor(ctx, c) {
		gone := time.NewTimer(killBudget)
		defer gone.Stop()
		select {
		case <-c.exited:
			return nil
		case <-gone.C:
		case <-ctx.Done():
		}
	}
	err := fmt.Errorf("stop %s: killed %s ago, but %s: %w", v.ID, e.KillWait, describe(v.Init), context.DeadlineExceeded)
	return c.stop.reason(err)
}

// tellTime is what a monitor may take from the end of its container's last process to
// its word: PROTOCOL.md's bounds for killing and draining, and some more.
const tellTime = 5 * time.Second

// dismissMonitor ends a monitor that does not tell the exit although nothing of its
// container is left. It tells whether the exit is known now, or will be as one that
// nobody witnessed.
func (e *Engine) dismissMonitor(ctx context.Context, c *container) bool {
	v := c.snapshot()
	own, group, err := e.groups(v.Handler, v.CgroupParent, v.ID)
	if err != nil {
		return false
	}
	if empty, err := group.Empty(); err != nil || !empty {
		return false
	}
	patience := time.NewTimer(tellTime)
	defer patience.Stop()
	select {
	case <-c.exited:
		return true
	case <-ctx.Done():
		return false
	case <-patience.C:
	}
	ctx, cancel := context.WithTimeout(ctx, killBudget)
	defer cancel()
	if err := own.Kill(ctx); err != nil {
		e.Log.Warn("a monitor that does not answer cannot be ended", "container", v.ID, "err", err)
		return false
	}
	return true
}

func awaitQueue(ctx context.Context, q *queue) error {
	reached := make(chan struct{})
	q.do(func() { close(reached) })
	select {
	case <-reached:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signal sends to the first process, through the monitor, which is its parent and so
// cannot hit another with a reused pid; by pidfd when the monitor does not answer.
func (e *Engine) signal(ctx context.Context, c *container, sig unix.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, reopenBudget)
	defer cancel()
	if v := c.snapshot(); v.Handler.Sandbox {
		return runtimeOf(v.Handler).Kill(ctx, v.ID, sig)
	}
	if conn := c.conn.Load(); conn != nil {
		err := conn.Kill(ctx, sig)
		if err == nil || errors.Is(err, unix.ESRCH) {
			return nil
		}
	}
	v := c.snapshot()
	return sys.Signal(v.Init.Pid, v.Init.StartTicks, sig)
}

// kill ends every process of the container; the monitor then tells the exit.
func (e *Engine) kill(c *container) {
	v := c.snapshot()
	ctx, cancel := context.WithTimeout(e.ctx, killBudget)
	defer cancel()
	// The first process by name, so that its exit says SIGKILL; then all that is left.
	// The monitor is not asked: one that hangs must not keep its container alive.
	var err error
	if v.Handler.Sandbox {
		err = e.signal(ctx, c, unix.SIGKILL) // in a part of the time, for the runtime may hang
	} else {
		err = sys.Signal(v.Init.Pid, v.Init.StartTicks, unix.SIGKILL)
	}
	if err != nil {
		e.Log.Warn("kill", "container", v.ID, "err", err)
	}
	c.stop.killed(err)
	sys.Failpoint("stop container", "first process killed")
	_, group, err := e.groups(v.Handler, v.CgroupParent, v.ID)
	if err == nil {
		err = group.Kill(ctx)
	}
	if err != nil && e.ctx.Err() == nil {
		e.Log.Warn("kill of the cgroup", "container", v.ID, "err", err)
	}
}

// describe says what a process that does not end is doing, from proc(5).
func describe(p pod.Process) string {
	dir := fmt.Sprintf("/proc/%d/", p.Pid)
	state := "?"
	if data, err := os.ReadFile(dir + "stat"); err == nil {
		if _, rest, ok := strings.Cut(string(data), ") "); ok && rest != "" {
			state = rest[:1]
		}
	}
	wchan, _ := os.ReadFile(dir + "wchan")
	return fmt.Sprintf("pid %d is in state %s at %q", p.Pid, state, wchan)
}
