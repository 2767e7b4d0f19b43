package engine

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/monitor"
	"github.com/crio-minimal/crio/internal/stdio"
)

// Ends are what ends the sessions of a container's clients.
type Ends struct {
	// Exited is closed when nothing of the container runs any more.
	Exited <-chan struct{}
	// Over is closed when its pod has no running container any more and loses its network.
	Over <-chan struct{}
}

// Runnable refuses a container in which no command can run now, and returns the whole ID.
func (e *Engine) Runnable(id string) (whole string, ends Ends, err error) {
	c, s, err := e.running(id)
	if err != nil {
		return "", Ends{}, err
	}
	return c.snapshot().ID, Ends{c.exited, s.over}, nil
}

// Attachable is the same for attach: what it takes part in has to be there.
func (e *Engine) Attachable(id string, tty, stdin bool) (whole string, ends Ends, err error) {
	c, s, err := e.running(id)
	if err != nil {
		return "", Ends{}, err
	}
	v := c.snapshot()
	switch {
	case tty != v.Config.GetTty():
		return "", Ends{}, fault.New(fault.InvalidArgument, "tty: %t, but container %s has tty: %t", tty, v.ID, v.Config.GetTty())
	case stdin && !v.Config.GetStdin():
		return "", Ends{}, fault.New(fault.FailedPrecondition, "stdin: container %s was made without: set stdin in its ContainerConfig", v.ID)
	}
	return v.ID, Ends{c.exited, s.over}, nil
}

// Attach joins a client to the stdio of a running container until the container has no
// more output, or ctx ends. A client that is too slow is left behind by the monitor, and
// gets an error; the container waits for nobody.
func (e *Engine) Attach(ctx context.Context, id string, s stdio.Streams) error {
	c, _, err := e.running(id)
	if err != nil {
		return err
	}
	v, conn := c.snapshot(), c.conn.Load()
	_, done, err := e.session("attach", v.ID)
	if err != nil {
		return err
	}
	defer done()
	a, err := monitor.Attach(ctx, e.Layout.ContainerDir(v.ID), monitor.Streams{Stdin: s.Input != nil, Stdout: s.Out != nil, Stderr: s.Err != nil})
	switch {
	case errors.Is(err, monitor.ErrGone), errors.Is(err, unix.ESRCH):
		return fault.New(fault.FailedPrecondition, "attach %s: the container has just ended", v.ID)
	case errors.Is(err, unix.EUSERS):
		return fault.New(fault.ResourceExhausted, "attach %s: as many clients as its monitor takes are attached", v.ID)
	case err != nil:
		return err
	}
	defer a.Close()
	defer context.AfterFunc(ctx, func() { a.Close() })()
	if s.Resized != nil && conn != nil {
		s.Resized(func(rows, cols uint16) {
			bounded, cancel := context.WithTimeout(ctx, reopenBudget)
			defer cancel()
			if err := conn.Resize(bounded, rows, cols); err != nil {
				e.Log.Debug("terminal keeps its size", "container", v.ID, "err", err)
			}
		})
	}
	if s.Input != nil {
		s.Input(attachedInput{a})
	}
	if err := a.Copy(s.Out, s.Err); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("attach %s: %w", v.ID, err)
	}
	return nil
}

// attachedInput closes the input alone.
type attachedInput struct{ *monitor.Attachment }

func (a attachedInput) Close() error { return a.CloseWrite() }
