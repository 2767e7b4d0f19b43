package engine

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/record"
)

// Sandbox returns the snapshot of the sandbox with the ID or unique prefix of it. Nobody
// changes a snapshot.
func (e *Engine) Sandbox(id string) (*pod.Sandbox, error) {
	s, err := e.index.sandbox(id)
	if err != nil {
		return nil, err
	}
	return s.value.Load(), nil
}

// Container returns the snapshot of the container with the ID or unique prefix of it.
func (e *Engine) Container(id string) (*pod.Container, error) {
	c, err := e.index.container(id)
	if err != nil {
		return nil, err
	}
	return c.value.Load(), nil
}

// Sandboxes returns the snapshots of all that a client may see, the newest first. One that
// is being made has no ID for anybody yet.
func (e *Engine) Sandboxes() []*pod.Sandbox {
	var seen []*pod.Sandbox
	for _, s := range e.index.sandboxes() {
		if v := s.value.Load(); v.Phase.Listed() {
			seen = append(seen, v)
		}
	}
	return newestFirst(seen, func(v *pod.Sandbox) (int64, string) { return v.CreatedAt, v.ID })
}

// Containers returns the snapshots of all that a client may see, the newest first.
func (e *Engine) Containers() []*pod.Container { return listed(e.index.containers()) }

// ContainersOf returns those of one sandbox.
func (e *Engine) ContainersOf(sandboxID string) []*pod.Container {
	return listed(e.index.containersOf(sandboxID))
}

func listed(containers []*container) []*pod.Container {
	seen := make([]*pod.Container, 0, len(containers))
	for _, c := range containers {
		if v := c.value.Load(); v.Phase.Listed() {
			seen = append(seen, v)
		}
	}
	return newestFirst(seen, func(v *pod.Container) (int64, string) { return v.CreatedAt, v.ID })
}

func newestFirst[V any](snapshots []*V, key func(*V) (created int64, id string)) []*V {
	slices.SortFunc(snapshots, func(a, b *V) int {
		createdA, idA := key(a)
		createdB, idB := key(b)
		return cmp.Or(cmp.Compare(createdB, createdA), cmp.Compare(idA, idB))
	})
	return snapshots
}

// Report is what the engine holds and does, for crio status.
type Report struct {
	// Sandboxes and Containers count the objects by phase.
	Sandboxes  map[pod.SandboxPhase]int
	Containers map[pod.ContainerPhase]int
	// Objects are all of them, each sandbox before its containers, the newest first.
	Objects []ObjectReport
	// Operations are what requests have begun, those of images and what clients hold open
	// with them, the oldest first.
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

// BlockedReport is an object whose stop or teardown failed and is being tried again. Its kind is
// "orphan" where it has no record, and "sweep", of "node", where these cannot be listed.
// "image store" is one that cannot be opened, by its directory.
type BlockedReport struct {
	Kind, ID, Reason string
	// Since is the age of the first failure in nanoseconds.
	Since time.Duration
	Tries int
}

// ObjectReport is a sandbox or a container.
type ObjectReport struct {
	Kind, ID, Name string
	// Sandbox is the ID of a container's.
	Sandbox string
	Phase   string
	// Age in nanoseconds, since it was created.
	Age time.Duration
}

// QuarantineReport is a file that could not be read: a record, or a list of the image
// store, which has no ID.
type QuarantineReport struct {
	ID, Path, Reason string
	// Remedy says what to do.
	Remedy string
}

// Report takes a snapshot; it waits for nothing.
func (e *Engine) Report() Report {
	r := Report{
		Sandboxes: map[pod.SandboxPhase]int{}, Containers: map[pod.ContainerPhase]int{}, Operations: e.ops.report(),
		LogDropped: e.logDropped.Load(),
	}
	r.Subscribers, r.SubscribersDropped = e.events.Counts()
	containers := map[string][]ObjectReport{}
	for _, c := range e.index.containers() {
		v := c.snapshot()
		r.Containers[v.Phase]++
		r.block("container", v.ID, c.blocked.Load())
		if stop, asked := c.stop.report(v.ID); asked && v.Phase == pod.ContainerRunning {
			r.Operations = append(r.Operations, stop)
		}
		containers[v.SandboxID] = append(containers[v.SandboxID], ObjectReport{
			Kind: "container", ID: v.ID, Name: v.Config.GetMetadata().GetName(), Sandbox: v.SandboxID,
			Phase: string(v.Phase), Age: time.Since(time.Unix(0, v.CreatedAt)),
		})
	}
	var boxes []ObjectReport
	for _, s := range e.index.sandboxes() {
		v := s.snapshot()
		r.Sandboxes[v.Phase]++
		r.block("sandbox", v.ID, s.blocked.Load())
		boxes = append(boxes, ObjectReport{
			Kind: "sandbox", ID: v.ID, Name: v.Config.GetMetadata().GetNamespace() + "/" + v.Config.GetMetadata().GetName(),
			Phase: string(v.Phase), Age: time.Since(time.Unix(0, v.CreatedAt)),
		})
	}
	if u := e.Images.Unopened(); u != nil {
		_, root, _ := e.Images.Place()
		r.block("image store", root, &blocked{err: u.Err, since: u.Since, tries: u.Tries})
	}
	for _, found := range e.orphans.Range {
		o := found.(*orphan)
		r.block("orphan", o.id, o.blocked.Load())
	}
	r.block("sweep", "node", e.unlisted.blocked.Load())
	for _, op := range e.Images.Operations() {
		r.Operations = append(r.Operations, OperationReport{
			Kind: op.Kind, Object: op.Object, Stage: op.Stage, Age: op.Age, InStage: op.InStage,
		})
	}
	slices.SortFunc(r.Operations, func(a, b OperationReport) int { return cmp.Compare(b.Age, a.Age) })
	r.order(boxes, containers)
	r.quarantine(e.quarantined, e.Images.Damaged())
	return r
}

// order takes the containers, by the sandbox they belong to, out of the map.
func (r *Report) order(boxes []ObjectReport, containers map[string][]ObjectReport) {
	newest := func(a, b ObjectReport) int { return cmp.Or(cmp.Compare(a.Age, b.Age), cmp.Compare(a.ID, b.ID)) }
	slices.SortFunc(boxes, newest)
	for _, box := range boxes {
		slices.SortFunc(containers[box.ID], newest)
		r.Objects = append(append(r.Objects, box), containers[box.ID]...)
		delete(containers, box.ID)
	}
	// Those whose sandbox has lost its record.
	for _, sandbox := range slices.Sorted(maps.Keys(containers)) {
		r.Objects = append(r.Objects, containers[sandbox]...)
	}
}

func (r *Report) quarantine(records []record.Broken, lists []image.Damage) {
	for _, b := range records {
		r.Quarantined = append(r.Quarantined, QuarantineReport{
			ID: b.ID, Path: b.Path, Reason: b.Err.Error(),
			Remedy: "what it stands for is left alone; put a good record back, or delete the file, and the next start ends and removes what there is of it",
		})
	}
	for _, l := range lists {
		r.Quarantined = append(r.Quarantined, QuarantineReport{
			Path: l.Path, Reason: l.List + " of the image store was damaged, and what could be read of it is used",
			Remedy: "images that are missing can be pulled again; then delete the file",
		})
	}
}

func (r *Report) block(kind, id string, b *blocked) {
	if b != nil {
		r.Blocked = append(r.Blocked, BlockedReport{
			Kind: kind, ID: id, Reason: b.err.Error(), Since: time.Since(b.since), Tries: b.tries,
		})
	}
}
