package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

const (
	// connectBudget bounds the first answer of one monitor after a restart.
	connectBudget = 5 * time.Second
	// connectParallel is how many monitors are asked at once.
	connectParallel = 32
)

// Recover loads the records and finds out what became of each object: from its
// monitor, from the exit record that the monitor left, or from the boot that is
// over. Nothing in it is fatal to the daemon but an unreadable directory, and
// nothing that runs is ended. When it returns, readers see the truth; what has to
// be torn down is, in the background, by Sweep.
func (e *Engine) Recover(ctx context.Context) error {
	sandboxes, broken, err := e.sandboxRecords.LoadAll()
	if err != nil {
		return err
	}
	containers, more, err := e.containerRecords.LoadAll()
	if err != nil {
		return err
	}
	e.quarantined = append(broken, more...)
	for _, b := range e.quarantined {
		e.Log.Error("a record cannot be read and was set aside; what it stands for is left alone", "path", b.Path, "err", b.Err)
	}
	for _, v := range sandboxes {
		e.index.addSandbox(newSandbox(v))
	}
	for _, v := range containers {
		if err := e.index.addContainer(newContainer(v), true); err != nil {
			return err
		}
	}
	var wait errgroup.Group
	wait.SetLimit(connectParallel)
	for _, s := range e.index.sandboxes() {
		wait.Go(func() error { e.recoverSandbox(ctx, s); return nil })
	}
	for _, c := range e.index.containers() {
		wait.Go(func() error { e.recoverContainer(ctx, c); return nil })
	}
	return wait.Wait()
}

// recoverSandbox keeps a ready sandbox ready if its namespaces and its pause
// process are still those of this boot.
func (e *Engine) recoverSandbox(ctx context.Context, s *sandbox) {
	v := s.snapshot()
	if v.Phase != pod.SandboxReady {
		return
	}
	if err := e.sandboxAlive(ctx, s); err != nil {
		e.Log.Warn("sandbox is not ready any more", "sandbox", v.ID, "reason", err)
		if err := e.commitSandbox(s, pod.SandboxLost{}, false); err != nil {
			e.Log.Error("recovery", "sandbox", v.ID, "err", err)
		}
	}
}

func (e *Engine) sandboxAlive(ctx context.Context, s *sandbox) error {
	v := s.snapshot()
	if v.BootID != e.bootID {
		return errors.New("the node was rebooted")
	}
	n := e.podNamespaces(v)
	for _, path := range []string{n.Net, n.UTS, n.IPC} {
		if path != "" && !netns.Pinned(path) {
			return fmt.Errorf("namespace %s is gone", path)
		}
	}
	if v.Pause == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectBudget)
	defer cancel()
	conn, status, err := monitor.Connect(ctx, e.Layout.ContainerDir(v.ID), e.pauseEnded(s))
	if err != nil {
		return fmt.Errorf("monitor of the pause process: %w", err)
	}
	s.conn.Store(conn)
	if status.State != monitor.Running {
		return errors.New("the pause process has ended")
	}
	return nil
}

func (e *Engine) recoverContainer(ctx context.Context, c *container) {
	v := c.snapshot()
	started := v.Phase == pod.ContainerRunning || v.Phase == pod.ContainerCreated && v.StartRequested
	switch {
	case v.BootID != e.bootID && (started || v.Phase == pod.ContainerCreated):
		e.commitRecovered(c, pod.Ended{
			Code: pod.ExitUnknown, At: time.Now().UnixNano(), Reason: pod.ReasonNodeRebooted,
			Message: "the node was rebooted while the container existed",
		})
	case started:
		e.reconnect(ctx, c)
	}
}

// reconnect learns from the monitor, and where there is none from its exit record,
// what became of a container that was started.
func (e *Engine) reconnect(ctx context.Context, c *container) {
	v := c.snapshot()
	ctx, cancel := context.WithTimeout(ctx, connectBudget)
	defer cancel()
	dir := e.Layout.ContainerDir(v.ID)
	committed := make(chan struct{})
	defer close(committed)
	conn, status, err := monitor.Connect(ctx, dir, func(x monitor.Exit, err error) {
		<-committed
		e.containerEnded(c, x, err)
	})
	if err == nil {
		c.conn.Store(conn)
		if v.Phase == pod.ContainerCreated && status.Pid != 0 {
			e.commitRecovered(c, pod.Started{Init: pod.Process{Pid: status.Pid, StartTicks: status.StartTicks}, At: status.StartedAt})
		}
		if err := e.killExecs(ctx, v); err != nil {
			e.Log.Warn("commands of the daemon before this one", "container", v.ID, "err", err)
		}
		return
	}
	x, exitErr := monitor.ReadExit(dir)
	switch {
	case exitErr == nil:
		e.commitRecovered(c, e.ended(v.Handler, v.CgroupParent, v.ID, x, nil))
	case v.Phase == pod.ContainerCreated && errors.Is(err, monitor.ErrGone):
		// The daemon ended between its record and the monitor's first sign of life.
		// What there is of the start is taken back, and it can be asked for again.
		if err := e.killProcesses(ctx, v.Handler, v.CgroupParent, v.ID); err != nil {
			e.Log.Error("an unfinished start cannot be undone", "container", v.ID, "err", err)
			return
		}
		e.commitRecovered(c, pod.StartUndone{})
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

// Sweep tears down what a daemon before this one left half-made or half-removed,
// and what has a name of ours but no record. It may run while requests are served.
func (e *Engine) Sweep(ctx context.Context) {
	for _, c := range e.index.containers() {
		if v := c.snapshot(); v.Phase == pod.ContainerCreating || v.Phase == pod.ContainerRemoving {
			e.unwanted(c.queue.wait(func() error { return e.removeContainer(ctx, idleOperation(), c) }), v.ID)
		}
	}
	for _, s := range e.index.sandboxes() {
		if v := s.snapshot(); v.Phase == pod.SandboxCreating || v.Phase == pod.SandboxRemoving {
			e.unwanted(s.queue.wait(func() error { return e.removeSandbox(ctx, idleOperation(), s) }), v.ID)
		}
	}
	e.sweepOrphans(ctx)
}

func (e *Engine) unwanted(err error, id string) {
	if err != nil {
		e.Log.Warn("what a daemon before this one left cannot be removed yet", "id", id, "err", err)
	}
}

// idleOperation is for work that nobody waits for or looks at.
func idleOperation() *operation { return &operation{} }

// sweepOrphans removes directories and layers whose ID has no record. One whose
// record is in quarantine is left alone: it may run.
func (e *Engine) sweepOrphans(ctx context.Context) {
	layers, err := e.Layers.List(ctx)
	if err != nil {
		e.Log.Warn("sweep of layers", "err", err)
	}
	ids := append(layers, e.directories(e.Layout.ContainerDirs())...)
	boxes := e.directories(e.Layout.SandboxDirs())
	// After the listing: an object that is made meanwhile is in the index before it
	// has a directory or a layer, and so cannot look like an orphan.
	known := e.knownIDs()
	for _, id := range ids {
		if known[id] {
			continue
		}
		e.Log.Warn("sweep: a container without a record", "id", id)
		h, err := e.handler("")
		if err == nil {
			err = e.tearDownContainer(ctx, idleOperation(), pod.Container{ID: id, Handler: h})
		}
		e.unwanted(err, id)
	}
	for _, id := range boxes {
		if known[id] {
			continue
		}
		e.Log.Warn("sweep: a sandbox without a record", "id", id)
		e.unwanted(errors.Join(netns.Remove(ctx, e.Layout.NamespaceDir(id)), e.tearDownSandbox(pod.Sandbox{ID: id})), id)
	}
}

// knownIDs are those of records, in the index or in the quarantine.
func (e *Engine) knownIDs() map[string]bool {
	known := map[string]bool{}
	for _, s := range e.index.sandboxes() {
		known[s.snapshot().ID] = true
	}
	for _, c := range e.index.containers() {
		known[c.snapshot().ID] = true
	}
	for _, b := range e.quarantined {
		known[b.ID] = true
	}
	return known
}

func (e *Engine) directories(path string) []string {
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.Log.Warn("sweep", "path", path, "err", err)
	}
	var ids []string
	for _, entry := range entries {
		if pod.ValidID(entry.Name()) {
			ids = append(ids, entry.Name())
		}
	}
	return ids
}

// MakeRunDirectories makes the parents of what lives on tmpfs, and the root file
// system of the pause process, which is the binary alone.
func (e *Engine) MakeRunDirectories() error {
	l := e.Layout
	for _, dir := range []string{l.SandboxDirs(), l.ContainerDirs(), l.PauseRootfs(), l.PauseRootfs() + "/proc", l.PauseRootfs() + "/dev", l.PauseRootfs() + "/sys"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("run directory: %w", err)
		}
	}
	data, err := os.ReadFile(e.Pause)
	if err != nil {
		return fmt.Errorf("pause binary: %w", err)
	}
	return sys.WriteFile(l.PauseRootfs()+"/pause", data, 0o755)
}
