package stats

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
)

// Sandboxes reads ready pods with their containers.
func (c *Collector) Sandboxes(ctx context.Context, pods []Pod) ([]*cri.PodSandboxStats, error) {
	networks := c.networks(ctx, pods)
	all := make([]*cri.PodSandboxStats, len(pods))
	err := each(ctx, len(pods), func(i int) {
		if s, err := c.sandbox(pods[i]); !c.skip("pod", pods[i].ID, err) {
			all[i] = s
		}
	})
	byID := networks()
	for i, s := range all {
		if s != nil {
			s.Linux.Network = c.network(byID[pods[i].ID])
		}
	}
	return withoutNil(all), err
}

// Sandbox reads one pod. Of one that is not ready there is nothing to read.
func (c *Collector) Sandbox(ctx context.Context, p Pod) (*cri.PodSandboxStats, error) {
	if p.Phase != pod.SandboxReady {
		return &cri.PodSandboxStats{Attributes: sandboxAttributes(p.Sandbox), Linux: &cri.LinuxPodSandboxStats{}}, nil
	}
	s, err := c.sandbox(p)
	if err != nil {
		return nil, err
	}
	s.Linux.Network = c.network(c.networks(ctx, []Pod{p})()[p.ID])
	return s, nil
}

// sandbox reads all of a ready pod but its network.
func (c *Collector) sandbox(p Pod) (*cri.PodSandboxStats, error) {
	var containers []*cri.ContainerStats
	for _, v := range p.Containers {
		if s := c.running(v); s != nil {
			containers = append(containers, s)
		}
	}
	u, processes, err := c.podUsage(p)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	linux := &cri.LinuxPodSandboxStats{Containers: containers}
	// A client may make the pod's cgroup later than the pod; until then it uses nothing.
	if err == nil {
		now := time.Now()
		linux.Cpu, linux.Memory, linux.Io = c.cpu(p.ID, now, u), memory(now, u), ioUsage(now, u)
		linux.Process = &cri.ProcessUsage{Timestamp: now.UnixNano(), ProcessCount: &cri.UInt64Value{Value: uint64(processes)}}
	}
	return &cri.PodSandboxStats{Attributes: sandboxAttributes(p.Sandbox), Linux: linux}, nil
}

// networks begins to read the interfaces of the pods that have some of their own, on a
// thread beside the caller's, and returns a function that waits for them by pod. The others
// share the node's, whose traffic is not theirs.
func (c *Collector) networks(ctx context.Context, pods []Pod) func() map[string][]netns.Interface {
	var ids, paths []string
	for _, p := range pods {
		if !p.HostNetwork() {
			ids, paths = append(ids, p.ID), append(paths, c.Layout.Namespace(p.ID, "net"))
		}
	}
	var all [][]netns.Interface
	var reading sync.WaitGroup
	reading.Go(func() {
		var err error
		if all, err = netns.Counters(ctx, paths); err != nil && ctx.Err() == nil {
			c.Log.Warn("statistics of the network", "err", err)
		}
	})
	return func() map[string][]netns.Interface {
		reading.Wait()
		byID := make(map[string][]netns.Interface, len(ids))
		for i, id := range ids {
			byID[id] = all[i]
		}
		return byID
	}
}

// podUsage is what the pod uses as a whole, and the number of its processes. Its own
// cgroup tells it, with what containers that are gone have used; a pod without one uses
// what its containers do.
func (c *Collector) podUsage(p Pod) (u cgroup.Usage, processes int, err error) {
	parent := p.Config.GetLinux().GetCgroupParent()
	group, own := c.Cgroups.PodGroup(parent)
	if own {
		return read(group)
	}
	ids := make([]string, 0, len(p.Containers)+1)
	for _, v := range p.Containers {
		ids = append(ids, v.ID)
	}
	if p.NeedsPause() {
		ids = append(ids, p.ID)
	}
	for _, id := range ids {
		group, err := c.Cgroups.ContainerGroup(parent, id)
		if err != nil {
			return u, 0, err
		}
		one, pids, err := read(group)
		if c.skip("container", id, err) {
			continue
		}
		u, processes = add(u, one), processes+pids
	}
	return u, processes, nil
}

func read(g cgroup.Group) (cgroup.Usage, int, error) {
	u, err := g.Usage()
	if err != nil {
		return u, 0, err
	}
	pids, err := g.Pids()
	return u, len(pids), err
}

// add leaves out what has no sum: limits and pressures.
func add(a, b cgroup.Usage) cgroup.Usage {
	sum := func(a, b cgroup.Count) cgroup.Count { return cgroup.Count{N: a.N + b.N, Known: a.Known || b.Known} }
	return cgroup.Usage{
		CPU: cgroup.CPU{Total: sum(a.CPU.Total, b.CPU.Total)},
		Memory: cgroup.Memory{
			Usage: sum(a.Memory.Usage, b.Memory.Usage), InactiveFile: sum(a.Memory.InactiveFile, b.Memory.InactiveFile),
			RSS: sum(a.Memory.RSS, b.Memory.RSS), PageFaults: sum(a.Memory.PageFaults, b.Memory.PageFaults),
			MajorFaults: sum(a.Memory.MajorFaults, b.Memory.MajorFaults),
		},
	}
}
