package engine

import (
	"context"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// sweepAtOnce bounds how many of one kind the sweep takes away at a time: one that hangs
// must not hold up the others, nor many make the node busy with us alone.
const sweepAtOnce = 16

// Sweep tears down what Recover found unwanted, and what has a name of ours but no
// record. It may run while requests are served: what they make is not its business.
// It returns soon after ctx ends; teardowns that have begun go on, as operations.
func (e *Engine) Sweep(ctx context.Context, u Unwanted) {
	op, done, err := e.session("sweep", "node")
	if err != nil {
		return
	}
	defer done()
	op.begins("waiting")
	var kinds sync.WaitGroup
	kinds.Go(func() {
		sideBySide(ctx, slices.Collect(maps.Values(u)), e.removeUnwanted)
		sys.Failpoint("recovery", "unwanted removed")
	})
	kinds.Go(func() {
		// The daemon before this one has recorded the exit, and may have got no further.
		exited := slices.DeleteFunc(e.index.containers(), func(c *container) bool {
			v := c.snapshot()
			return v.Phase != pod.ContainerExited || v.BootID != e.bootID
		})
		sideBySide(ctx, exited, func(ctx context.Context, c *container) {
			c.queue.do(func() { e.cleanAfterExit(c) })
			_ = awaitQueue(ctx, &c.queue)
		})
	})
	kinds.Go(func() { e.removeOrphans(ctx) })
	kinds.Wait()
}

// sideBySide does all of the work, sweepAtOnce at a time; what has not begun when ctx
// ends is not begun.
func sideBySide[T any](ctx context.Context, all []T, work func(context.Context, T)) {
	var g errgroup.Group
	g.SetLimit(sweepAtOnce)
	for _, one := range all {
		g.Go(func() error {
			if ctx.Err() == nil {
				work(ctx, one)
			}
			return nil
		})
	}
	_ = g.Wait()
}

func (e *Engine) removeUnwanted(ctx context.Context, p *unwantedPod) {
	sideBySide(ctx, p.containers, func(ctx context.Context, c *container) {
		e.unwanted(e.awaitContainerRemoval(ctx, c), c.snapshot().ID)
	})
	if p.sandbox != nil && ctx.Err() == nil {
		e.unwanted(e.awaitSandboxRemoval(ctx, p.sandbox), p.sandbox.snapshot().ID)
	}
}

func (e *Engine) unwanted(err error, id string) {
	if err != nil {
		e.Log.Warn("what a daemon before this one left cannot be removed yet", "id", id, "err", err)
	}
}
