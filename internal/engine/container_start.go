package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
)

// StartContainer starts a created container and returns when its first process
// runs. For one that has been started it succeeds: the answer to an earlier call
// may have been lost.
func (e *Engine) StartContainer(ctx context.Context, id string) error {
	c, err := e.index.container(id)
	if err != nil {
		return err
	}
	id = c.snapshot().ID
	h := e.configured(c.snapshot().Handler)
	_, err = e.run(ctx, opKey{"start container", id}, h.StartTimeout+killBudget, func(ctx context.Context, op *operation) (string, error) {
		return id, c.queue.wait(func() error { return e.startContainer(ctx, op, c) })
	})
	return err
}

func (e *Engine) startContainer(ctx context.Context, op *operation, c *container) error {
	v := c.snapshot()
	switch {
	case v.Phase == pod.ContainerRunning || v.Phase == pod.ContainerExited && v.StartedAt != 0:
		return nil
	case v.Phase != pod.ContainerCreated:
		return fault.New(fault.FailedPrecondition, "container %s is %s, not created", v.ID, v.Phase)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start %s: its turn came too late: %w", v.ID, err)
	}
	op.stage("record")
	if err := e.commitContainer(c, pod.StartRequest{}); err != nil {
		return err
	}
	// Whoever stops the sandbox makes it not ready first and then looks for requested starts.
	s, err := e.index.sandbox(v.SandboxID)
	if err != nil || s.snapshot().Phase != pod.SandboxReady {
		return errors.Join(fault.New(fault.FailedPrecondition, "sandbox %s is not ready", v.SandboxID),
			e.commitContainer(c, pod.StartUndone{}))
	}
	if joinsTarget(v) {
		if _, err := e.target(v); err != nil {
			return errors.Join(err, e.commitContainer(c, pod.StartUndone{}))
		}
	}
	logPath, err := e.logOnDisk(v)
	if err != nil {
		return errors.Join(err, e.commitContainer(c, pod.StartUndone{}))
	}
	op.stage("monitor, runtime create and start")
	committed := make(chan struct{})
	defer close(committed)
	conn, status, err := e.spawn(ctx, launch{
		id: v.ID, parent: v.CgroupParent, handler: v.Handler, logPath: logPath, stdio: onNode(s.snapshot(), v.User),
		tty: v.Config.GetTty(), stdin: v.Config.GetStdin(), stdinOnce: v.Config.GetStdinOnce(),
		sandboxed: v.Handler.Sandbox,
	}, func(x monitor.Exit, err error) {
		<-committed // the end comes after the start, however short the life
		e.containerEnded(c, x, err)
	})
	if err != nil {
		return e.startFailed(c, err)
	}
	c.conn.Store(conn)
	op.stage("commit")
	return e.commitContainer(c, pod.Started{Init: pod.Process{Pid: status.Pid, StartTicks: status.StartTicks}, At: status.StartedAt})
}

// logOnDisk is the path of the log with the links above the pod's directory resolved,
// which are the node's own. Below it the monitor follows none: a container that sees the
// directory could have put it there.
func (e *Engine) logOnDisk(v pod.Container) (string, error) {
	s, err := e.index.sandbox(v.SandboxID)
	if err != nil || v.LogPath == "" {
		return "", err
	}
	above := filepath.Dir(filepath.Clean(s.snapshot().Config.GetLogDirectory()))
	below, err := filepath.Rel(above, v.LogPath)
	if err != nil {
		return "", fmt.Errorf("log of %s: %w", v.ID, err)
	}
	if above, err = filepath.EvalSymlinks(above); err != nil {
		return "", fmt.Errorf("log of %s: %w", v.ID, err)
	}
	return filepath.Join(above, below), nil
}

func joinsTarget(v pod.Container) bool {
	return v.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == cri.NamespaceMode_TARGET
}

// startFailed tells the two failures apart: the runtime refused the container, which
// is its end, or something of ours failed, and the start can be tried again.
func (e *Engine) startFailed(c *container, err error) error {
	id := c.snapshot().ID
	var refused *monitor.StartError
	if errors.As(err, &refused) {
		event := pod.StartFailed{At: time.Now().UnixNano(), Message: refused.Error()}
		return errors.Join(fmt.Errorf("start %s: %w", id, err), e.commitContainer(c, event))
	}
	return errors.Join(fmt.Errorf("start %s: %w", id, err), e.commitContainer(c, pod.StartUndone{}))
}

// containerEnded commits the exit and then takes back what the runtime still holds:
// its state and the cgroup. The layer stays until the container is removed.
func (e *Engine) containerEnded(c *container, x monitor.Exit, err error) {
	v := c.snapshot()
	if v.Phase != pod.ContainerRunning && v.Phase != pod.ContainerCreated {
		return
	}
	if err != nil {
		err = c.stop.reason(err) // that of a monitor that a stop has dismissed
	}
	if err := e.commitContainer(c, e.ended(v.Handler, v.CgroupParent, v.ID, x, err)); err != nil {
		e.Log.Debug("exit of a container that is being removed", "container", v.ID, "reason", err)
	}
	c.stop.cancel()
	c.queue.do(func() { e.cleanAfterExit(c) })
}

// cleanAfterExit takes back what an ended container left. It runs in the container's
// queue, and is an operation, for it may hang.
func (e *Engine) cleanAfterExit(c *container) {
	v := c.snapshot()
	c.disconnect()
	_, err := e.run(e.ctx, opKey{"clean container", v.ID}, killBudget, func(ctx context.Context, op *operation) (string, error) {
		op.stage("kill")
		return v.ID, errors.Join(e.killProcesses(ctx, v.Handler, v.CgroupParent, v.ID), netns.Unpin(e.Layout.TargetNamespace(v.ID)))
	})
	if err != nil && e.ctx.Err() == nil {
		// Removal does it again and keeps the reason; here nobody waits for it.
		e.Log.Warn("what an ended container left cannot be removed yet", "container", v.ID, "err", err)
	}
}
