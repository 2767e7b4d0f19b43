package spec

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResources(t *testing.T) {
	type asked = cri.LinuxContainerResources
	const unlimited = -1
	for name, c := range map[string]struct {
		asked  *asked
		v1     bool
		want   specs.LinuxResources // CPU may be left out where it is empty
		refuse string
	}{
		"nothing":          {asked: &asked{}},
		"nil":              {},
		"cpu":              {asked: &asked{CpuPeriod: 1000, CpuQuota: 2000, CpuShares: 2}, want: specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(1000)), Quota: ptr(int64(2000)), Shares: ptr(uint64(2))}}},
		"unlimited quota":  {asked: &asked{CpuQuota: unlimited}, want: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}}},
		"cpuset":           {asked: &asked{CpusetCpus: "0-3", CpusetMems: "1"}, want: specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-3", Mems: "1"}}},
		"memory":           {asked: &asked{MemoryLimitInBytes: 5}, want: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(5))}}},
		"swap on v1":       {v1: true, asked: &asked{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5}, want: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(5)), Swap: ptr(int64(5))}}},
		"unlimited swap":   {asked: &asked{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: unlimited}, want: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(5)), Swap: ptr(int64(-1))}}},
		"swap under limit": {asked: &asked{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 4}, refuse: "memory_swap_limit_in_bytes 4"},
		"swap, no limit":   {asked: &asked{MemorySwapLimitInBytes: 4}, refuse: "memory_limit_in_bytes"},
		"huge pages":       {asked: &asked{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4}, {PageSize: "1GB"}}}, want: specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}, {Pagesize: "1GB"}}}},
		"unified on v2":    {asked: &asked{Unified: map[string]string{"memory.high": "1"}}, want: specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}},
		"unified on v1":    {v1: true, asked: &asked{Unified: map[string]string{"memory.high": "1"}}, refuse: "unified"},
		"unified path":     {asked: &asked{Unified: map[string]string{"../memory.max": "1"}}, refuse: `unified: "../memory.max"`},
		"swap, unlimited":  {asked: &asked{MemoryLimitInBytes: unlimited, MemorySwapLimitInBytes: 4}, refuse: "memory_swap_limit_in_bytes 4"},
	} {
		t.Run(name, func(t *testing.T) {
			var got specs.LinuxResources
			err := Resources(&got, c.asked, !c.v1)
			if c.refuse != "" {
				wantError(t, err, c.refuse)
				return
			}
			if c.want.CPU == nil {
				c.want.CPU = &specs.LinuxCPU{}
			}
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, c.want)
			}
		})
	}
}

// TestResourcesKeepsWhatIsNotNamed: an update names only what changes. A swap limit
// alone once ended in a nil memory limit.
func TestResourcesKeepsWhatIsNotNamed(t *testing.T) {
	before := func() *specs.LinuxResources {
		return &specs.LinuxResources{
			CPU:            &specs.LinuxCPU{Shares: ptr(uint64(2)), Quota: ptr(int64(1000)), Cpus: "0"},
			Memory:         &specs.LinuxMemory{Limit: ptr(int64(10)), Swap: ptr(int64(20))},
			Pids:           &specs.LinuxPids{Limit: ptr(int64(7))},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}},
			Unified:        map[string]string{"memory.high": "9"},
		}
	}
	for name, c := range map[string]struct {
		asked  *cri.LinuxContainerResources
		change func(*specs.LinuxResources)
	}{
		"nothing":    {&cri.LinuxContainerResources{}, func(*specs.LinuxResources) {}},
		"shares":     {&cri.LinuxContainerResources{CpuShares: 5}, func(r *specs.LinuxResources) { r.CPU.Shares = ptr(uint64(5)) }},
		"memory":     {&cri.LinuxContainerResources{MemoryLimitInBytes: 15}, func(r *specs.LinuxResources) { r.Memory.Limit = ptr(int64(15)) }},
		"swap alone": {&cri.LinuxContainerResources{MemorySwapLimitInBytes: 12}, func(r *specs.LinuxResources) { r.Memory.Swap = ptr(int64(12)) }},
		"huge pages": {&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 8}}}, func(r *specs.LinuxResources) { r.HugepageLimits[0].Limit = 8 }},
	} {
		t.Run(name, func(t *testing.T) {
			got, want := before(), before()
			c.change(want)
			if err := Resources(got, c.asked, true); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
	noLimit := &specs.LinuxResources{Memory: &specs.LinuxMemory{}}
	wantError(t, Resources(noLimit, &cri.LinuxContainerResources{MemorySwapLimitInBytes: 1}, true), "memory_limit_in_bytes")
}

func TestPidsLimit(t *testing.T) {
	for limit, want := range map[int64]*specs.LinuxPids{-1: nil, 0: nil, 9: {Limit: ptr(int64(9))}} {
		if got := build(t, podInput(func(in *Input) { in.Node.PidsLimit = limit })).Linux.Resources.Pids; !reflect.DeepEqual(got, want) {
			t.Errorf("%d: got %+v", limit, got)
		}
	}
}

func TestOOMScoreAdj(t *testing.T) {
	for _, c := range []struct {
		asked, min int64
		want       int
		clamped    bool
	}{
		{1000, -500, 1000, false}, {0, -500, 0, false}, {-500, -500, -500, false},
		{-997, -500, -500, true}, {0, 300, 300, true}, {-1000, -1000, -1000, false},
	} {
		result, err := Container(podInput(func(in *Input) {
			in.Config.Linux.Resources.OomScoreAdj, in.Node.MinOOMScoreAdj = c.asked, c.min
		}))
		if err != nil {
			t.Fatal(err)
		}
		if got := *result.Spec.Process.OOMScoreAdj; got != c.want || (len(result.Clamped) == 1) != c.clamped {
			t.Errorf("%d with %d at least: got %d, clamped %q", c.asked, c.min, got, result.Clamped)
		}
		pause, err := Pause(Input{Node: Node{MinOOMScoreAdj: c.min}})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := *pause.Process.OOMScoreAdj, max(-998, int(c.min)); got != want {
			t.Errorf("pause with %d at least: got %d", c.min, got)
		}
	}
	for _, bad := range []int64{-1001, 1001, 1 << 40} {
		_, err := Container(podInput(func(in *Input) { in.Config.Linux.Resources.OomScoreAdj = bad }))
		wantError(t, err, "resources: oom_score_adj")
	}
}

// The kubelet names every page size with the limit 0. Without the controller no
// container could be started, since the runtime refuses to set a limit.
func TestHugepageLimitsWithoutTheController(t *testing.T) {
	asked := []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}
	for _, there := range []bool{true, false} {
		result, err := Container(podInput(func(in *Input) {
			in.Node.Hugetlb = there
			in.Config.Linux.Resources.HugepageLimits = asked
		}))
		if err != nil {
			t.Fatal(err)
		}
		got := len(result.Spec.Linux.Resources.HugepageLimits)
		told := strings.Contains(strings.Join(result.Clamped, "\n"), "hugetlb")
		if there && got != len(asked) || !there && got != 0 || told == there {
			t.Errorf("controller there %t: %d limits, told %q", there, got, result.Clamped)
		}
	}
}

func TestRlimit(t *testing.T) {
	const infinite = ^uint64(0)
	for text, want := range map[string]specs.POSIXRlimit{
		"nofile=1024:4096": {Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096},
		"nproc=5":          {Type: "RLIMIT_NPROC", Soft: 5, Hard: 5},
		"core=-1":          {Type: "RLIMIT_CORE", Soft: infinite, Hard: infinite},
		"memlock=0:-1":     {Type: "RLIMIT_MEMLOCK", Hard: infinite},
	} {
		if got, err := Rlimit(text); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{
		"", "nofile", "=1:2", "nofile=", "nofile=1:", "nofile=:1", "nofile=2:1", "nofile=-1:1", "nofile=1:2:3", "nofile=-2", "nofile=a:b", "nofile=18446744073709551616",
	} {
		if got, err := Rlimit(bad); err == nil || !strings.Contains(err.Error(), "name=soft:hard") {
			t.Errorf("%q: got %+v, %v", bad, got, err)
		}
	}
}

func TestRlimitsAreClamped(t *testing.T) {
	const infinite = ^uint64(0)
	limit := func(soft, hard uint64) specs.POSIXRlimit {
		return specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: soft, Hard: hard}
	}
	for name, c := range map[string]struct {
		asked, want specs.POSIXRlimit
		most        map[string]uint64
	}{
		"with CAP_SYS_RESOURCE": {limit(5, infinite), limit(5, infinite), nil},
		"within":                {limit(5, 20000), limit(5, 20000), map[string]uint64{"RLIMIT_NOFILE": 20000}},
		"hard above":            {limit(5, 20001), limit(5, 20000), map[string]uint64{"RLIMIT_NOFILE": 20000}},
		"both above":            {limit(infinite, infinite), limit(20000, 20000), map[string]uint64{"RLIMIT_NOFILE": 20000}},
		"another is bounded":    {limit(5, infinite), limit(5, infinite), map[string]uint64{"RLIMIT_NPROC": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Container(podInput(func(in *Input) {
				in.Node.Rlimits, in.Node.HardLimits = []specs.POSIXRlimit{c.asked}, c.most
			}))
			if err != nil {
				t.Fatal(err)
			}
			if got := result.Spec.Process.Rlimits; !slices.Equal(got, []specs.POSIXRlimit{c.want}) {
				t.Errorf("got %+v", got)
			}
			if clamped := strings.Join(result.Clamped, "\n"); strings.Contains(clamped, "RLIMIT_NOFILE") != (c.asked != c.want) {
				t.Errorf("clamped %q", clamped)
			}
		})
	}
	if got := build(t, podInput()).Process.Rlimits; len(got) != 0 {
		t.Errorf("the template's limits are left: %+v", got)
	}
}

func TestDevices(t *testing.T) {
	device := func(access string) Device {
		return Device{Access: access, LinuxDevice: specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	}
	none := specs.LinuxDeviceCgroup{Access: "rwm"}
	for name, c := range map[string]struct {
		devices    []Device
		privileged bool
		without    bool
		want       []specs.LinuxDeviceCgroup
		refuse     string
	}{
		"none":                     {want: []specs.LinuxDeviceCgroup{none}},
		"one":                      {devices: []Device{device("r")}, want: []specs.LinuxDeviceCgroup{none, {Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "r"}}},
		"privileged":               {devices: []Device{device("rwm")}, privileged: true, want: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
		"privileged, kept from it": {devices: []Device{device("r")}, privileged: true, without: true, want: []specs.LinuxDeviceCgroup{none, {Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "r"}}},
		"no access":                {devices: []Device{device("")}, refuse: `""`},
		"wrong access":             {devices: []Device{device("rx")}, refuse: `"rx" of /dev/fuse`},
		"a hidden word":            {devices: []Device{device("r\nw")}, refuse: "/dev/fuse"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Container(podInput(func(in *Input) {
				in.Devices, security(in).Privileged, in.Node.WithoutNodeDevices = c.devices, c.privileged, c.without
			}))
			if c.refuse != "" {
				wantError(t, err, "devices", c.refuse)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if l := result.Spec.Linux; !reflect.DeepEqual(l.Resources.Devices, c.want) || len(l.Devices) != len(c.devices) {
				t.Errorf("got %+v, rules %+v", l.Devices, l.Resources.Devices)
			}
		})
	}
}
