package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformResourceCases() []conformCase {
	return []conformCase{
		{
			name: "limits at creation", run: conformLimits,
			proves: []string{
				"ContainerConfig.linux", "LinuxContainerConfig.resources", "LinuxContainerResources.cpu_period",
				"LinuxContainerResources.cpu_quota", "LinuxContainerResources.cpu_shares", "LinuxContainerResources.memory_limit_in_bytes",
				"LinuxContainerResources.memory_swap_limit_in_bytes", "LinuxContainerResources.cpuset_cpus",
				"LinuxContainerResources.cpuset_mems", "LinuxContainerResources.oom_score_adj", "ContainerStatus.resources",
				"ContainerResources.linux", "ContainerResources.windows", "LinuxPodSandboxConfig.cgroup_parent", "PodSandboxConfig.linux",
			},
			refuses: []string{
				"LinuxContainerResources.cpu_period", "LinuxContainerResources.cpu_shares", "LinuxContainerResources.oom_score_adj",
				"LinuxContainerResources.memory_swap_limit_in_bytes", "LinuxPodSandboxConfig.cgroup_parent",
			},
		},
		{
			name: "unified keys and huge pages", run: conformUnified,
			proves:  []string{"LinuxContainerResources.unified", "LinuxContainerResources.hugepage_limits", "HugepageLimit.page_size", "HugepageLimit.limit"},
			refuses: []string{"LinuxContainerResources.unified", "HugepageLimit.page_size"},
		},
		{
			name: "update of a running container", run: conformUpdateRunning,
			proves: []string{
				"UpdateContainerResources", "UpdateContainerResourcesRequest.container_id", "UpdateContainerResourcesRequest.linux",
			},
			refuses: []string{"UpdateContainerResourcesRequest.windows", "UpdateContainerResourcesRequest.annotations", "UpdateContainerResourcesRequest.linux"},
		},
		{name: "update before the start", run: conformUpdateCreated, proves: []string{"UpdateContainerResources"}},
		{
			name: "resources of the pod", run: conformPodResources,
			proves: []string{
				"UpdatePodSandboxResources", "UpdatePodSandboxResourcesRequest.pod_sandbox_id", "UpdatePodSandboxResourcesRequest.overhead",
				"UpdatePodSandboxResourcesRequest.resources", "LinuxPodSandboxConfig.overhead", "LinuxPodSandboxConfig.resources",
			},
		},
	}
}

// limits reads the container's cgroup on the node, in the form of the request.
func (c *conform) limits(id string) *cri.LinuxContainerResources {
	c.t.Helper()
	r := &cri.LinuxContainerResources{}
	value := func(controller, file string) string {
		data, err := os.ReadFile(filepath.Join(c.cgroupOf(id, controller), file))
		if err != nil {
			c.t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	number := func(text string) int64 {
		if text == "max" {
			return -1
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		return n
	}
	if !cgroupV2() {
		r.CpuShares, r.CpuQuota, r.CpuPeriod = number(value("cpu", "cpu.shares")), number(value("cpu", "cpu.cfs_quota_us")), number(value("cpu", "cpu.cfs_period_us"))
		r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = number(value("memory", "memory.limit_in_bytes")), number(value("memory", "memory.memsw.limit_in_bytes"))
	} else {
		r.CpuShares = number(value("", "cpu.weight"))
		quota, period, _ := strings.Cut(value("", "cpu.max"), " ")
		r.CpuPeriod, r.CpuQuota, r.MemoryLimitInBytes = number(period), number(quota), number(value("", "memory.max"))
		if r.MemorySwapLimitInBytes = number(value("", "memory.swap.max")); r.MemorySwapLimitInBytes >= 0 {
			r.MemorySwapLimitInBytes += r.MemoryLimitInBytes
		}
	}
	if someLimits().CpusetCpus != "" {
		r.CpusetCpus, r.CpusetMems = value("cpuset", "cpuset.cpus"), value("cpuset", "cpuset.mems")
	}
	return r
}

// cgroupOf is the directory of the container's cgroup, of one controller with v1.
func (c *conform) cgroupOf(id, controller string) string {
	c.t.Helper()
	root := "/sys/fs/cgroup"
	if !cgroupV2() {
		root += "/" + controller
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.pidOf(id)))
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if cgroupV2() && fields[0] == "0" || !cgroupV2() && fields[1] == controller {
			return root + fields[2]
		}
	}
	c.t.Fatalf("no cgroup %q in %s", controller, data)
	return ""
}

func cgroupV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// sameLimits compares what is set in want; shares are a weight with v2, and not compared.
func (c *conform) sameLimits(id string, want *cri.LinuxContainerResources) {
	c.t.Helper()
	got := c.limits(id)
	for field, pair := range map[string][2]int64{
		"cpu_quota": {got.CpuQuota, want.CpuQuota}, "cpu_period": {got.CpuPeriod, want.CpuPeriod},
		"memory_limit": {got.MemoryLimitInBytes, want.MemoryLimitInBytes}, "memory_swap_limit": {got.MemorySwapLimitInBytes, want.MemorySwapLimitInBytes},
	} {
		if pair[1] != 0 && pair[0] != pair[1] {
			c.t.Errorf("%s is %d, want %d", field, pair[0], pair[1])
		}
	}
	if want.CpuShares != 0 && !cgroupV2() && got.CpuShares != want.CpuShares {
		c.t.Errorf("cpu_shares is %d, want %d", got.CpuShares, want.CpuShares)
	}
	if want.CpusetCpus != "" && got.CpusetCpus != want.CpusetCpus || want.CpusetMems != "" && got.CpusetMems != want.CpusetMems {
		c.t.Errorf("cpuset %q, %q, want %q, %q", got.CpusetCpus, got.CpusetMems, want.CpusetCpus, want.CpusetMems)
	}
	if r := c.container(id).GetResources(); r.GetWindows() != nil {
		c.t.Errorf("status tells resources of Windows: %v", r)
	}
	status := c.container(id).GetResources().GetLinux()
	if status.GetCpuQuota() != want.CpuQuota || status.GetMemoryLimitInBytes() != want.MemoryLimitInBytes || status.GetCpuShares() != want.CpuShares {
		c.t.Errorf("status %v, want %v", status, want)
	}
}

func someLimits() *cri.LinuxContainerResources {
	return withoutCpuset(&cri.LinuxContainerResources{
		CpuPeriod: 50000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
		OomScoreAdj: 777, CpusetCpus: "0", CpusetMems: "0",
	})
}

// withoutCpuset leaves out what some kernels for virtual machines have no controller for.
func withoutCpuset(r *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err == nil && !strings.Contains(string(controllers), "cpuset") {
		r.CpusetCpus, r.CpusetMems = "", ""
	}
	return r
}

func conformLimits(c *conform) {
	box, pod := c.pod(nil)
	id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) { k.Linux.Resources = someLimits() })
	c.sameLimits(id, someLimits())
	c.sees(id, "cat /proc/1/oom_score_adj", "777\n")
	if dir := c.cgroupOf(id, "memory"); !strings.Contains(dir, filepath.Base(pod.Linux.CgroupParent)) {
		c.t.Errorf("cgroup %s is not in %s", dir, pod.Linux.CgroupParent)
	}
	for word, r := range map[string]*cri.LinuxContainerResources{
		"cpu_period": {CpuPeriod: -1}, "cpu_shares": {CpuShares: -1}, "oom_score_adj": {OomScoreAdj: 1001},
		"memory_swap_limit_in_bytes": {MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 32 << 20},
	} {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Linux.Resources = r }, word)
	}
	if someLimits().CpusetCpus == "" {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Linux.Resources = &cri.LinuxContainerResources{CpusetCpus: "0"} }, "cpuset_cpus", "controller")
	}
	c.refusedPod(func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "../outside" }, "cgroup_parent")
}

// Each of these works with one version of cgroups, and is refused by name with the other.
func conformUnified(c *conform) {
	set := func(k *cri.ContainerConfig) {
		k.Linux.Resources = &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "33554432"}}
	}
	if cgroupV2() {
		id := c.sleeper(set)
		data, err := os.ReadFile(filepath.Join(c.cgroupOf(id, ""), "memory.high"))
		if err != nil || string(data) != "33554432\n" {
			c.t.Errorf("memory.high %q, %v", data, err)
		}
	} else {
		c.refusedContainer(set, "unified", "cgroup v2")
	}
	pages := func(size string, limit uint64) func(*cri.ContainerConfig) {
		return func(k *cri.ContainerConfig) {
			k.Linux.Resources = &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: size, Limit: limit}}}
		}
	}
	c.refusedContainer(pages("2 MB", 0), "hugepage_limits", "2 MB")
	// The kubelet sends a limit for every page size, mostly 0.
	file := c.hugetlbFile(c.sleeper(pages("2MB", 0)), "2MB")
	if file == "" {
		c.refusedContainer(pages("2MB", 4<<20), "hugepage_limits", "2MB", "no hugetlb controller")
		return
	}
	file = c.hugetlbFile(c.sleeper(pages("2MB", 4<<20)), "2MB")
	if data, err := os.ReadFile(file); err != nil || string(data) != "4194304\n" {
		c.t.Errorf("%s: %q, %v", file, data, err)
	}
}

// hugetlbFile is where the limit is; "" on a node without the controller.
func (c *conform) hugetlbFile(id, size string) string {
	c.t.Helper()
	var dir, name string
	if cgroupV2() {
		dir, name = c.cgroupOf(id, ""), "hugetlb."+size+".max"
	} else if _, err := os.Stat("/sys/fs/cgroup/hugetlb"); err == nil {
		dir, name = c.cgroupOf(id, "hugetlb"), "hugetlb."+size+".limit_in_bytes"
	}
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		return ""
	}
	return filepath.Join(dir, name)
}

func (c *conform) update(id string, r *cri.LinuxContainerResources) error {
	_, err := c.UpdateContainerResources(c.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

func conformUpdateRunning(c *conform) {
	id := c.sleeper(func(k *cri.ContainerConfig) { k.Linux.Resources = someLimits() })
	change := withoutCpuset(&cri.LinuxContainerResources{CpuQuota: 30000, CpuShares: 256, MemoryLimitInBytes: 80 << 20, OomScoreAdj: 900, CpusetCpus: "0-1"})
	if err := c.update(id, change); err != nil {
		c.t.Fatal(err)
	}
	// What the change does not set stays.
	want := someLimits()
	want.CpuQuota, want.CpuShares, want.MemoryLimitInBytes, want.OomScoreAdj = 30000, 256, 80<<20, 900
	if change.CpusetCpus != "" {
		want.CpusetCpus = change.CpusetCpus
	}
	c.sameLimits(id, want)
	if got := c.container(id).GetResources().GetLinux(); got.String() != want.String() {
		c.t.Errorf("status %v, want %v", got, want)
	}
	// runc gives a command the score from before the update, which is mended a moment later.
	c.sees(id, "sleep 1; cat /proc/1/oom_score_adj /proc/self/oom_score_adj", "900\n900\n")
	for _, bad := range []*cri.LinuxContainerResources{
		{OomScoreAdj: 5000}, {CpuShares: -3}, {MemorySwapLimitInBytes: 1 << 20}, {CpusetCpus: "77", CpuShares: 99},
	} {
		if err := c.update(id, bad); err == nil {
			c.t.Errorf("%v is accepted", bad)
		}
		c.sameLimits(id, want)
	}
	_, err := c.UpdateContainerResources(c.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id, Windows: &cri.WindowsContainerResources{}})
	c.refused(err, codes.InvalidArgument, "windows")
	_, err = c.UpdateContainerResources(c.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id})
	c.refused(err, codes.InvalidArgument, "linux")
	_, err = c.UpdateContainerResources(c.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: change, Annotations: map[string]string{"a": "b"}})
	c.refused(err, codes.InvalidArgument, "annotations")
	c.refused(c.update(strings.Repeat("0", 64), change), codes.NotFound, "does not exist")
	if _, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		c.t.Fatal(err)
	}
	c.refused(c.update(id, change), codes.FailedPrecondition, "exited")
}

func conformUpdateCreated(c *conform) {
	box, pod := c.pod(nil)
	config := c.containerConfig(c.image, "sleep", "3600")
	config.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 100, OomScoreAdj: 500}
	id := c.create(box, pod, config)
	want := someLimits()
	if err := c.update(id, want); err != nil {
		c.t.Fatal(err)
	}
	if got := c.container(id).GetResources().GetLinux(); got.String() != want.String() {
		c.t.Errorf("status %v, want %v", got, want)
	}
	c.startContainer(id)
	c.sameLimits(id, want)
	c.sees(id, "cat /proc/1/oom_score_adj", "777\n")
}

// The pod's own cgroup is the kubelet's: crio keeps what it is told, and tells it.
func conformPodResources(c *conform) {
	box, _ := c.pod(func(p *cri.PodSandboxConfig) {
		p.Linux.Overhead, p.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 11}, &cri.LinuxContainerResources{CpuShares: 12}
	})
	told := func() string {
		a, err := c.PodSandboxStatus(c.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
		if err != nil {
			c.t.Fatal(err)
		}
		return a.GetInfo()["info"]
	}
	if info := told(); !strings.Contains(info, `"overhead":{"cpu_shares":11}`) || !strings.Contains(info, `"resources":{"cpu_shares":12}`) {
		c.t.Errorf("info %s", info)
	}
	_, err := c.UpdatePodSandboxResources(c.ctx(), &cri.UpdatePodSandboxResourcesRequest{
		PodSandboxId: box, Overhead: &cri.LinuxContainerResources{CpuShares: 21}, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 22},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if info := told(); !strings.Contains(info, `"overhead":{"cpu_shares":21}`) || !strings.Contains(info, `"resources":{"memory_limit_in_bytes":22}`) {
		c.t.Errorf("info %s", info)
	}
	_, err = c.UpdatePodSandboxResources(c.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: strings.Repeat("0", 64)})
	c.refused(err, codes.NotFound, "does not exist")
}
