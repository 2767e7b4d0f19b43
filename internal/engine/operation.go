package engine

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// operation is work that outlives the RPC that asked for it. Whoever asks for the
// same key while it runs waits for the same result.
type operation struct {
	kind, object string
	started      time.Time
	at           atomic.Pointer[stage]
	done         chan struct{} // closed when id and err are final

	id  string
	err error
}

// idleOperation is for work that nobody waits for or looks at.
func idleOperation() *operation { return &operation{} }

type stage struct {
	name string
	// on is what it waits for, where that may be anything: a path of the node.
	on    string
	since time.Time
}

func (s *stage) String() string { return strings.TrimSpace(s.name + " " + s.on) }

// stage names what the operation is doing from now on.
func (op *operation) stage(name string) {
	op.begins(name)
	sys.Failpoint(op.kind, name)
}

func (op *operation) begins(name string) { op.beginsOn(name, "") }

func (op *operation) beginsOn(name, on string) {
	op.at.Store(&stage{name: name, on: on, since: time.Now()})
}

// wait returns the result, or an error that names the stage when ctx ends first.
// The operation goes on.
func (op *operation) wait(ctx context.Context) (string, error) {
	select {
	case <-op.done:
		return op.id, op.err
	case <-ctx.Done():
		at := op.at.Load()
		return "", fmt.Errorf("%s of %s is still in stage %s for %s: %w",
			op.kind, op.object, at, time.Since(at.since).Round(time.Millisecond), ctx.Err())
	}
}

// operations are those that run now.
type operations struct {
	mu    sync.Mutex // held for map operations alone
	byKey map[string]*operation
	// asked are operations that a request began, and that a daemon which ends lets
	// end; watches are those that only wait for somebody else.
	asked, watches sync.WaitGroup
	// closed refuses new ones: the daemon is ending.
	closed bool
}

// join returns the running operation of the key, or starts work as a new one. work
// gets a context that ends with the daemon or after budget, whichever is first.
func (e *Engine) join(key opKey, budget time.Duration, work func(context.Context, *operation) (string, error)) (*operation, error) {
	name := key.kind + "\x00" + key.object
	ops := &e.ops
	ops.mu.Lock()
	defer ops.mu.Unlock()
	if op, ok := ops.byKey[name]; ok {
		return op, nil
	}
	if ops.closed {
		return nil, errEnding
	}
	op := ops.begin(name, key)
	ops.asked.Go(func() {
		ctx, cancel := context.WithTimeout(e.ctx, budget)
		defer cancel()
		op.stage("begin")
		op.id, op.err = work(ctx, op)
		if op.err != nil && ctx.Err() != nil {
			op.err = fmt.Errorf("stage %s: %w", op.at.Load(), op.err)
		}
		ops.end(name, op)
	})
	return op, nil
}

// watch runs work, which waits for somebody else, as an operation without a deadline
// of its own: it ends with what it waits for, or with the daemon.
func (e *Engine) watch(key opKey, work func(context.Context, *operation)) *operation {
	name := key.kind + "\x00" + key.object
	ops := &e.ops
	ops.mu.Lock()
	defer ops.mu.Unlock()
	op := ops.begin(name, key)
	ops.watches.Go(func() {
		op.stage("waiting")
		work(e.ctx, op)
		ops.end(name, op)
	})
	return op
}

// session makes what a client holds open visible, without a deadline of its own: it ends
// with the client. Whoever gets done calls it at the end.
func (e *Engine) session(kind, object string) (op *operation, done func(), err error) {
	ops := &e.ops
	// Each is one of its own.
	name := kind + "\x00" + pod.NewID()
	ops.mu.Lock()
	if ops.closed {
		ops.mu.Unlock()
		return nil, nil, errEnding
	}
	op = ops.begin(name, opKey{kind, object})
	ops.mu.Unlock()
	op.stage("open")
	return op, func() { ops.end(name, op) }, nil
}

// begin needs ops.mu.
func (ops *operations) begin(name string, key opKey) *operation {
	op := &operation{kind: key.kind, object: key.object, started: time.Now(), done: make(chan struct{})}
	op.begins("queued")
	ops.byKey[name] = op
	return op
}

func (ops *operations) end(name string, op *operation) {
	ops.mu.Lock()
	delete(ops.byKey, name)
	ops.mu.Unlock()
	close(op.done)
}

// opKey identifies an operation: what is done to which object.
type opKey struct{ kind, object string }

// run joins or starts and waits.
func (e *Engine) run(ctx context.Context, key opKey, budget time.Duration, work func(context.Context, *operation) (string, error)) (string, error) {
	op, err := e.join(key, budget, work)
	if err != nil {
		return "", err
	}
	return op.wait(ctx)
}

// OperationReport is one running operation for crio status.
type OperationReport struct {
	Kind, Object, Stage string
	// On is what the stage waits for, where that may be anything: a path of the node.
	On string
	// Age and InStage are in nanoseconds.
	Age, InStage time.Duration
}

func (ops *operations) report() []OperationReport {
	ops.mu.Lock()
	defer ops.mu.Unlock()
	all := make([]OperationReport, 0, len(ops.byKey))
	for _, op := range ops.byKey {
		at := op.at.Load()
		all = append(all, OperationReport{
			Kind: op.kind, Object: op.object, Stage: at.name, On: at.on,
			Age: time.Since(op.started), InStage: time.Since(at.since),
		})
	}
	return all
}
