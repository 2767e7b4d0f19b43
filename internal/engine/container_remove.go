package engine

import (
	"context"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
)

// RemoveContainer ends the container if it runs and removes it. It succeeds for one
// that does not exist.
func (e *Engine) RemoveContainer(ctx context.Context, id string) error {
	c, err := e.index.container(id)
	if fault.Of(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	id = c.snapshot().ID
	_, err = e.run(ctx, opKey{"remove container", id}, removeBudget, func(ctx context.Context, op *operation) (string, error) {
		op.stage("stop")
		if err := e.stopContainer(ctx, c, 0); err != nil {
			return "", err
		}
		// Behind the removal of what its exit has left, for one.
		op.stage("its turn")
		return id, c.queue.wait(func() error { return e.removeContainer(ctx, op, c) })
	})
	return err
}

// removeContainer is the teardown of a container, for whatever reason it is
// unwanted. It begins wherever the last try ended; it runs in the container's queue.
func (e *Engine) removeContainer(ctx context.Context, op *operation, c *container) (err error) {
	v := c.snapshot()
	if v.Phase == pod.ContainerGone {
		return nil
	}
	defer func() { c.note(err, func() { e.retryContainer(c) }) }()
	if v.Phase != pod.ContainerRemoving {
		if err := e.commitContainer(c, pod.ContainerRemoval{}); err != nil {
			return err
		}
	}
	c.disconnect()
	if err := e.tearDownContainer(ctx, op, v); err != nil {
		return err
	}
	op.stage("commit")
	if err := e.commitContainer(c, pod.ContainerRemoved{}); err != nil {
		return err
	}
	e.index.dropContainer(c)
	return nil
}
