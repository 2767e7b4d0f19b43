package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// connectPatience is how long a start waits for the monitors' first answers. One that
// takes longer is waited for beside the requests.
const connectPatience = 5 * time.Second

// Unwanted are objects that a daemon before this one left half-made or half-removed, by
// the ID of their sandbox.
type Unwanted map[string]*unwantedPod

type unwantedPod struct {
	containers []*container
	// sandbox is nil where it stays. It goes after its containers.
	sandbox *sandbox
}

func (u Unwanted) of(sandboxID string) *unwantedPod {
	if u[sandboxID] == nil {
		u[sandboxID] = &unwantedPod{}
	}
	return u[sandboxID]
}

// Recover loads the records and finds out what became of each object: from its
// monitor, from the exit record that the monitor left, or from the boot that is
// over. Nothing in it is fatal to the daemon but an unreadable directory, and
// nothing that runs is ended. When it returns, readers see the truth, but for
// monitors that do not answer yet; what is unwanted has to be torn down by Sweep.
func (e *Engine) Recover(ctx context.Context) (Unwanted, error) {
	u := Unwanted{}
	if e.usersRefused = e.tryUsers(ctx); e.usersRefused != nil {
		e.Log.Warn("pods with user namespaces will be refused", "reason", e.usersRefused)
	}
	sandboxes, broken, err := e.sandboxRecords.LoadAll(e.isDead)
	if err != nil {
		return u, err
	}
	containers, more, err := e.containerRecords.LoadAll(e.isDead)
	if err != nil {
		return u, err
	}
	e.quarantined = e.judge(append(broken, more...))
	sys.Failpoint("recovery", "records read")
	var watches []*operation
	for _, v := range sandboxes {
		s := newSandbox(v)
		e.index.addSandbox(s, true)
		e.Labels.Reserve(labelsOf(v))
		if v.Phase == pod.SandboxCreating || v.Phase == pod.SandboxRemoving {
			u.of(v.ID).sandbox = s
		}
		watches = append(watches, e.recoverSandbox(s))
	}
	for _, v := range containers {
		c := newContainer(v)
		if err := e.index.addContainer(c, true); err != nil {
			return u, err
		}
		if v.Phase == pod.ContainerCreating || v.Phase == pod.ContainerRemoving {
			p := u.of(v.SandboxID)
			p.containers = append(p.containers, c)
		}
		watches = append(watches, e.recoverContainer(c))
		e.recoverUpdate(c)
	}
	e.retryStops()
	patience, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	for _, op := range watches {
		if op == nil {
			continue
		}
		select {
		case <-op.done:
		case <-patience.Done():
			if ended(op.done) || ctx.Err() != nil {
				continue
			}
			e.Log.Warn("a monitor does not answer; what it watches is left alone, and it is waited for", "id", op.object)
		}
	}
	return u, ctx.Err()
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// retryStops has the stops tried again that a daemon before this one did not end. It needs
// to know of all containers: a stop takes the network from those that it does not see.
func (e *Engine) retryStops() {
	for _, s := range e.index.sandboxes() {
		if s.snapshot().StopRequested {
			s.retry.after(retryFirst, func() { e.retrySandbox(s) })
		}
	}
}

// recoverSandbox keeps a ready sandbox ready if its namespaces and its pause
// process are still those of this boot. It returns what still goes on, if anything.
func (e *Engine) recoverSandbox(s *sandbox) *operation {
	v := s.snapshot()
	if v.Phase != pod.SandboxReady {
		return nil
	}
	if err := e.sandboxAlive(v); err != nil {
		e.lost(s, err)
		return nil
	}
	if v.Pause == nil {
		return nil
	}
	return e.watch(opKey{"reach monitor", v.ID}, func(ctx context.Context, _ *operation) {
		conn, status, err := e.reach(ctx, v.ID, e.pauseEnded(s))
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.conn.Store(conn)
		}
		if err != nil || status.State != monitor.Running {
			e.lost(s, errors.Join(errors.New("the pause process or its monitor has ended"), err))
		}
	})
}

func (e *Engine) lost(s *sandbox, reason error) {
	id := s.snapshot().ID
	e.Log.Warn("sandbox is not ready any more", "sandbox", id, "reason", reason)
	if err := e.commitSandbox(s, pod.SandboxLost{}); err != nil {
		e.Log.Debug("recovery", "sandbox", id, "reason", err)
	}
}

func (e *Engine) sandboxAlive(v pod.Sandbox) error {
	if v.BootID != e.bootID {
		return errors.New("the node was rebooted")
	}
	n := e.podNamespaces(v)
	for _, path := range []string{n.Net, n.UTS, n.IPC, n.User} {
		if path != "" && !netns.Pinned(path) {
			return fmt.Errorf("namespace %s is gone", path)
		}
	}
	return nil
}

func (e *Engine) recoverContainer(c *container) *operation {
	v := c.snapshot()
	started := v.Phase == pod.ContainerRunning || v.Phase == pod.ContainerCreated && v.StartRequested
	switch {
	case v.BootID != e.bootID && (started || v.Phase == pod.ContainerCreated):
		e.commitRecovered(c, pod.Ended{
			Code: pod.ExitUnknown, At: time.Now().UnixNano(), Reason: pod.ReasonNodeRebooted,
			Message: "the node was rebooted while the container existed",
		})
	case v.Phase == pod.ContainerRunning:
		return e.watch(opKey{"reach monitor", v.ID}, func(ctx context.Context, _ *operation) { e.reconnect(ctx, c) })
	case started:
		// As the start itself would: in the queue, and not for ever.
		return e.watch(opKey{"reach monitor", v.ID}, func(ctx context.Context, _ *operation) {
			ctx, cancel := context.WithTimeout(ctx, e.configured(v.Handler).StartTimeout+killBudget)
			defer cancel()
			_ = c.queue.wait(func() error { e.reconnect(ctx, c); return nil })
		})
	}
	return nil
}

// recoverUpdate takes back an update that the daemon before this one did not end:
// nobody was told that it succeeded.
func (e *Engine) recoverUpdate(c *container) {
	if c.snapshot().Update == nil {
		return
	}
	c.queue.do(func() {
		if err := e.undoUpdate(e.ctx, idleOperation(), c); err != nil && e.ctx.Err() == nil {
			e.Log.Warn("recovery: trying again", "err", err)
		}
	})
}

// reachAgain is the pause after an attempt to reach a monitor that failed for a reason
// of ours (no descriptor, no memory) or that it may get over (a full queue).
const reachAgain = time.Second

// reach connects to the monitor of an earlier daemon and waits as long as ctx lets it.
// An error means that there is none any more, that it has left its exit record, or
// that ctx has ended.
func (e *Engine) reach(ctx context.Context, id string, onExit func(monitor.Exit, error)) (*monitor.Conn, monitor.Status, error) {
	dir := e.Layout.ContainerDir(id)
	for {
		conn, status, err := monitor.Connect(ctx, dir, onExit)
		if err == nil || errors.Is(err, monitor.ErrGone) || errors.Is(err, monitor.ErrLost) || ctx.Err() != nil {
			return conn, status, err
		}
		if _, exitErr := monitor.ReadExit(dir); exitErr == nil {
			return nil, status, err
		}
		e.warnOnce(fmt.Sprintf("the monitor of %s cannot be reached, trying again: %v", id, err))
		again := time.NewTimer(reachAgain)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
		}
	}
}

// undoStart takes back a start that got no further than the runtime's create, so that
// it can be asked for again. It runs in the container's queue.
func (e *Engine) undoStart(ctx context.Context, c *container) error {
	v := c.snapshot()
	if v.Phase != pod.ContainerCreated || !v.StartRequested {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), killBudget)
	defer cancel()
	if err := e.killProcesses(undo, v.Handler, v.CgroupParent, v.ID); err != nil {
		return fmt.Errorf("undo the start of %s: %w", v.ID, err)
	}
	return e.commitContainer(c, pod.StartUndone{})
}

// mayHaveRun tells whether the runtime had made the first process, which it says in
// this file.
func (e *Engine) mayHaveRun(id string) bool {
	_, err := os.Stat(e.Layout.ContainerDir(id) + "/pid")
	return err == nil
}

// reconnect learns from the monitor, and where there is none from its exit record,
// what became of a container that was started. It waits for a monitor that does not
// answer: the container runs, and ending it would make true what is only feared.
func (e *Engine) reconnect(ctx context.Context, c *container) {
	v := c.snapshot()
	kill, cancel := context.WithTimeout(ctx, killBudget)
	if err := e.killExecs(kill, v); err != nil {
		e.Log.Warn("commands of the daemon before this one", "container", v.ID, "err", err)
	}
	cancel()
	committed := make(chan struct{})
	defer close(committed)
	conn, status, err := e.reach(ctx, v.ID, func(x monitor.Exit, err error) {
		<-committed
		e.containerEnded(c, x, err)
	})
	if err == nil {
		c.conn.Store(conn)
		if v.Phase == pod.ContainerCreated && (status.Pid != 0 || status.StartedAt != 0) {
			e.commitRecovered(c, pod.Started{Init: pod.Process{Pid: status.Pid, StartTicks: status.StartTicks}, At: status.StartedAt})
		}
		return
	}
	if now := c.snapshot().Phase; e.ctx.Err() != nil || now != v.Phase {
		return // the daemon ends, or the container was removed while we waited
	}
	c.stop.cancel()
	x, exitErr := monitor.ReadExit(e.Layout.ContainerDir(v.ID))
	switch {
	case exitErr == nil:
		e.commitRecovered(c, e.ended(v.Handler, v.CgroupParent, v.ID, x, nil))
	case v.Phase == pod.ContainerCreated && !e.mayHaveRun(v.ID):
		// The daemon ended between its record and the monitor's first sign of life, or
		// the runtime does not end.
		if err := e.undoStart(ctx, c); err != nil {
			e.Log.Error("recovery", "err", err)
		}
		return
	default:
		e.commitRecovered(c, e.ended(v.Handler, v.CgroupParent, v.ID, monitor.Exit{}, errors.Join(err, exitErr)))
	}
	c.queue.do(func() { e.cleanAfterExit(c) })
}

func (e *Engine) commitRecovered(c *container, event pod.ContainerEvent) {
	if err := e.commitContainer(c, event); err != nil {
		e.Log.Error("recovery", "container", c.snapshot().ID, "err", err)
	}
}

// MakeRunDirectories makes the parents of what lives on tmpfs, and the root file
// system of the pause process, which is the binary alone.
func (e *Engine) MakeRunDirectories() error {
	l := e.Layout
	for _, dir := range []string{l.SandboxDirs(), l.ContainerDirs(), l.Nothing() + "/diff"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("run directory: %w", err)
		}
	}
	// The user that a sandbox asks for has to reach the program in it, and who is root in
	// a user namespace. There is nothing else in it.
	for _, dir := range []string{l.PauseRootfs(), l.PauseRootfs() + "/proc", l.PauseRootfs() + "/dev", l.PauseRootfs() + "/sys"} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			return fmt.Errorf("run directory: %w", err)
		}
	}
	// A daemon that was killed while it wrote the file (sys.WriteFile).
	unfinished, err := filepath.Glob(l.PauseRootfs() + "/.pause.*")
	if err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	for _, path := range unfinished {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("run directory: %w", err)
		}
	}
	if err := e.writePause(l.PauseRootfs() + "/pause"); err != nil {
		return err
	}
	// The pauses of all pods share it.
	for _, path := range []string{l.PauseRootfs(), l.PauseRootfs() + "/pause"} {
		if err := e.Labels.LabelFile(path, e.Labels.Shared()); err != nil {
			return fmt.Errorf("run directory: %w", err)
		}
	}
	return nil
}

// writePause copies the pause binary. Without space for another one, that of the daemon
// before this one serves: what runs must not be left without a daemon.
func (e *Engine) writePause(path string) error {
	data, err := os.ReadFile(e.Pause)
	if err != nil {
		return fmt.Errorf("pause binary: %w", err)
	}
	last, missing := os.ReadFile(path)
	if missing == nil && bytes.Equal(last, data) {
		return nil
	}
	err = sys.WriteFile(path, data, 0o755)
	if err != nil && missing == nil {
		e.Log.Warn("the pause binary cannot be replaced; the one that is there is used", "err", err)
		return nil
	}
	return err
}
