// Package stats answers what pods and containers use: CRI's statistics and metrics, from
// cgroups, network namespaces and layers. It is asked with the snapshots of others, keeps
// next to nothing, and does nothing while nobody asks.
package stats

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/pod"
)

// Layers measures what a container wrote into its own layer: allocated bytes and inodes.
// It walks the layer, and ends with ctx.
type Layers interface {
	Usage(ctx context.Context, id string) (bytes, inodes uint64, err error)
}

// Options of a Collector; they do not change while it lives.
type Options struct {
	Layout  pod.Layout
	Cgroups *cgroup.Tree
	Layers  Layers
	// Storage is the directory of the layers, which names their file system.
	Storage string
	// DefaultInterface is the one in each pod that has its addresses.
	DefaultInterface string
	// Groups of metrics that are told.
	Groups []string
	Log    *slog.Logger
}

// Collector reads. It has no lock that is held over a read.
type Collector struct {
	Options
	kept kept
}

// New makes a collector; the caller closes it.
func New(o Options) *Collector {
	c := &Collector{Options: o}
	c.kept.init(o.Layers, o.Log)
	return c
}

// Close ends a walk that is under way, and waits for its end.
func (c *Collector) Close() { c.kept.close() }

// Pod is a sandbox with its containers, as one snapshot has them.
type Pod struct {
	*pod.Sandbox
	Containers []*pod.Container
}

// Pods puts running containers to their ready pods: nothing else uses anything. The order
// is that of the snapshots.
func Pods(sandboxes []*pod.Sandbox, containers []*pod.Container) []Pod {
	byID := make(map[string][]*pod.Container, len(sandboxes))
	for _, v := range containers {
		if v.Phase == pod.ContainerRunning {
			byID[v.SandboxID] = append(byID[v.SandboxID], v)
		}
	}
	var all []Pod
	for _, s := range sandboxes {
		if s.Phase == pod.SandboxReady {
			all = append(all, Pod{Sandbox: s, Containers: byID[s.ID]})
		}
	}
	return all
}

// skip tells whether an object whose reading failed is left out. One that has ended
// meanwhile is no news; any other reason is logged, and costs this object alone.
func (c *Collector) skip(kind, id string, err error) bool {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.Log.Warn("statistics", kind, id, "err", err)
	}
	return err != nil
}

// Container reads one container. Of one that does not run there is only what it wrote.
func (c *Collector) Container(v *pod.Container) (*cri.ContainerStats, error) {
	s := &cri.ContainerStats{Attributes: containerAttributes(v), WritableLayer: c.layer(v.ID)}
	if v.Phase != pod.ContainerRunning {
		return s, nil
	}
	group, err := c.Cgroups.ContainerGroup(v.CgroupParent, v.ID)
	if err != nil {
		return nil, err
	}
	u, err := group.Usage()
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s.Cpu, s.Memory, s.Io = c.cpu(v.ID, now, u), memory(now, u), ioUsage(now, u)
	s.Swap = swap(now, u.Memory)
	return s, nil
}

// Containers reads those that run. One that ends meanwhile is left out.
func (c *Collector) Containers(ctx context.Context, containers []*pod.Container) ([]*cri.ContainerStats, error) {
	all := make([]*cri.ContainerStats, len(containers))
	err := each(ctx, len(containers), func(i int) { all[i] = c.running(containers[i]) })
	return withoutNil(all), err
}

// running reads one container; nil when it does not run or cannot be read.
func (c *Collector) running(v *pod.Container) *cri.ContainerStats {
	if v.Phase != pod.ContainerRunning {
		return nil
	}
	s, err := c.Container(v)
	if c.skip("container", v.ID, err) || s.Cpu == nil {
		return nil
	}
	return s
}

// mostReaders bounds how many files are read at a time: the kernel's counters are mostly
// behind one lock.
const mostReaders = 4

// each does something with each of n, several at a time. The error is ctx's.
func each(ctx context.Context, n int, do func(i int)) error {
	var next atomic.Int64
	var readers sync.WaitGroup
	for range min(n, mostReaders, runtime.GOMAXPROCS(0)) {
		readers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				do(i)
			}
		})
	}
	readers.Wait()
	return ctx.Err()
}

func withoutNil[T any](all []*T) []*T {
	return slices.DeleteFunc(all, func(v *T) bool { return v == nil })
}
