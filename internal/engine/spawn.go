package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// launch is a process to be started under a monitor: a container's or a pod's pause.
type launch struct {
	id, parent string
	handler    pod.Handler
	logPath    string
	stdio      untrusted.Owner // of the pipes
	tty        bool
	stdin      bool
	stdinOnce  bool
	// sandboxed: it is put into the sandbox of the runtime that the pause process is in.
	sandboxed bool
}

// spawn starts the monitor in a cgroup of its own and waits until the process runs.
// On an error nothing of it runs any more. onExit is called once if it succeeded.
func (e *Engine) spawn(ctx context.Context, l launch, onExit func(monitor.Exit, error)) (*monitor.Conn, monitor.Status, error) {
	h := e.configured(l.handler)
	own, container, err := e.groups(l.handler, l.parent, l.id)
	if err != nil {
		return nil, monitor.Status{}, err
	}
	if err := own.Create(); err != nil {
		return nil, monitor.Status{}, fmt.Errorf("monitor cgroup: %w", err)
	}
	sys.Failpoint("spawn", "monitor's cgroup made")
	if err := os.MkdirAll(l.handler.Root, 0o700); err != nil {
		return nil, monitor.Status{}, err
	}
	spec := monitor.Spec{
		ID: l.id, Path: h.Monitor, Env: h.MonitorEnv, RunDir: e.Layout.ContainerDir(l.id),
		Runtime: l.handler.Path, RuntimeArgs: runtimeOf(l.handler).GlobalArgs(),
		LogPath: l.logPath, LogSizeMax: max(e.LogSizeMax, 0),
		StdioUID: uint32(l.stdio.UID), StdioGID: uint32(l.stdio.GID),
		TTY: l.tty, Stdin: l.stdin, StdinOnce: l.stdinOnce, Sandboxed: l.sandboxed,
		JoinCgroup: own.JoinFiles(), KillCgroup: []string{container.KillDir()},
		OOMFile: container.OOMFile(), PodOOMFile: e.Cgroups.PodOOMFile(l.parent),
	}
	if dir, err := own.OpenDir(); err == nil && dir != nil {
		defer dir.Close()
		spec.CgroupFD, spec.JoinCgroup = int(dir.Fd()), nil
	}
	wait, cancel := context.WithTimeout(ctx, sys.Budget(h.StartTimeout))
	defer cancel()
	conn, status, err := monitor.Start(wait, spec, onExit)
	if err == nil {
		return conn, status, nil
	}
	undo, cancelUndo := context.WithTimeout(context.WithoutCancel(ctx), killBudget)
	defer cancelUndo()
	return nil, monitor.Status{}, errors.Join(err, e.killProcesses(undo, l.handler, l.parent, l.id))
}

// groups are the cgroups of the monitor and of what it watches.
func (e *Engine) groups(h pod.Handler, parent, id string) (own, container cgroup.Group, err error) {
	if own, err = e.Cgroups.MonitorGroup(e.configured(h).MonitorCgroup, id); err != nil {
		return own, container, fmt.Errorf("monitor cgroup: %w", err)
	}
	if container, err = e.Cgroups.ContainerGroup(parent, id); err != nil {
		return own, container, fmt.Errorf("cgroup: %w", err)
	}
	return own, container, nil
}

// killProcesses ends the monitor, a runtime that still works for it, and the
// container, whatever their state, and takes back what the runtime made. It is
// idempotent and needs nothing but names.
func (e *Engine) killProcesses(ctx context.Context, h pod.Handler, parent, id string) error {
	own, container, err := e.groups(h, parent, id)
	if err != nil {
		return err
	}
	// The monitor first: it would run the container's start after we killed the container.
	if err := errors.Join(own.Kill(ctx), container.Kill(ctx)); err != nil {
		return err
	}
	sys.Failpoint("kill", "killed")
	if err := runtimeOf(h).Delete(ctx, id); err != nil {
		return err
	}
	sys.Failpoint("kill", "taken back by the runtime")
	return errors.Join(container.Remove(ctx), own.Remove(ctx))
}

// ended turns the monitor's word into an event. A lost monitor's container is
// killed first: nobody would see its end.
func (e *Engine) ended(h pod.Handler, parent, id string, x monitor.Exit, err error) pod.Ended {
	if err == nil {
		e.logDropped.Add(x.Dropped)
		reason := ""
		if x.StartedAt == 0 && x.Message != "" {
			reason = pod.ReasonStartError
		}
		return pod.Ended{
			Code: x.Code, Signal: x.Signal, OOMKilled: x.OOM, StartedAt: x.StartedAt, At: x.FinishedAt,
			LogDropped: x.Dropped, Reason: reason, Message: x.Message,
		}
	}
	message := fmt.Sprintf("the monitor ended without telling the exit: %v", err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), killBudget)
	defer cancel()
	if err := e.killProcesses(ctx, h, parent, id); err != nil {
		message += fmt.Sprintf("; and what it watched could not be killed: %v", err)
	}
	e.Log.Error("monitor lost", "id", id, "err", err)
	return pod.Ended{Code: pod.ExitUnknown, At: time.Now().UnixNano(), Reason: pod.ReasonMonitorLost, Message: message}
}

// pauseEnded makes the sandbox not ready: without its first process the PID
// namespace, and with it every container, is gone.
func (e *Engine) pauseEnded(s *sandbox) func(monitor.Exit, error) {
	return func(x monitor.Exit, err error) {
		v := s.snapshot()
		e.ended(v.Handler, v.Config.GetLinux().GetCgroupParent(), v.ID, x, err)
		s.disconnect()
		close(s.paused)
		if commitErr := e.commitSandbox(s, pod.SandboxLost{}); commitErr != nil {
			e.Log.Debug("pause process ended", "sandbox", v.ID, "reason", commitErr)
		}
	}
}
