package engine

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// sweepAtOnce bounds how many of one kind the sweep takes away at a time, lest many make
// the node busy with us alone.
const sweepAtOnce = 16

// turns are given to so many at a time as it has room for.
type turns chan struct{}

// Sweep begins to tear down what Recover found unwanted, and what has a name of ours but
// no record, beside the requests: what they make is not its business. It is an operation
// until each was tried once and all that can be without a record was listed; it ends with
// the daemon.
func (e *Engine) Sweep(u Unwanted) {
	e.watch(opKey{"sweep", "node"}, func(ctx context.Context, op *operation) {
		var kinds sync.WaitGroup
		kinds.Go(func() {
			e.sweepUnwanted(ctx, u)
			sys.Failpoint("recovery", "unwanted removed")
		})
		kinds.Go(func() { e.sweepExited(ctx) })
		kinds.Go(func() { e.sweepOrphans(ctx, op) })
		kinds.Wait()
	})
}

// inTurns does work on the object when it has its turn; it does not begin once the daemon
// ends. Until then an operation of its own tells so: a request for the same object finds
// none that it would have to join, and does not wait.
func (e *Engine) inTurns(ctx context.Context, t turns, id string, work func()) {
	op, done, err := e.session("sweep", id)
	if err != nil {
		return
	}
	op.stage("its turn")
	select {
	case t <- struct{}{}:
	case <-ctx.Done():
		done()
		return
	}
	done()
	defer func() { <-t }()
	work()
}

func (e *Engine) sweepUnwanted(ctx context.Context, u Unwanted) {
	t := make(turns, sweepAtOnce)
	var pods sync.WaitGroup
	for _, p := range u {
		pods.Go(func() { e.removeUnwanted(ctx, t, p) })
	}
	pods.Wait()
}

func (e *Engine) removeUnwanted(ctx context.Context, t turns, p *unwantedPod) {
	var containers sync.WaitGroup
	for _, c := range p.containers {
		id := c.snapshot().ID
		containers.Go(func() {
			e.inTurns(ctx, t, id, func() { e.unwanted(e.awaitContainerRemoval(ctx, c), id) })
		})
	}
	if p.sandbox == nil {
		containers.Wait()
		return
	}
	id := p.sandbox.snapshot().ID
	op, done, err := e.session("sweep", id)
	if err != nil {
		return
	}
	op.stage("its containers")
	containers.Wait()
	done()
	e.inTurns(ctx, t, id, func() { e.unwanted(e.awaitSandboxRemoval(ctx, p.sandbox), id) })
}

func (e *Engine) unwanted(err error, id string) {
	if err != nil {
		e.Log.Warn("what a daemon before this one left cannot be removed yet", "id", id, "err", err)
	}
}

// sweepExited takes back what ended containers left: the daemon before this one has
// recorded the exit, and may have got no further.
func (e *Engine) sweepExited(ctx context.Context) {
	t := make(turns, sweepAtOnce)
	var exited sync.WaitGroup
	for _, c := range e.index.containers() {
		v := c.snapshot()
		if v.Phase != pod.ContainerExited || v.BootID != e.bootID {
			continue
		}
		exited.Go(func() {
			e.inTurns(ctx, t, v.ID, func() {
				c.queue.do(func() { e.cleanAfterExit(c) })
				_ = awaitQueue(ctx, &c.queue)
			})
		})
	}
	exited.Wait()
}

// sweepOrphans removes what has no record. What could not be listed is listed again until
// it can be, as long as the daemon lives; what the other lists tell of goes meanwhile.
func (e *Engine) sweepOrphans(ctx context.Context, op *operation) {
	t, l := make(turns, sweepAtOnce), lister{ctx: ctx, op: op}
	var orphans sync.WaitGroup
	defer orphans.Wait()
	for again := make(chan struct{}, 1); ; {
		found, err := e.findOrphans(&l)
		err = errors.Join(err, e.holdImages(&l))
		if ctx.Err() != nil {
			return
		}
		for _, o := range found {
			e.orphans.Store(o.id, o)
			orphans.Go(func() { e.inTurns(ctx, t, o.id, func() { e.removeOrphan(ctx, o) }) })
		}
		e.unlisted.note(err, func() { again <- struct{}{} })
		if err == nil {
			op.stage("what was found")
			return
		}
		e.Log.Warn("sweep", "err", err)
		op.begins("pause before the next list")
		select {
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// holdImages has the store know which images are used, if it has lost that, and which are
// not any more.
func (e *Engine) holdImages(l *lister) error {
	l.op.stage("hold images")
	_, err := list(l, "holds on images", func() ([]string, error) {
		var used []string
		for _, c := range e.index.containers() {
			v := c.snapshot()
			used = append(used, v.ImageID)
			for _, m := range v.ImageMounts {
				used = append(used, m.ImageID)
			}
		}
		slices.Sort(used)
		used = slices.Compact(used)
		return used, e.Layers.HoldOnly(l.ctx, used)
	})
	return err
}
