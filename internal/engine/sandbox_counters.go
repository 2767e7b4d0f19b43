package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/pod"
)

// countersGroup names a cgroup beside those of the pod's containers, which stays empty.
// cAdvisor tells a pod's network counters of the container that other runtimes have in
// each pod, and looks for containers in cgroups alone; server/inspect.go tells it a
// process to read them at. There is none for a pod on the node's network, whose counters
// are not its own, for one with a pause process, which has the name, and where the client
// gave the pod no cgroup.
func (e *Engine) countersGroup(v pod.Sandbox) (cgroup.Group, bool) {
	parent, own := e.Cgroups.PodGroup(v.Config.GetLinux().GetCgroupParent())
	if !own || v.HostNetwork() || v.NeedsPause() {
		return cgroup.Group{}, false
	}
	return parent.SubEverywhere("crio-" + v.ID), true
}

// makeCountersGroup makes it where the kubelet asks cAdvisor, and in a parent that is
// there: a slice is systemd's to make.
func (e *Engine) makeCountersGroup(v pod.Sandbox) error {
	group, ok := e.countersGroup(v)
	if !ok || !e.ServesCAdvisor {
		return nil
	}
	parent, _ := e.Cgroups.PodGroup(v.Config.GetLinux().GetCgroupParent())
	if _, err := os.Stat(parent.KillDir()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := group.Create(); err != nil {
		return fmt.Errorf("network counters of %s: %w", v.ID, err)
	}
	return nil
}

// removeCountersGroup is idempotent.
func (e *Engine) removeCountersGroup(ctx context.Context, v pod.Sandbox) error {
	group, ok := e.countersGroup(v)
	if !ok {
		return nil
	}
	if err := group.Remove(ctx); err != nil {
		return fmt.Errorf("network counters of %s: %w", v.ID, err)
	}
	return nil
}
