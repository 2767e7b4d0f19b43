package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/oci"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/stdio"
)

// execPrefix begins the names of the cgroups of commands, and of the marks that say
// that a command is running in them.
const execPrefix = "exec-"

// errExecTimeout is the cause of an ExecSync that used up its own timeout.
var errExecTimeout = errors.New("the command did not end in time")

// ExecSync runs a command in a running container. timeout 0 is none
// (ExecSyncRequest.timeout). When it or ctx ends, everything the command has forked
// is killed before the call returns.
func (e *Engine) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (oci.Output, error) {
	if timeout > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, timeout, errExecTimeout)
		defer cancel()
		ctx = limited
	}
	c, s, err := e.running(id)
	if err != nil {
		return oci.Output{}, err
	}
	var out oci.Output
	err = e.inContainer(ctx, c, s, args, func(r oci.Runtime, command oci.Exec) (err error) {
		out, err = r.ExecSync(ctx, command)
		return err
	})
	if errors.Is(context.Cause(ctx), errExecTimeout) && err != nil {
		// Its own timeout, not the caller's, and not a failure.
		return oci.Output{}, fmt.Errorf("%w: killed after %s: %w", errExecTimeout, timeout, context.DeadlineExceeded)
	}
	return out, err
}

// Exec is the same for a command with a client at its stdio: ctx ends with the client.
func (e *Engine) Exec(ctx context.Context, id string, args []string, streams stdio.Streams) (code int32, err error) {
	c, s, err := e.running(id)
	if err != nil {
		return 0, err
	}
	err = e.inContainer(ctx, c, s, args, func(r oci.Runtime, command oci.Exec) (err error) {
		command.Process.Terminal = streams.TTY
		code, err = r.Exec(ctx, command, streams)
		return err
	})
	return code, err
}

// running finds a container that is running, which is what exec and attach need, and its pod.
func (e *Engine) running(id string) (*container, *sandbox, error) {
	c, err := e.index.container(id)
	if err != nil {
		return nil, nil, err
	}
	v := c.snapshot()
	if v.Phase != pod.ContainerRunning {
		return nil, nil, fault.New(fault.FailedPrecondition, "container %s is %s, not running", v.ID, v.Phase)
	}
	s, err := e.index.sandbox(v.SandboxID)
	return c, s, err
}

// inContainer prepares a command, has do run it, and ends what is left of it when do
// has failed. It is a session of the client's.
func (e *Engine) inContainer(ctx context.Context, c *container, s *sandbox, args []string, do func(oci.Runtime, oci.Exec) error) error {
	if len(args) == 0 {
		return fault.New(fault.InvalidArgument, "cmd is empty")
	}
	v := c.snapshot()
	op, done, err := e.session("exec", v.ID)
	if err != nil {
		return err
	}
	defer done()
	process, err := e.execProcess(v, args)
	if err != nil {
		return fmt.Errorf("exec %s: %w", v.ID, err)
	}
	// Random, since a cgroup of an earlier daemon's command may still be there.
	name := execPrefix + pod.NewID()[:16]
	mark := filepath.Join(e.Layout.ContainerDir(v.ID), name)
	owner := onNode(s.snapshot(), v.User)
	command := oci.Exec{
		StdioUID: owner.UID, StdioGID: owner.GID,
		ID: v.ID, Process: process, Reaper: e.configured(v.Handler).Monitor, PidFile: mark + ".pid",
	}
	if v.Handler.Sandbox {
		op.begins("command")
		return e.inSandbox(ctx, v, command, do)
	}
	_, group, err := e.groups(v.Handler, v.CgroupParent, v.ID)
	if err != nil {
		return err
	}
	// The mark is the record: a daemon that finds it after a crash kills the command.
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fmt.Errorf("exec %s: %w", v.ID, err)
	}
	defer os.Remove(mark)
	op.stage("cgroup")
	sub := e.execGroup(v.Handler, group, name)
	if err := sub.Create(); err != nil {
		return fmt.Errorf("exec %s: cgroup: %w", v.ID, err)
	}
	e.Cgroups.Hasten()
	command.CgroupArgs = sub.ExecArgs()
	op.stage("command")
	err = do(runtimeOf(v.Handler), command)
	op.stage("clean-up")
	return e.endExec(ctx, sub, err)
}

// execGroup is the cgroup of a command, inside of its container's.
func (e *Engine) execGroup(h pod.Handler, container cgroup.Group, name string) cgroup.Group {
	if e.configured(h).Features.ExecByController {
		return container.Sub(name)
	}
	return container.SubEverywhere(name)
}

// endExec leaves processes behind only where the command ended by itself: a probe
// that timed out must not accumulate, a daemon that a hook started may stay.
func (e *Engine) endExec(ctx context.Context, sub cgroup.Group, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), killBudget)
	defer cancel()
	if err == nil {
		if empty, emptyErr := sub.Empty(); emptyErr != nil || !empty {
			return emptyErr
		}
		return sub.Remove(clean)
	}
	if killErr := errors.Join(sub.Kill(clean), sub.Remove(clean)); killErr != nil {
		e.Log.Warn("a command that was given up could not be killed", "cgroup", sub.OCIPath(), "err", killErr)
	}
	return err
}

// execProcess is the container's own process with another command.
func (e *Engine) execProcess(v pod.Container, args []string) (*specs.Process, error) {
	var s struct { // the rest takes as long again
		Process *specs.Process `json:"process"`
	}
	if err := e.readBundle(v.ID, &s); err != nil {
		return nil, err
	}
	if s.Process == nil {
		return nil, errors.New("config.json: no process")
	}
	s.Process.Args, s.Process.Terminal, s.Process.ConsoleSize = args, false, nil
	return s.Process, nil
}

// killExecs ends the commands that a daemon before this one had running.
func (e *Engine) killExecs(ctx context.Context, v pod.Container) error {
	if v.Handler.Sandbox {
		return e.killExecsInSandbox(ctx, v)
	}
	_, group, err := e.groups(v.Handler, v.CgroupParent, v.ID)
	if err != nil {
		return err
	}
	dir := e.Layout.ContainerDir(v.ID)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), execPrefix) {
			continue
		}
		name, _, _ := strings.Cut(entry.Name(), ".") // the mark's, whatever else is beside it
		sub := e.execGroup(v.Handler, group, name)
		err = errors.Join(err, sub.Kill(ctx), sub.Remove(ctx), os.Remove(filepath.Join(dir, entry.Name())))
	}
	return err
}

// ReopenLog has the monitor open the log file anew, after somebody moved it away.
// On an error no file has been made (ReopenContainerLog).
func (e *Engine) ReopenLog(ctx context.Context, id string) error {
	c, err := e.index.container(id)
	if err != nil {
		return err
	}
	v, conn := c.snapshot(), c.conn.Load()
	if v.Phase != pod.ContainerRunning {
		return fault.New(fault.FailedPrecondition, "container %s is %s, not running: it writes no log", v.ID, v.Phase)
	}
	if conn == nil {
		return fault.New(fault.Unavailable, "the monitor of container %s does not answer", v.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, reopenBudget)
	defer cancel()
	err = conn.Reopen(ctx)
	switch {
	case errors.Is(err, monitor.ErrClosed), errors.Is(err, unix.ESRCH):
		// The exit was told before the request was taken, and its news is under way to us.
		return fault.New(fault.FailedPrecondition, "container %s has just ended: it writes no log", v.ID)
	case err != nil:
		return fmt.Errorf("reopen log of %s: %w", v.ID, err)
	}
	return nil
}
