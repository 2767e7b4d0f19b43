package engine

import (
	"cmp"
	"slices"
	"time"

	"github.com/crio-minimal/crio/internal/pod"
)

// Sandbox returns the snapshot of the sandbox with the ID or unique prefix of it.
func (e *Engine) Sandbox(id string) (pod.Sandbox, error) {
	s, err := e.index.sandbox(id)
	if err != nil {
		return pod.Sandbox{}, err
	}
	return s.snapshot(), nil
}

// Container returns the snapshot of the container with the ID or unique prefix of it.
func (e *Engine) Container(id string) (pod.Container, error) {
	c, err := e.index.container(id)
	if err != nil {
		return pod.Container{}, err
	}
	return c.snapshot(), nil
}

// Sandboxes returns every sandbox that a client may see, the newest first. One that
// is being made has no ID for anybody yet.
func (e *Engine) Sandboxes() []pod.Sandbox {
	var all []pod.Sandbox
	for _, s := range e.index.sandboxes() {
		if v := s.snapshot(); v.Phase.Listed() {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b pod.Sandbox) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Containers returns every container that a client may see, the newest first.
func (e *Engine) Containers() []pod.Container { return listed(e.index.containers()) }

// ContainersOf returns those of one sandbox.
func (e *Engine) ContainersOf(sandboxID string) []pod.Container {
	return listed(e.index.containersOf(sandboxID))
}

func listed(containers []*container) []pod.Container {
	var all []pod.Container
	for _, c := range containers {
		if v := c.snapshot(); v.Phase.Listed() {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b pod.Container) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Report is what the engine holds and does, for crio status.
type Report struct {
	// Sandboxes and Containers count the objects by phase.
	Sandboxes   map[pod.SandboxPhase]int
	Containers  map[pod.ContainerPhase]int
	Operations  []OperationReport
	Blocked     []BlockedReport
	Quarantined []QuarantineReport
	// LogDropped counts the bytes of output that no log took, of the containers that
	// have ended since the daemon began.
	LogDropped uint64
	// Subscribers are those to the events; SubscribersDropped those that did not read
	// them in time, since the daemon began.
	Subscribers        int
	SubscribersDropped uint64
}

// BlockedReport is an object whose teardown failed and is being tried again.
type BlockedReport struct {
	Kind, ID, Reason string
	// Since is the age of the first failure in nanoseconds.
	Since time.Duration
	Tries int
}

// QuarantineReport is a record that could not be read.
type QuarantineReport struct{ ID, Path, Reason string }

// Report takes a snapshot; it waits for nothing.
func (e *Engine) Report() Report {
	r := Report{
		Sandboxes: map[pod.SandboxPhase]int{}, Containers: map[pod.ContainerPhase]int{}, Operations: e.ops.report(),
		LogDropped: e.logDropped.Load(),
	}
	r.Subscribers, r.SubscribersDropped = e.events.Counts()
	for _, s := range e.index.sandboxes() {
		v := s.snapshot()
		r.Sandboxes[v.Phase]++
		r.block("sandbox", v.ID, s.blocked.Load())
	}
	for _, c := range e.index.containers() {
		v := c.snapshot()
		r.Containers[v.Phase]++
		r.block("container", v.ID, c.blocked.Load())
	}
	for _, b := range e.quarantined {
		r.Quarantined = append(r.Quarantined, QuarantineReport{ID: b.ID, Path: b.Path, Reason: b.Err.Error()})
	}
	return r
}

func (r *Report) block(kind, id string, b *blocked) {
	if b != nil {
		r.Blocked = append(r.Blocked, BlockedReport{
			Kind: kind, ID: id, Reason: b.err.Error(), Since: time.Since(b.since), Tries: b.tries,
		})
	}
}
