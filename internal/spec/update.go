package spec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MergeResources is old with the fields of change that are set; zero is "not
// specified" (LinuxContainerResources). Huge page limits and unified keys are merged
// one by one. Neither argument is changed; old may be nil.
func MergeResources(old, change *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	merged := &cri.LinuxContainerResources{}
	if old != nil {
		merged = proto.CloneOf(old)
	}
	pages := slices.DeleteFunc(merged.GetHugepageLimits(), func(h *cri.HugepageLimit) bool {
		return slices.ContainsFunc(change.GetHugepageLimits(), func(o *cri.HugepageLimit) bool { return o.GetPageSize() == h.GetPageSize() })
	})
	merged.HugepageLimits = nil
	proto.Merge(merged, change)
	merged.HugepageLimits = append(pages, merged.HugepageLimits...)
	return merged
}

// What the kernel gives a cgroup for which nobody has asked for anything.
const (
	defaultShares = 1024
	defaultPeriod = 100000 // microseconds
	unlimited     = -1
)

// unifiedDefaults are the keys of cgroup v2 that can be put back to what the kernel
// begins with (cgroup-v2.rst).
func unifiedDefaults() map[string]string {
	return map[string]string{
		"cpu.weight": "100", "cpu.max": "max 100000", "cpu.max.burst": "0", "cpu.idle": "0", "io.weight": "default 100",
		"memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": "max", "memory.swap.max": "max",
		"memory.swap.high": "max", "memory.zswap.max": "max", "memory.oom.group": "0", "pids.max": "max",
	}
}

// CheckUpdate refuses what a running container cannot be given: huge pages, which
// runtimes do not update, and what could not be taken back if the update failed half-way,
// keys of cgroup v2 that old does not have and whose default is not known.
func CheckUpdate(old, change *cri.LinuxContainerResources, node Node) error {
	if len(change.GetHugepageLimits()) > 0 && node.Hugetlb {
		return errors.New("resources: hugepage_limits of a running container cannot be changed")
	}
	for key := range change.GetUnified() {
		_, set := old.GetUnified()[key]
		if _, known := unifiedDefaults()[key]; !set && !known {
			return fmt.Errorf("resources: unified: %s can be set when the container is made, but not be updated", key)
		}
	}
	return nil
}

// Defaults are what a cgroup has that depends on the node.
type Defaults struct {
	// CPUs and Mems are the parent's sets, which are the most that it may have.
	CPUs, Mems string
	CgroupV2   bool
}

// ResetResources is old, with the defaults where change sets what old leaves open: told to
// the runtime, it undoes change.
func ResetResources(old, change *cri.LinuxContainerResources, d Defaults) *cri.LinuxContainerResources {
	reset := MergeResources(old, nil)
	if change.GetCpusetCpus() != "" {
		reset.CpusetCpus = cmp.Or(reset.GetCpusetCpus(), d.CPUs)
	}
	if change.GetCpusetMems() != "" {
		reset.CpusetMems = cmp.Or(reset.GetCpusetMems(), d.Mems)
	}
	fill := func(field *int64, changed, value int64) {
		if *field == 0 && changed != 0 {
			*field = value
		}
	}
	unified := map[string]bool{}
	for key := range change.GetUnified() {
		unified[key] = true
	}
	if d.CgroupV2 && old.GetCpuShares() == 0 && change.GetCpuShares() != 0 {
		// Runtimes differ in how they make a weight of shares.
		unified["cpu.weight"] = true
	} else {
		fill(&reset.CpuShares, change.GetCpuShares(), defaultShares)
	}
	fill(&reset.CpuPeriod, change.GetCpuPeriod(), defaultPeriod)
	fill(&reset.CpuQuota, change.GetCpuQuota(), unlimited)
	fill(&reset.MemoryLimitInBytes, change.GetMemoryLimitInBytes(), unlimited)
	fill(&reset.MemorySwapLimitInBytes, change.GetMemorySwapLimitInBytes(), unlimited)
	for key := range unified {
		if _, ok := reset.GetUnified()[key]; !ok {
			if reset.Unified == nil {
				reset.Unified = map[string]string{}
			}
			reset.Unified[key] = unifiedDefaults()[key]
		}
	}
	return reset
}

// Update is the specification with other resources, and what had to be taken back of
// them, each as a sentence for the log. The given one stays as it is. Errors are about
// the request.
func Update(s *specs.Spec, r *cri.LinuxContainerResources, node Node) (*specs.Spec, []string, error) {
	next, process, linux := *s, *s.Process, *s.Linux
	resources := *cmp.Or(s.Linux.Resources, &specs.LinuxResources{})
	// All of these come from CRI's resources, which r has anew.
	resources.CPU, resources.Memory, resources.HugepageLimits, resources.Unified = nil, nil, nil, nil
	next.Process, next.Linux, linux.Resources = &process, &linux, &resources
	g := generate.NewFromSpec(&next)
	b := &builder{g: &g, Input: Input{Node: node}}
	if err := b.limits(r); err != nil {
		return nil, nil, err
	}
	return &next, b.clamped, nil
}
