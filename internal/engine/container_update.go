package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/sys"
)

// updateBudget bounds one update, and once more the taking back of it.
const updateBudget = 30 * time.Second

// UpdateContainer puts the fields of change that are set in force: in the bundle of a
// container that is not started, in the cgroup and processes of a running one. It is
// all or nothing: where the runtime fails half-way, what it has done is taken back.
func (e *Engine) UpdateContainer(ctx context.Context, id string, change *cri.LinuxContainerResources) error {
	c, err := e.index.container(id)
	if err != nil {
		return err
	}
	id = c.snapshot().ID
	// Only the same change may be joined.
	key := opKey{fmt.Sprintf("update container to {%s}", change), id}
	_, err = e.run(ctx, key, 2*updateBudget, func(ctx context.Context, op *operation) (string, error) {
		return id, c.queue.wait(func() error { return e.updateContainer(ctx, op, c, change) })
	})
	return err
}

func (e *Engine) updateContainer(ctx context.Context, op *operation, c *container, change *cri.LinuxContainerResources) error {
	// An earlier update that could not be taken back comes first: what it left is not what
	// the record says is in force.
	if err := e.undoUpdate(ctx, op, c); err != nil {
		return fault.As(fault.FailedPrecondition, err)
	}
	v := c.snapshot()
	if v.Phase != pod.ContainerCreated && v.Phase != pod.ContainerRunning {
		return fault.New(fault.FailedPrecondition, "container %s is %s: only a created or running one can be updated", v.ID, v.Phase)
	}
	if err := checkUpdate(v); err != nil {
		return err
	}
	node := e.node(e.configured(v.Handler))
	if v.Phase == pod.ContainerRunning {
		if err := spec.CheckUpdate(v.Resources, change, node); err != nil {
			return fault.As(fault.InvalidArgument, err)
		}
	}
	wanted := spec.MergeResources(v.Resources, change)
	u, err := e.updateOf(v, wanted, wanted)
	if err != nil {
		return fault.As(fault.InvalidArgument, fmt.Errorf("update %s: %w", v.ID, err))
	}
	wanted, _ = spec.InForce(wanted, node)
	op.stage("record")
	if err := e.commitContainer(c, pod.UpdateRequest{Wanted: wanted}); err != nil {
		return err
	}
	// The score of processes that have chosen one of their own is left alone.
	u.scored = wanted.GetOomScoreAdj() != v.Resources.GetOomScoreAdj()
	err = e.applyUpdate(ctx, op, v, u)
	if err == nil {
		op.stage("commit")
		if err = e.commitContainer(c, pod.Updated{Resources: wanted}); err == nil {
			return nil
		}
	}
	op.stage("undo")
	return errors.Join(fmt.Errorf("update %s: %w", v.ID, err), e.undoUpdate(context.WithoutCancel(ctx), op, c))
}

// update is what has to be done to a container to put resources in force.
type update struct {
	// bundle is the specification with them.
	bundle *specs.Spec
	// running is what the runtime is told, and only what concerns CRI's resources.
	running *specs.LinuxResources
	// scored tells that the processes' oom_score_adj has to be set.
	scored bool
}

// updateOf puts the resources in force into the bundle; for a running container, told are
// those for the runtime, which takes no change back by being told of nothing.
func (e *Engine) updateOf(v pod.Container, force, told *cri.LinuxContainerResources) (update, error) {
	node := e.node(e.configured(v.Handler))
	bundle, err := e.bundleOf(v.ID)
	if err != nil {
		return update{}, err
	}
	next, clamped, err := spec.Update(bundle, force, node)
	if err != nil {
		return update{}, err
	}
	for _, message := range clamped {
		e.warnOnce(message)
	}
	running, _, err := spec.Update(next, told, node)
	if err != nil {
		return update{}, err
	}
	resources := *running.Linux.Resources
	// The devices stay, and with them the runtime's own program in the cgroup.
	resources.Devices, resources.HugepageLimits, resources.Pids = nil, nil, nil
	// For crun, -1 is less than anything.
	if m := resources.Memory; m != nil && m.Limit != nil && *m.Limit > 0 {
		check := true
		resources.Memory.CheckBeforeUpdate = &check
	}
	return update{bundle: next, running: &resources}, nil
}

// applyUpdate does it.
func (e *Engine) applyUpdate(ctx context.Context, op *operation, v pod.Container, u update) error {
	if v.Phase == pod.ContainerRunning {
		op.stage("runtime update")
		if err := runtimeOf(v.Handler).Update(ctx, v.ID, u.running); err != nil {
			return fault.As(fault.FailedPrecondition, err)
		}
		if score := u.bundle.Process.OOMScoreAdj; u.scored && score != nil {
			if err := e.setOOMScore(v, *score); err != nil {
				return err
			}
		}
	}
	op.stage("bundle")
	return e.writeBundle(v.ID, u.bundle)
}

// undoUpdate puts those resources in force again that the record says are, after an update
// that did not end. It is tried again until it succeeds, or the container ends.
func (e *Engine) undoUpdate(ctx context.Context, op *operation, c *container) (err error) {
	v := c.snapshot()
	if v.Update == nil {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("take back an update of %s: %w", v.ID, err)
		}
		c.note(err, func() { c.queue.do(func() { _ = e.undoUpdate(e.ctx, idleOperation(), c) }) })
	}()
	ctx, cancel := context.WithTimeout(ctx, updateBudget)
	defer cancel()
	_, group, err := e.groups(v.Handler, v.CgroupParent, v.ID)
	if err != nil {
		return err
	}
	cpus, mems, err := group.ParentSets()
	if err != nil {
		return err
	}
	reset := spec.ResetResources(v.Resources, v.Update, spec.Defaults{CPUs: cpus, Mems: mems, CgroupV2: e.Cgroups.Version() == 2})
	u, err := e.updateOf(v, v.Resources, reset)
	if err != nil {
		return err
	}
	u.scored = v.Update.GetOomScoreAdj() != v.Resources.GetOomScoreAdj()
	if err := e.applyUpdate(ctx, op, v, u); err != nil {
		if c.snapshot().Update == nil {
			return nil // it has ended meanwhile
		}
		return err
	}
	return e.commitContainer(c, pod.Updated{Resources: v.Resources})
}

// setOOMScore writes /proc/<pid>/oom_score_adj of everything in the container. A process
// that is forked meanwhile inherits the old score, and is found by the next look.
func (e *Engine) setOOMScore(v pod.Container, score int) error {
	_, group, err := e.groups(v.Handler, v.CgroupParent, v.ID)
	if err != nil {
		return err
	}
	done := map[int]bool{}
	for {
		pids, err := group.Pids()
		if err != nil {
			return fmt.Errorf("oom_score_adj: %w", err)
		}
		more := false
		for _, pid := range pids {
			if done[pid] {
				continue
			}
			done[pid], more = true, true
			path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
			if err := os.WriteFile(path, fmt.Append(nil, score), 0); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("oom_score_adj: %w", err)
			}
		}
		if !more {
			return nil
		}
	}
}

// bundleOf reads the specification that the container was, or will be, made with.
func (e *Engine) bundleOf(id string) (*specs.Spec, error) {
	var s specs.Spec
	if err := e.readBundle(id, &s); err != nil {
		return nil, err
	}
	if s.Process == nil || s.Linux == nil || s.Linux.Resources == nil {
		return nil, errors.New("config.json: no process or no resources")
	}
	return &s, nil
}

// readBundle reads those parts of the specification that into has.
func (e *Engine) readBundle(id string, into any) error {
	data, err := os.ReadFile(filepath.Join(e.Layout.ContainerDir(id), "config.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	return nil
}

// writeBundle makes the bundle directory with its config.json.
func (e *Engine) writeBundle(id string, s *specs.Spec) error {
	dir := e.Layout.ContainerDir(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return sys.WriteFile(dir+"/config.json", data, 0o600)
}
