package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// Backoff of a teardown that failed: it is tried again until it succeeds.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// awaitSandboxRemoval removes the sandbox as an operation, which goes on when ctx ends.
func (e *Engine) awaitSandboxRemoval(ctx context.Context, s *sandbox) error {
	return e.inTurn(ctx, removeSandboxKind, s, e.removeSandbox)
}

// awaitContainerRemoval is the same for containers.
func (e *Engine) awaitContainerRemoval(ctx context.Context, c *container) error {
	id := c.snapshot().ID
	_, err := e.run(ctx, opKey{"remove container", id}, removeBudget, func(ctx context.Context, op *operation) (string, error) {
		return id, c.queue.wait(func() error { return e.removeContainer(ctx, op, c) })
	})
	return err
}

// retrySandbox removes or stops the sandbox once more, unless somebody did meanwhile.
// What goes wrong is noted by the removal or the stop itself.
func (e *Engine) retrySandbox(s *sandbox) {
	switch v := s.snapshot(); {
	case e.ctx.Err() != nil:
	case v.Phase == pod.SandboxRemoving:
		_ = e.awaitSandboxRemoval(e.ctx, s)
	case v.Phase == pod.SandboxNotReady && v.StopRequested:
		_ = e.inTurn(e.ctx, stopSandboxKind, s, e.stopSandbox)
	}
}

func (e *Engine) retryContainer(c *container) {
	if c.snapshot().Phase == pod.ContainerRemoving && e.ctx.Err() == nil {
		_ = e.awaitContainerRemoval(e.ctx, c)
	}
}

// tearDownContainer removes everything that a container's record may stand for. It
// is idempotent and computes every name from the ID; the record itself stays.
func (e *Engine) tearDownContainer(ctx context.Context, op *operation, v pod.Container) error {
	op.stage("kill")
	kill, cancel := context.WithTimeout(ctx, killBudget)
	defer cancel()
	if err := e.killProcesses(kill, v.Handler, v.CgroupParent, v.ID); err != nil {
		return fmt.Errorf("kill %s: %w", v.ID, err)
	}
	op.stage("mounts")
	if err := e.unmountAll(v.ID); err != nil {
		return fmt.Errorf("mounts of %s: %w", v.ID, err)
	}
	op.stage("layer")
	if err := unmount(e.Layout.Rootfs(v.ID)); err != nil {
		return fmt.Errorf("root file system of %s: %w", v.ID, err)
	}
	if err := e.removeLayers(ctx, v); err != nil {
		return fmt.Errorf("layer %s: %w", v.ID, err)
	}
	op.stage("bundle")
	return joined("bundle", v.ID, netns.Unpin(e.Layout.TargetNamespace(v.ID)), removeAll(e.Layout.ContainerDir(v.ID)))
}

func attachmentOf(n *pod.Network) network.Attachment {
	return network.Attachment{Network: n.Name, Config: n.Config, Result: n.Result, IPs: n.IPs}
}

func unmount(path string) error {
	if err := sys.Unmount(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func removeAll(path string) error { return os.RemoveAll(path) }
