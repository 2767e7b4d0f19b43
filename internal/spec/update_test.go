package spec

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func wantResources(t *testing.T, got, want *cri.LinuxContainerResources) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMergeResources(t *testing.T) {
	old := &cri.LinuxContainerResources{
		CpuShares: 2, MemoryLimitInBytes: 5, Unified: map[string]string{"a": "1", "b": "2"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}},
	}
	change := &cri.LinuxContainerResources{
		CpuShares: 3, Unified: map[string]string{"b": "3"}, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 9}},
	}
	wantResources(t, MergeResources(old, change), &cri.LinuxContainerResources{
		CpuShares: 3, MemoryLimitInBytes: 5, Unified: map[string]string{"a": "1", "b": "3"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "1GB", Limit: 2}, {PageSize: "2MB", Limit: 9}},
	})
	if old.CpuShares != 2 || len(old.HugepageLimits) != 2 || old.HugepageLimits[0].Limit != 1 || old.Unified["b"] != "2" {
		t.Errorf("the old one is %v now", old)
	}
	wantResources(t, MergeResources(nil, change), change)
}

func TestResetResources(t *testing.T) {
	change := &cri.LinuxContainerResources{
		CpuShares: 7, CpuPeriod: 7, CpuQuota: 7, MemoryLimitInBytes: 7, MemorySwapLimitInBytes: 7, CpusetCpus: "7", CpusetMems: "7",
	}
	wantResources(t, ResetResources(nil, change, Defaults{CPUs: "0-3", Mems: "0"}), &cri.LinuxContainerResources{
		CpuShares: 1024, CpuPeriod: 100000, CpuQuota: -1, MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1, CpusetCpus: "0-3", CpusetMems: "0",
	})
	// What was asked for before is asked for again, and what was not touched is not told.
	old := &cri.LinuxContainerResources{CpuShares: 2, CpusetCpus: "1"}
	wantResources(t, ResetResources(old, &cri.LinuxContainerResources{CpuShares: 7}, Defaults{CPUs: "0-3"}), old)
	wantResources(t, ResetResources(nil, &cri.LinuxContainerResources{CpuShares: 7, Unified: map[string]string{"memory.high": "1"}}, Defaults{CgroupV2: true}),
		&cri.LinuxContainerResources{Unified: map[string]string{"cpu.weight": "100", "memory.high": "max"}})
}

// The bundle has what is in force and nothing of what was before; the rest stays.
func TestUpdateOfABundle(t *testing.T) {
	limit, shares, pids := int64(5), uint64(9), int64(4)
	bundle := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}, Pids: &specs.LinuxPids{Limit: &pids},
		Devices: []specs.LinuxDeviceCgroup{{Allow: true}}, Unified: map[string]string{"a": "b"},
	}}}
	next, _, err := Update(bundle, &cri.LinuxContainerResources{CpuShares: 8, OomScoreAdj: 3}, Node{Swap: true})
	if err != nil {
		t.Fatal(err)
	}
	r := next.Linux.Resources
	if r.Memory != nil || *r.CPU.Shares != 8 || r.Unified != nil || r.Pids == nil || len(r.Devices) != 1 || *next.Process.OOMScoreAdj != 3 {
		t.Errorf("%+v, score %v", r, next.Process.OOMScoreAdj)
	}
	if old := bundle.Linux.Resources; old.Memory == nil || *old.CPU.Shares != 9 || bundle.Process.OOMScoreAdj != nil {
		t.Errorf("the given one is %+v now", old)
	}
}

func TestCheckUpdate(t *testing.T) {
	old := &cri.LinuxContainerResources{Unified: map[string]string{"io.max": "1"}}
	unified := func(key string) *cri.LinuxContainerResources {
		return &cri.LinuxContainerResources{Unified: map[string]string{key: "2"}}
	}
	wantError(t, CheckUpdate(old, unified("io.max"), Node{}))
	wantError(t, CheckUpdate(nil, unified("memory.high"), Node{}))
	wantError(t, CheckUpdate(nil, unified("io.max"), Node{}), "unified", "io.max")
	pages := &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}}}
	wantError(t, CheckUpdate(nil, pages, Node{Hugetlb: true}), "hugepage_limits")
	wantError(t, CheckUpdate(nil, pages, Node{}))
}
