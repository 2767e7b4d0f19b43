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
	v := c.snapshot()
	if v.Phase != pod.ContainerCreated && v.Phase != pod.ContainerRunning {
		return fault.New(fault.FailedPrecondition, "container %s is %s: only a created or running one can be updated", v.ID, v.Phase)
	}
	if err := checkUpdate(v); err != nil {
		return err
	}
	if err := spec.CheckUpdate(v.Resources, change); err != nil && v.Phase == pod.ContainerRunning {
		return fault.As(fault.InvalidArgument, err)
	}
	wanted := spec.MergeResources(v.Resources, change)
	node := e.node(e.configured(v.Handler))
	before, err := e.bundleOf(v.ID)
	if err != nil {
		return fmt.Errorf("update %s: %w", v.ID, err)
	}
	after, clamped, err := spec.Update(before, wanted, node)
	if err != nil {
		return fault.As(fault.InvalidArgument, err)
	}
	if v.Phase == pod.ContainerRunning && len(change.GetHugepageLimits()) > 0 && node.Hugetlb {
		return fault.New(fault.InvalidArgument, "resources: hugepage_limits of a running container cannot be changed")
	}
	for _, message := range clamped {
		e.warnOnce(message)
	}
	op.stage("record")
	if err := e.commitContainer(c, pod.UpdateRequest{Wanted: wanted}); err != nil {
		return err
	}
	err = e.applyUpdate(ctx, op, v, before, after)
	if err == nil {
		op.stage("commit")
		if err = e.commitContainer(c, pod.Updated{Resources: wanted}); err == nil {
			return nil
		}
	}
	op.stage("undo")
	return errors.Join(fmt.Errorf("update %s: %w", v.ID, err), e.undoUpdate(context.WithoutCancel(ctx), c))
}

// applyUpdate takes the container from one specification to another.
func (e *Engine) applyUpdate(ctx context.Context, op *operation, v pod.Container, before, after *specs.Spec) error {
	if v.Phase == pod.ContainerRunning {
		op.stage("runtime update")
		if err := e.updateRunning(ctx, v, before, after); err != nil {
			return err
		}
	}
	op.stage("bundle")
	return e.writeBundle(v.ID, after)
}

// undoUpdate puts those resources in force again that the record says are.
func (e *Engine) undoUpdate(ctx context.Context, c *container) error {
	v := c.snapshot()
	if v.Update == nil {
		return nil // it has ended meanwhile
	}
	ctx, cancel := context.WithTimeout(ctx, updateBudget)
	defer cancel()
	wanted, err := e.bundleOf(v.ID)
	if err != nil {
		return fmt.Errorf("take back the update of %s: %w", v.ID, err)
	}
	_, group, err := e.groups(v.Handler, v.CgroupParent, v.ID)
	if err != nil {
		return err
	}
	cpus, mems, err := group.ParentSets()
	if err != nil {
		return fmt.Errorf("take back the update of %s: %w", v.ID, err)
	}
	node := e.node(e.configured(v.Handler))
	// The bundle may be that from before the update or after it: both lead to the same.
	before, _, err := spec.Update(wanted, spec.ResetResources(v.Resources, v.Update, cpus, mems), node)
	if err == nil {
		err = e.applyUpdate(ctx, idleOperation(), v, wanted, before)
	}
	if err != nil {
		return fmt.Errorf("take back the update of %s: %w", v.ID, err)
	}
	return e.commitContainer(c, pod.Updated{Resources: v.Resources})
}

// updateRunning has the runtime change the cgroup; the score of the OOM killer, which
// runtimes do not update, belongs to each process.
func (e *Engine) updateRunning(ctx context.Context, v pod.Container, before, after *specs.Spec) error {
	resources := *after.Linux.Resources
	// The devices stay, and with them the runtime's own program in the cgroup.
	resources.Devices, resources.HugepageLimits = nil, nil
	if resources.Memory != nil {
		memory := *resources.Memory
		check := true
		memory.CheckBeforeUpdate = &check
		resources.Memory = &memory
	}
	if err := runtimeOf(v.Handler).Update(ctx, v.ID, &resources); err != nil {
		return fault.As(fault.FailedPrecondition, err)
	}
	if before.Process.OOMScoreAdj == nil || after.Process.OOMScoreAdj == nil || *before.Process.OOMScoreAdj == *after.Process.OOMScoreAdj {
		return nil
	}
	return e.setOOMScore(v, *after.Process.OOMScoreAdj)
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
	data, err := os.ReadFile(filepath.Join(e.Layout.ContainerDir(id), "config.json"))
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	if s.Process == nil || s.Linux == nil || s.Linux.Resources == nil {
		return nil, errors.New("config.json: no process or no resources")
	}
	return &s, nil
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
