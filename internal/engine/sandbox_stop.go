package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// The operations that retries join, and the sweep.
const (
	stopSandboxKind   = "stop sandbox"
	removeSandboxKind = "remove sandbox"
)

// StopSandbox ends every process of the sandbox and gives its network back. It
// succeeds for one that is stopped or that does not exist. What fails is tried again,
// by the next daemon, too, until the sandbox is stopped or removed.
func (e *Engine) StopSandbox(ctx context.Context, id string) error {
	return e.unmake(ctx, stopSandboxKind, id, e.stopSandbox)
}

// RemoveSandbox removes the sandbox with its containers. It succeeds for one that
// does not exist.
func (e *Engine) RemoveSandbox(ctx context.Context, id string) error {
	return e.unmake(ctx, removeSandboxKind, id, e.removeSandbox)
}

// unmake runs do, in the sandbox's turn, as an operation that outlives ctx.
func (e *Engine) unmake(ctx context.Context, kind, id string, do func(context.Context, *operation, *sandbox) error) error {
	s, err := e.index.sandbox(id)
	if fault.Of(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return e.inTurn(ctx, kind, s, do)
}

// inTurn is unmake for a sandbox that is known.
func (e *Engine) inTurn(ctx context.Context, kind string, s *sandbox, do func(context.Context, *operation, *sandbox) error) error {
	id := s.snapshot().ID
	_, err := e.run(ctx, opKey{kind, id}, removeBudget, func(ctx context.Context, op *operation) (string, error) {
		return id, s.queue.wait(func() error { return do(ctx, op, s) })
	})
	return err
}

func (e *Engine) stopSandbox(ctx context.Context, op *operation, s *sandbox) (err error) {
	v := s.snapshot()
	if v.Phase == pod.SandboxRemoving || v.Phase == pod.SandboxGone {
		return nil
	}
	defer func() { s.note(err, func() { e.retrySandbox(s) }) }()
	op.stage("record")
	// From here on it is not ready, whatever goes wrong: no container is made or started in
	// it, and the client sees that it cannot be used.
	if err := e.commitSandbox(s, pod.StopRequest{}); err != nil {
		return err
	}
	if err := e.quietSandbox(ctx, op, s); err != nil {
		return err
	}
	return e.commitSandbox(s, pod.SandboxStopped{})
}

// quietSandbox ends the processes, containers first so that their network works to
// the last, and gives the network back. It is idempotent.
func (e *Engine) quietSandbox(ctx context.Context, op *operation, s *sandbox) error {
	v := s.snapshot()
	op.stage("stop containers")
	var stops errgroup.Group
	for _, c := range e.index.containersOf(v.ID) {
		stops.Go(func() error {
			err := e.stopContainer(ctx, c, 0)
			if err == nil && v.Handler.Sandbox {
				// The runtime takes its containers back while their sandbox still answers.
				err = awaitQueue(ctx, &c.queue)
			}
			return err
		})
	}
	if err := stops.Wait(); err != nil {
		return err
	}
	op.stage("stop pause")
	if err := e.stopPause(ctx, s); err != nil {
		return err
	}
	s.leave()
	var beside errgroup.Group
	beside.Go(func() error { return e.removeCountersGroup(ctx, v) })
	return errors.Join(e.disconnectSandbox(ctx, op, v), beside.Wait())
}

// disconnectSandbox gives the network back, and then the namespaces.
func (e *Engine) disconnectSandbox(ctx context.Context, op *operation, v pod.Sandbox) error {
	op.stage("cni del")
	if err := e.deleteNetwork(ctx, v); err != nil {
		return err
	}
	op.stage("namespaces")
	if err := netns.Remove(ctx, e.Layout.NamespaceDir(v.ID)); err != nil {
		return fmt.Errorf("namespaces %s: %w", v.ID, err)
	}
	return nil
}

// stopPause ends the pause process, if the pod has one, and its monitor.
func (e *Engine) stopPause(ctx context.Context, s *sandbox) error {
	v := s.snapshot()
	if !v.NeedsPause() {
		return nil
	}
	// Not wanted any more: the monitor's news of the end would only be confusing.
	s.disconnect()
	ctx, cancel := context.WithTimeout(ctx, killBudget)
	defer cancel()
	if err := e.killProcesses(ctx, v.Handler, v.Config.GetLinux().GetCgroupParent(), v.ID); err != nil {
		return fmt.Errorf("stop pause %s: %w", v.ID, err)
	}
	if err := unmount(e.Layout.Rootfs(v.ID)); err != nil {
		return fmt.Errorf("stop pause %s: %w", v.ID, err)
	}
	return removeAll(e.Layout.ContainerDir(v.ID))
}

// deleteNetwork calls CNI DEL with what ADD was called with, whatever the
// configuration says today.
func (e *Engine) deleteNetwork(ctx context.Context, v pod.Sandbox) error {
	if v.Network == nil {
		return nil
	}
	// A full disk has not taken the record of the stop. To let go of a namespace takes no
	// space, and the next daemon finds the pod without it (sandboxAlive), and so not ready
	// however little of the network is left. Pods without it have a pause, which is gone.
	if err := netns.Unpin(e.Layout.Namespace(v.ID, "uts")); err != nil {
		return fmt.Errorf("namespaces %s: %w", v.ID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, sys.Budget(networkBudget))
	defer cancel()
	if err := e.Networks.Del(ctx, e.networkPod(v), attachmentOf(v.Network)); err != nil {
		return fmt.Errorf("cni del %s: %w", v.ID, err)
	}
	return nil
}

// removeSandbox is the teardown of a sandbox, for whatever reason it is unwanted:
// a failed run, a removal, a crash. It begins wherever the last try ended.
func (e *Engine) removeSandbox(ctx context.Context, op *operation, s *sandbox) (err error) {
	v := s.snapshot()
	if v.Phase == pod.SandboxGone {
		return nil
	}
	defer func() { s.note(err, func() { e.retrySandbox(s) }) }()
	if v.Phase != pod.SandboxRemoving {
		if err := e.commitSandbox(s, pod.SandboxRemoval{}); err != nil {
			return err
		}
	}
	if err := e.quietSandbox(ctx, op, s); err != nil {
		return err
	}
	op.stage("remove containers")
	var removals errgroup.Group
	for _, c := range e.index.containersOf(v.ID) {
		removals.Go(func() error { return c.queue.wait(func() error { return e.removeContainer(ctx, op, c) }) })
	}
	if err := removals.Wait(); err != nil {
		return err
	}
	op.stage("files")
	if err := e.tearDownSandbox(v); err != nil {
		return err
	}
	op.stage("commit")
	if err := e.commitSandbox(s, pod.SandboxRemoved{}); err != nil {
		return err
	}
	e.index.dropSandbox(s)
	e.Labels.Release(labelsOf(v))
	return nil
}

// tearDownSandbox removes what a quiet sandbox still has: mounts, files, cgroups.
func (e *Engine) tearDownSandbox(v pod.Sandbox) error {
	return joined("teardown", v.ID,
		unmount(e.Layout.Shm(v.ID)),
		removeAll(e.Layout.SandboxDir(v.ID)),
		e.removeParents(v),
	)
}

// removeParents removes those of the cgroups made for the pod that are no other pod's,
// too. Of several that are being removed each counts as the last.
func (e *Engine) removeParents(v pod.Sandbox) error {
	e.parents.Lock()
	defer e.parents.Unlock()
	last := slices.Clone(v.Cgroups)
	for _, s := range e.index.sandboxes() {
		if other := s.snapshot(); other.ID != v.ID && other.Phase != pod.SandboxRemoving {
			last = slices.DeleteFunc(last, func(dir string) bool { return slices.Contains(other.Cgroups, dir) })
		}
	}
	return e.Cgroups.RemoveParents(last)
}
