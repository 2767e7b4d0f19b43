package spec

import (
	"cmp"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCheckResources(t *testing.T) {
	type asked = cri.LinuxContainerResources
	page := func(limit uint64) *asked {
		return &asked{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: limit}}}
	}
	full := &Node{CgroupV2: true, Cpuset: true, Hugetlb: true, Swap: true, CPUs: "0-3,8", MemoryNodes: "0"}
	v1 := &Node{CPUs: "0", MemoryNodes: "0"} // without the optional controllers
	unknown := &Node{CgroupV2: true, Cpuset: true}
	for name, c := range map[string]struct {
		asked  *asked
		node   *Node // nil is full
		refuse string
	}{
		"nothing":                {asked: &asked{}},
		"nil":                    {},
		"the least":              {asked: &asked{CpuPeriod: 1000, CpuQuota: 1000, CpuShares: 2, MemoryLimitInBytes: 1, MemorySwapLimitInBytes: 1, OomScoreAdj: -1000}},
		"the most":               {asked: &asked{CpuPeriod: 1000000, CpuQuota: 1 << 40, CpuShares: 262144, MemoryLimitInBytes: 1 << 60, OomScoreAdj: 1000}},
		"unlimited":              {asked: &asked{CpuQuota: -1, MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		"short period":           {asked: &asked{CpuPeriod: 999}, refuse: "cpu_period 999: must be 1000 to 1000000"},
		"long period":            {asked: &asked{CpuPeriod: 1000001}, refuse: "cpu_period"},
		"negative period":        {asked: &asked{CpuPeriod: -1}, refuse: "cpu_period -1"},
		"small quota":            {asked: &asked{CpuQuota: 999}, refuse: "cpu_quota 999: must be 1000 or more, or -1"},
		"negative quota":         {asked: &asked{CpuQuota: -5}, refuse: "cpu_quota -5"},
		"few shares":             {asked: &asked{CpuShares: 1}, refuse: "cpu_shares 1"},
		"many shares":            {asked: &asked{CpuShares: 262145}, refuse: "cpu_shares"},
		"negative shares":        {asked: &asked{CpuShares: -1}, refuse: "cpu_shares -1"},
		"negative memory":        {asked: &asked{MemoryLimitInBytes: -5}, refuse: "memory_limit_in_bytes -5"},
		"negative swap":          {asked: &asked{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: -7}, refuse: "memory_swap_limit_in_bytes -7"},
		"swap below memory":      {asked: &asked{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 4}, refuse: "memory_swap_limit_in_bytes 4"},
		"oom score":              {asked: &asked{OomScoreAdj: 1001}, refuse: "oom_score_adj 1001"},
		"sets":                   {asked: &asked{CpusetCpus: "0-1,8,3-3", CpusetMems: "0"}},
		"no number":              {asked: &asked{CpusetCpus: "abc"}, refuse: `cpuset_cpus "abc"`},
		"no CPU":                 {asked: &asked{CpusetCpus: "900"}, refuse: `cpuset_cpus "900": the node has 0-3,8`},
		"a range beyond":         {asked: &asked{CpusetCpus: "0,3-4"}, refuse: "cpuset_cpus"},
		"a range over a gap":     {asked: &asked{CpusetCpus: "0-8"}, refuse: "cpuset_cpus"},
		"a range backwards":      {asked: &asked{CpusetCpus: "3-1"}, refuse: `"3-1" is neither`},
		"an end too many":        {asked: &asked{CpusetCpus: "1-2-3"}, refuse: "cpuset_cpus"},
		"a comma too many":       {asked: &asked{CpusetCpus: "1,"}, refuse: `"" is neither`},
		"a space":                {asked: &asked{CpusetCpus: " 1"}, refuse: "cpuset_cpus"},
		"too large":              {asked: &asked{CpusetCpus: "4294967296"}, refuse: "cpuset_cpus"},
		"no memory node":         {asked: &asked{CpusetMems: "1"}, refuse: `cpuset_mems "1": the node has 0`},
		"unknown node":           {asked: &asked{CpusetCpus: "900", CpusetMems: "7"}, node: unknown},
		"unknown node, no set":   {asked: &asked{CpusetMems: "x"}, node: unknown, refuse: "cpuset_mems"},
		"no controller":          {asked: &asked{CpusetCpus: "0"}, node: v1, refuse: `cpuset_cpus "0": the node has no cpuset controller`},
		"no controller for mems": {asked: &asked{CpusetMems: "0"}, node: v1, refuse: "cpuset_mems"},
		"huge pages":             {asked: page(4)},
		"no huge pages":          {asked: page(4), node: v1, refuse: "hugepage_limits: 4 bytes of 2MB"},
		"no huge pages are none": {asked: page(0), node: v1},
		"swap unaccounted":       {asked: &asked{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 6}, node: v1, refuse: "memory_swap_limit_in_bytes"},
		"no swap unaccounted":    {asked: &asked{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5}, node: v1},
		"unified on v1":          {asked: &asked{Unified: map[string]string{"memory.high": "1"}}, node: v1, refuse: "unified"},
	} {
		t.Run(name, func(t *testing.T) {
			before := c.asked.String()
			err := CheckResources(c.asked, *cmp.Or(c.node, full))
			if c.refuse != "" {
				wantError(t, err, c.refuse)
			} else if err != nil {
				t.Error(err)
			}
			if c.asked.String() != before {
				t.Errorf("the request became %v", c.asked)
			}
		})
	}
}

// What is told to be in force is what was put into the specification.
func TestInForce(t *testing.T) {
	asked := func() *cri.LinuxContainerResources {
		return &cri.LinuxContainerResources{
			CpuShares: 2, MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5, OomScoreAdj: -900,
			HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}},
		}
	}
	for name, c := range map[string]struct {
		node   Node
		change func(*cri.LinuxContainerResources)
		left   string
	}{
		"all":           {Node{Swap: true, Hugetlb: true, MinOOMScoreAdj: -1000}, func(*cri.LinuxContainerResources) {}, ""},
		"no swap":       {Node{Hugetlb: true, MinOOMScoreAdj: -1000}, func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = 0 }, "memory_swap"},
		"no huge pages": {Node{Swap: true, MinOOMScoreAdj: -1000}, func(r *cri.LinuxContainerResources) { r.HugepageLimits = nil }, "hugepage_limits"},
		"its own score": {Node{Swap: true, Hugetlb: true, MinOOMScoreAdj: -500}, func(r *cri.LinuxContainerResources) { r.OomScoreAdj = -500 }, "oom_score_adj -900"},
	} {
		t.Run(name, func(t *testing.T) {
			request, want := asked(), asked()
			c.change(want)
			result, err := Container(podInput(func(in *Input) {
				in.Node.Swap, in.Node.Hugetlb, in.Node.MinOOMScoreAdj = c.node.Swap, c.node.Hugetlb, c.node.MinOOMScoreAdj
				in.Config.Linux.Resources = request
			}))
			if err != nil {
				t.Fatal(err)
			}
			if result.Resources.String() != want.String() || request.String() != asked().String() {
				t.Errorf("in force %v, want %v; the request became %v", result.Resources, want, request)
			}
			if got := *result.Spec.Process.OOMScoreAdj; int64(got) != want.OomScoreAdj {
				t.Errorf("score %d, want %d", got, want.OomScoreAdj)
			}
			if told := strings.Join(result.Clamped, "\n"); !strings.Contains(told, c.left) || (told == "") != (c.left == "") {
				t.Errorf("told %q", told)
			}
			again, left := InForce(result.Resources, c.node)
			if again.String() != want.String() || len(left) > 0 {
				t.Errorf("of what is in force %v is, and %q is not", again, left)
			}
		})
	}
	kept, left := InForce(nil, Node{MinOOMScoreAdj: 300})
	if kept != nil || len(left) != 1 {
		t.Errorf("of nothing %v is in force, told %q", kept, left)
	}
}
