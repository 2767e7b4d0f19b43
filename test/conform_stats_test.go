package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformStatsCases() []conformCase {
	return []conformCase{
		{
			name: "statistics of a container", run: conformContainerStats,
			proves: []string{
				"ContainerStats", "ContainerStatsRequest.container_id", "ContainerStatsResponse.stats", "ContainerStats.attributes",
				"ContainerStats.cpu", "ContainerStats.memory", "ContainerStats.writable_layer", "ContainerStats.swap", "ContainerStats.io",
				"ContainerAttributes.id", "ContainerAttributes.metadata", "ContainerAttributes.labels", "ContainerAttributes.annotations",
				"CpuUsage.timestamp", "CpuUsage.usage_core_nano_seconds", "CpuUsage.usage_nano_cores", "CpuUsage.psi", "MemoryUsage.timestamp",
				"MemoryUsage.working_set_bytes", "MemoryUsage.available_bytes", "MemoryUsage.usage_bytes", "MemoryUsage.rss_bytes",
				"MemoryUsage.page_faults", "MemoryUsage.major_page_faults", "MemoryUsage.psi", "IoUsage.timestamp", "IoUsage.psi", "SwapUsage.timestamp",
				"SwapUsage.swap_available_bytes", "SwapUsage.swap_usage_bytes", "PsiStats.Full", "PsiStats.Some", "PsiData.Total",
				"PsiData.Avg10", "PsiData.Avg60", "PsiData.Avg300",
			},
		},
		{
			name: "lists of statistics", run: conformListStats,
			proves: []string{
				"ListContainerStats", "ListContainerStatsRequest.filter", "ListContainerStatsResponse.stats", "ContainerStatsFilter.id",
				"ContainerStatsFilter.pod_sandbox_id", "ContainerStatsFilter.label_selector", "ListPodSandboxStats", "ListPodSandboxStatsRequest.filter",
				"ListPodSandboxStatsResponse.stats", "PodSandboxStatsFilter.id", "PodSandboxStatsFilter.label_selector",
			},
		},
		{
			name: "statistics of a pod", run: conformSandboxStats,
			proves: []string{
				"PodSandboxStats", "PodSandboxStatsRequest.pod_sandbox_id", "PodSandboxStatsResponse.stats", "PodSandboxStats.attributes",
				"PodSandboxStats.linux", "PodSandboxStats.windows", "PodSandboxAttributes.id", "PodSandboxAttributes.metadata",
				"PodSandboxAttributes.labels", "PodSandboxAttributes.annotations", "LinuxPodSandboxStats.cpu", "LinuxPodSandboxStats.memory",
				"LinuxPodSandboxStats.network", "LinuxPodSandboxStats.process", "LinuxPodSandboxStats.containers", "LinuxPodSandboxStats.io",
				"NetworkUsage.timestamp", "NetworkUsage.default_interface", "NetworkUsage.interfaces", "NetworkInterfaceUsage.name",
				"NetworkInterfaceUsage.rx_bytes", "NetworkInterfaceUsage.rx_errors", "NetworkInterfaceUsage.tx_bytes", "NetworkInterfaceUsage.tx_errors",
				"ProcessUsage.timestamp", "ProcessUsage.process_count",
			},
		},
		{name: "statistics of unusual pods", run: conformOtherStats, proves: []string{"PodSandboxStats", "ListPodSandboxStats"}},
		{
			name: "metrics", run: conformMetrics,
			proves: []string{
				"ListMetricDescriptors", "ListMetricDescriptorsResponse.descriptors", "MetricDescriptor.name", "MetricDescriptor.help",
				"MetricDescriptor.label_keys", "ListPodSandboxMetrics", "ListPodSandboxMetricsResponse.pod_metrics", "PodSandboxMetrics.pod_sandbox_id",
				"PodSandboxMetrics.metrics", "PodSandboxMetrics.container_metrics", "ContainerMetrics.container_id", "ContainerMetrics.metrics",
				"Metric.name", "Metric.timestamp", "Metric.metric_type", "Metric.label_values", "Metric.value",
			},
		},
	}
}

const mib = 1 << 20

// worker uses some of everything, and then nothing.
func (c *conform) worker(box string, pod *cri.PodSandboxConfig) (id string, config *cri.ContainerConfig) {
	c.t.Helper()
	config = c.containerConfig(c.image, shell("dd if=/dev/zero of=/data bs=1M count=8; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo done; exec sleep 3600")...)
	config.Labels, config.Annotations = map[string]string{"kind": "worker"}, map[string]string{"some": "thing"}
	config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 128 * mib, MemorySwapLimitInBytes: 160 * mib, CpuQuota: 90_000, CpuPeriod: 100_000}
	id = c.runContainer(box, pod, config)
	c.awaitLog(logOf(pod, config), "done")
	return id, config
}

func (c *conform) containerStats(id string) *cri.ContainerStats {
	c.t.Helper()
	a, err := c.ContainerStats(c.ctx(), &cri.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		c.t.Fatal(err)
	}
	return a.GetStats()
}

// counters are what a cgroup says of itself, by the fields of ContainerStats.
func (c *conform) counters(group func(controller string) string) map[string]uint64 {
	c.t.Helper()
	if !cgroupV2() {
		m := group("memory")
		all := map[string]uint64{
			"cpu": c.numberIn(group("cpuacct")+"/cpuacct.usage", ""), "usage": c.numberIn(m+"/memory.usage_in_bytes", ""), "rss": c.numberIn(m+"/memory.stat", "total_rss"),
			"faults": c.numberIn(m+"/memory.stat", "total_pgfault"), "major": c.numberIn(m+"/memory.stat", "total_pgmajfault"),
			"inactive": c.numberIn(m+"/memory.stat", "total_inactive_file"), "swap": c.numberIn(m+"/memory.stat", "total_swap"),
		}
		return all
	}
	m := group("")
	return map[string]uint64{
		"cpu": 1000 * c.numberIn(m+"/cpu.stat", "usage_usec"), "usage": c.numberIn(m+"/memory.current", ""), "rss": c.numberIn(m+"/memory.stat", "anon"),
		"faults": c.numberIn(m+"/memory.stat", "pgfault"), "major": c.numberIn(m+"/memory.stat", "pgmajfault"),
		"inactive": c.numberIn(m+"/memory.stat", "inactive_file"), "swap": c.numberIn(m+"/memory.swap.current", ""),
	}
}

// numberIn reads a file that is one, or that has it after a key.
func (c *conform) numberIn(file, key string) uint64 {
	c.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if key == "" {
			name, value = "", name
		} else if !ok || name != key {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			c.t.Fatalf("%s: %v", file, err)
		}
		return n
	}
	c.t.Fatalf("%s has no %q", file, key)
	return 0
}

// slack is how far memory may be from both of two samples around it: the kernel adds up
// what its CPUs count when it comes to it.
const slack = mib

// between checks values against two samples of the cgroup, one taken before and one after.
func (c *conform) between(before, after map[string]uint64, cpu *cri.CpuUsage, m *cri.MemoryUsage) {
	c.t.Helper()
	for name, got := range map[string]*cri.UInt64Value{
		"cpu": cpu.GetUsageCoreNanoSeconds(), "usage": m.GetUsageBytes(), "rss": m.GetRssBytes(), "faults": m.GetPageFaults(), "major": m.GetMajorPageFaults(),
	} {
		least, most := min(before[name], after[name]), max(before[name], after[name])
		if name == "usage" || name == "rss" {
			least, most = least-min(least, slack), most+slack
		}
		if got == nil || got.GetValue() < least || got.GetValue() > most {
			c.t.Errorf("%s is %v, and the cgroup's was %d and then %d", name, got, before[name], after[name])
		}
	}
	set := int64(m.GetUsageBytes().GetValue()) - int64(before["inactive"])
	if got := int64(m.GetWorkingSetBytes().GetValue()); max(got-set, set-got) > slack {
		c.t.Errorf("working set %d, want %d", got, set)
	}
	for what, at := range map[string]int64{"cpu": cpu.GetTimestamp(), "memory": m.GetTimestamp()} {
		if age := time.Since(time.Unix(0, at)); age < 0 || age > time.Minute {
			c.t.Errorf("time of %s: %d", what, at)
		}
	}
}

// onTmpfs tells whether the node's layers are on a tmpfs.
func (c *conform) onTmpfs() bool {
	var fs unix.Statfs_t
	if err := unix.Statfs(c.path("storage"), &fs); err != nil {
		c.t.Fatal(err)
	}
	return fs.Type == unix.TMPFS_MAGIC
}

func conformContainerStats(c *conform) {
	box, pod := c.pod(nil)
	id, config := c.worker(box, pod)
	group := func(controller string) string { return c.cgroupOf(id, controller) }
	before := c.counters(group)
	first := c.containerStats(id)
	c.between(before, c.counters(group), first.GetCpu(), first.GetMemory())
	// The files of a node on tmpfs are no cache: their pages are never inactive.
	if cached := !c.onTmpfs(); cached && before["inactive"] < 4*mib || before["cpu"] == 0 || before["rss"] == 0 {
		c.t.Errorf("the container has done nothing: %v", before)
	}
	if a := first.GetAttributes(); a.GetId() != id || !proto.Equal(a, &cri.ContainerAttributes{Id: id, Metadata: config.Metadata, Labels: config.Labels, Annotations: config.Annotations}) {
		c.t.Errorf("attributes %v", a)
	}
	m := first.GetMemory()
	if got, want := m.GetAvailableBytes().GetValue(), 128*mib-m.GetWorkingSetBytes().GetValue(); got != want {
		c.t.Errorf("available %d, want %d", got, want)
	}
	if s := first.GetSwap(); s.GetTimestamp() == 0 || s.GetSwapUsageBytes().GetValue() != before["swap"] || s.GetSwapAvailableBytes().GetValue() != 32*mib-before["swap"] {
		c.t.Errorf("swap %v, the cgroup says %d", s, before["swap"])
	}
	c.checkPressure(c.pressureDir(group), first.GetCpu().GetPsi(), first.GetMemory().GetPsi(), first.GetIo())
	// Those who ask for all containers can have taken two samples of the other one.
	if started := c.containerStats(c.sleeperIn(box, pod, nil)).GetCpu(); started.GetUsageNanoCores() != nil {
		c.t.Errorf("a rate after one sample: %v", started)
	}
	c.checkRate(id, first.GetCpu())
	c.checkLayer(id)
	c.stopContainer(id)
	if s := c.containerStats(id); s.GetCpu() != nil || s.GetMemory() != nil || s.GetWritableLayer() == nil {
		c.t.Errorf("of a container that has ended: %v", s)
	}
	_, err := c.ContainerStats(c.ctx(), &cri.ContainerStatsRequest{ContainerId: "none"})
	c.refused(err, codes.NotFound, "none")
}

// checkRate wants the rate between a sample and the one after it. Somebody who asks for all
// containers in between takes another one: then the next two are compared.
func (c *conform) checkRate(id string, last *cri.CpuUsage) {
	c.t.Helper()
	c.await("the rate between two samples", func() error {
		c.exec(id, shell("i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done")...)
		time.Sleep(time.Until(time.Unix(0, last.GetTimestamp()).Add(time.Second + 10*time.Millisecond)))
		now := c.containerStats(id).GetCpu()
		used := now.GetUsageCoreNanoSeconds().GetValue() - last.GetUsageCoreNanoSeconds().GetValue()
		want := float64(used) * 1e9 / float64(now.GetTimestamp()-last.GetTimestamp())
		last = now
		if got := now.GetUsageNanoCores(); got == nil || want == 0 || float64(got.GetValue()) < 0.99*want || float64(got.GetValue()) > 1.01*want {
			return fmt.Errorf("nanocores %v, want %f", got, want)
		}
		return nil
	})
}

func (c *conform) stopContainer(id string) {
	c.t.Helper()
	if _, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		c.t.Fatal(err)
	}
}

// checkLayer compares the measure, which comes about behind a call, with the directory that
// the kernel writes to. Somebody who asks for all containers may have had the layer measured
// while it was written; then it takes ten seconds until that is done again.
func (c *conform) checkLayer(id string) {
	c.t.Helper()
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.pidOf(id)))
	if err != nil {
		c.t.Fatal(err)
	}
	upper := regexp.MustCompile(`(?m)^\S+ \S+ \S+ / / .*upperdir=([^, ]+)`).FindSubmatch(mounts)
	if upper == nil {
		c.t.Fatalf("no overlay on / in %s", mounts)
	}
	dir := string(upper[1])
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(c.layers(), dir)
	}
	var bytes, inodes uint64
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += uint64(info.Sys().(*syscall.Stat_t).Blocks) * 512
			inodes++
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if bytes < 8*mib {
		c.t.Errorf("%d bytes in %s", bytes, dir)
	}
	var got *cri.FilesystemUsage
	c.await("the size of the layer", func() error {
		if got = c.containerStats(id).GetWritableLayer(); got.GetUsedBytes().GetValue() != bytes || got.GetInodesUsed().GetValue() != inodes {
			return fmt.Errorf("layer %v, and there are %d bytes and %d inodes in %s", got, bytes, inodes, dir)
		}
		return nil
	})
	images, err := c.images.ImageFsInfo(c.ctx(), &cri.ImageFsInfoRequest{})
	if err != nil || got.GetFsId().GetMountpoint() != images.GetContainerFilesystems()[0].GetFsId().GetMountpoint() || got.GetTimestamp() <= 0 {
		c.t.Errorf("layer %v, file system %v, %v", got, images, err)
	}
}

func conformListStats(c *conform) {
	box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Labels = map[string]string{"app": "one"} })
	other, otherPod := c.pod(func(p *cri.PodSandboxConfig) { p.Labels = map[string]string{"app": "two"} })
	labelled := func(app string) func(*cri.ContainerConfig) {
		return func(config *cri.ContainerConfig) { config.Labels = map[string]string{"app": app} }
	}
	a, b := c.sleeperIn(box, pod, labelled("a")), c.sleeperIn(box, pod, labelled("b"))
	elsewhere := c.sleeperIn(other, otherPod, labelled("a"))
	ended := c.runContainer(box, pod, c.containerConfig(c.image, "true"))
	c.exited(ended)
	for name, test := range map[string]struct {
		filter *cri.ContainerStatsFilter
		want   []string
	}{
		"id":         {&cri.ContainerStatsFilter{Id: a}, []string{a}},
		"id's start": {&cri.ContainerStatsFilter{Id: a[:20]}, []string{a}},
		"pod":        {&cri.ContainerStatsFilter{PodSandboxId: box}, []string{a, b}},
		"both":       {&cri.ContainerStatsFilter{PodSandboxId: other, Id: a}, nil},
		"labels":     {&cri.ContainerStatsFilter{PodSandboxId: box, LabelSelector: map[string]string{"app": "b"}}, []string{b}},
		"ended":      {&cri.ContainerStatsFilter{Id: ended}, nil},
	} {
		answer, err := c.ListContainerStats(c.ctx(), &cri.ListContainerStatsRequest{Filter: test.filter})
		if err != nil {
			c.t.Fatal(err)
		}
		c.sameIDs("containers by "+name, containerIDs(answer.GetStats()), test.want)
		for _, s := range answer.GetStats() {
			if s.GetCpu().GetUsageCoreNanoSeconds() == nil || s.GetMemory().GetWorkingSetBytes() == nil {
				c.t.Errorf("%v", s)
			}
		}
	}
	if all, err := c.ListContainerStats(c.ctx(), &cri.ListContainerStatsRequest{}); err != nil || len(all.GetStats()) < 3 {
		c.t.Errorf("%v, %v", all, err)
	}
	for name, test := range map[string]struct {
		filter *cri.PodSandboxStatsFilter
		want   []string
	}{
		"id":     {&cri.PodSandboxStatsFilter{Id: other[:20]}, []string{other}},
		"labels": {&cri.PodSandboxStatsFilter{Id: box, LabelSelector: map[string]string{"app": "one"}}, []string{box}},
		"both":   {&cri.PodSandboxStatsFilter{Id: box, LabelSelector: map[string]string{"app": "two"}}, nil},
	} {
		answer, err := c.ListPodSandboxStats(c.ctx(), &cri.ListPodSandboxStatsRequest{Filter: test.filter})
		if err != nil {
			c.t.Fatal(err)
		}
		var ids []string
		for _, s := range answer.GetStats() {
			ids = append(ids, s.GetAttributes().GetId())
			if s.GetAttributes().GetId() == other {
				c.sameIDs("containers of the pod", containerIDs(s.GetLinux().GetContainers()), []string{elsewhere})
			}
		}
		c.sameIDs("pods by "+name, ids, test.want)
	}
}
