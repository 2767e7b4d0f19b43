package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func containerIDs(all []*cri.ContainerStats) []string {
	var ids []string
	for _, s := range all {
		ids = append(ids, s.GetAttributes().GetId())
	}
	return ids
}

// sameIDs compares without regard to the order.
func (c *conform) sameIDs(what string, got, want []string) {
	c.t.Helper()
	if !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		c.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// pressureDir is the container's group where the kernel counts its waits; "" for a
// kernel that does not. With v1 they are in the hierarchy of v2, if that is mounted.
func (c *conform) pressureDir(group func(controller string) string) string {
	dir := ""
	if cgroupV2() {
		dir = group("")
	} else if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err == nil {
		dir = strings.Replace(group("pids"), "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", 1)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "io.pressure")); err != nil {
		return ""
	}
	return dir
}

// checkPressure compares what was told with what the kernel tells a moment later.
func (c *conform) checkPressure(dir string, cpu, memory *cri.PsiStats, io *cri.IoUsage) {
	c.t.Helper()
	if dir == "" {
		if cpu != nil || memory != nil || io != nil {
			c.t.Errorf("pressure of a kernel that has none: %v, %v, %v", cpu, memory, io)
		}
		return
	}
	if age := time.Since(time.Unix(0, io.GetTimestamp())); age < 0 || age > time.Minute {
		c.t.Errorf("time of io: %v", io)
	}
	for name, got := range map[string]*cri.PsiStats{"cpu": cpu, "memory": memory, "io": io.GetPsi()} {
		text, err := os.ReadFile(filepath.Join(dir, name+".pressure"))
		if err != nil {
			c.t.Fatal(err)
		}
		for kind, data := range map[string]*cri.PsiData{"some": got.GetSome(), "full": got.GetFull()} {
			var avg10, avg60, avg300 float64
			var total uint64
			_, line, _ := strings.Cut("\n"+string(text), "\n"+kind)
			if _, err := fmt.Sscanf(line, " avg10=%f avg60=%f avg300=%f total=%d", &avg10, &avg60, &avg300, &total); err != nil {
				c.t.Fatalf("%s: %v", text, err)
			}
			// A share moves by a few percent when two seconds pass between the samples.
			near := func(a, b float64) bool { return a-b < 25 && b-a < 25 }
			if data == nil || data.Total > total*1000 || total*1000-data.Total > uint64(5*time.Second) || data.Total%1000 != 0 ||
				!near(data.Avg10, avg10) || !near(data.Avg60, avg60) || !near(data.Avg300, avg300) {
				c.t.Errorf("%s of %s is %v, and the kernel's is %s", kind, name, data, text)
			}
		}
	}
}

func (c *conform) sandboxStats(box string) *cri.PodSandboxStats {
	c.t.Helper()
	a, err := c.PodSandboxStats(c.ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: box})
	if err != nil {
		c.t.Fatal(err)
	}
	return a.GetStats()
}

// traffic reads net/dev of a process: name to the sixteen numbers.
func (c *conform) traffic(pid int) map[string][]uint64 {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		c.t.Fatal(err)
	}
	all := map[string][]uint64{}
	for line := range strings.Lines(string(text)) {
		name, numbers, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		for field := range strings.FieldsSeq(numbers) {
			n, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				c.t.Fatal(err)
			}
			all[strings.TrimSpace(name)] = append(all[strings.TrimSpace(name)], n)
		}
	}
	return all
}

func conformSandboxStats(c *conform) {
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		p.Labels, p.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
	})
	id, _ := c.worker(box, pod)
	second := c.sleeperIn(box, pod, nil)
	c.exec(id, shell("nc -w 1 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') 9; true")...)
	group := func(controller string) string { return filepath.Dir(c.cgroupOf(id, controller)) }
	pid := c.pidOf(id)
	before, sent := c.counters(group), c.traffic(pid)
	s := c.sandboxStats(box)
	c.between(before, c.counters(group), s.GetLinux().GetCpu(), s.GetLinux().GetMemory())
	received := c.traffic(pid)
	want := &cri.PodSandboxAttributes{Id: box, Metadata: pod.Metadata, Labels: pod.Labels, Annotations: pod.Annotations}
	if !proto.Equal(s.GetAttributes(), want) || s.GetWindows() != nil {
		c.t.Errorf("attributes %v, windows %v", s.GetAttributes(), s.GetWindows())
	}
	c.sameIDs("containers", containerIDs(s.GetLinux().GetContainers()), []string{id, second})
	c.checkPressure(c.pressureDir(group), s.GetLinux().GetCpu().GetPsi(), s.GetLinux().GetMemory().GetPsi(), s.GetLinux().GetIo())
	if p := s.GetLinux().GetProcess(); p.GetTimestamp() <= 0 || p.GetProcessCount().GetValue() != 2 {
		c.t.Errorf("processes %v, and there are 2", p)
	}
	n := s.GetLinux().GetNetwork()
	if n.GetTimestamp() <= 0 || n.GetDefaultInterface().GetName() != "eth0" || len(n.GetInterfaces()) != len(received)-1 {
		c.t.Errorf("network %v, and there are %v", n, received)
	}
	for _, i := range append(slices.Clone(n.GetInterfaces()), n.GetDefaultInterface()) {
		a, b := sent[i.GetName()], received[i.GetName()]
		if b == nil {
			c.t.Errorf("there is no interface %q", i.GetName())
			continue
		}
		for at, got := range map[int]*cri.UInt64Value{0: i.GetRxBytes(), 2: i.GetRxErrors(), 8: i.GetTxBytes(), 10: i.GetTxErrors()} {
			if got == nil || got.GetValue() < a[at] || got.GetValue() > b[at] {
				c.t.Errorf("field %d of %s is %v, and the kernel's was %d and then %d", at, i.GetName(), got, a[at], b[at])
			}
		}
	}
	if sent["eth0"][8] == 0 {
		c.t.Error("the pod has sent nothing")
	}
	_, err := c.PodSandboxStats(c.ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: "none"})
	c.refused(err, codes.NotFound, "none")
}

// conformOtherStats: pods whose namespaces, cgroup or state are not the usual ones.
func conformOtherStats(c *conform) {
	host, hostPod := c.pod(func(p *cri.PodSandboxConfig) {
		p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	})
	c.sleeperIn(host, hostPod, nil)
	if s := c.sandboxStats(host); s.GetLinux().GetNetwork() != nil || s.GetLinux().GetMemory().GetUsageBytes().GetValue() == 0 {
		c.t.Errorf("on the node's network: %v", s)
	}
	empty, _ := c.pod(nil)
	if s := c.sandboxStats(empty); s.GetLinux().GetNetwork().GetDefaultInterface().GetName() != "eth0" || len(s.GetLinux().GetContainers()) != 0 {
		c.t.Errorf("without containers: %v", s)
	}
	// Without a cgroup of its own: the sum of its containers and the pause process.
	shared, sharedPod := c.pod(func(p *cri.PodSandboxConfig) {
		p.Linux.CgroupParent = ""
		p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	})
	for range 2 {
		c.sleeperIn(shared, sharedPod, func(config *cri.ContainerConfig) {
			config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		})
	}
	s := c.sandboxStats(shared)
	var cpu, memory uint64
	for _, one := range s.GetLinux().GetContainers() {
		cpu += one.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		memory += one.GetMemory().GetUsageBytes().GetValue()
	}
	l := s.GetLinux()
	if got := l.GetProcess().GetProcessCount().GetValue(); got != 3 || len(l.GetContainers()) != 2 {
		c.t.Errorf("%d processes, %d containers", got, len(l.GetContainers()))
	}
	// Other pods of the default parent would be much more.
	if got := l.GetCpu().GetUsageCoreNanoSeconds().GetValue(); got < cpu || got > cpu+uint64(time.Second) || cpu == 0 {
		c.t.Errorf("cpu %d, its containers' %d", got, cpu)
	}
	if got := l.GetMemory().GetUsageBytes().GetValue(); got < memory || got > memory+4*mib || memory == 0 {
		c.t.Errorf("memory %d, its containers' %d", got, memory)
	}
	if _, err := c.StopPodSandbox(c.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: empty}); err != nil {
		c.t.Fatal(err)
	}
	if s := c.sandboxStats(empty); s.GetAttributes().GetId() != empty || s.GetLinux().GetCpu() != nil {
		c.t.Errorf("of a stopped pod: %v", s)
	}
	if a, err := c.ListPodSandboxStats(c.ctx(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: empty}}); err != nil || len(a.GetStats()) != 0 {
		c.t.Errorf("list of a stopped pod: %v, %v", a, err)
	}
}

func conformMetrics(c *conform) {
	box, pod := c.pod(nil)
	id, config := c.worker(box, pod)
	c.checkLayer(id)
	described, err := c.ListMetricDescriptors(c.ctx(), &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range described.GetDescriptors() {
		if d.GetName() == "" || d.GetHelp() == "" || keys[d.GetName()] != nil {
			c.t.Errorf("descriptor %v", d)
		}
		keys[d.GetName()] = d.GetLabelKeys()
	}
	group := func(controller string) string { return c.cgroupOf(id, controller) }
	periods := func() uint64 { return c.numberIn(group("cpu")+"/cpu.stat", "nr_periods") }
	c.await("a period of the quota", func() error {
		if periods() > 0 {
			return nil
		}
		c.exec(id, shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")...)
		return errors.New("there was none")
	})
	first := periods()
	before, traffic := c.counters(group), c.traffic(c.pidOf(id))
	answer, err := c.ListPodSandboxMetrics(c.ctx(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	after := c.counters(group)
	at := slices.IndexFunc(answer.GetPodMetrics(), func(p *cri.PodSandboxMetrics) bool { return p.GetPodSandboxId() == box })
	if at < 0 {
		c.t.Fatalf("no metrics of the pod in %v", answer)
	}
	p := answer.GetPodMetrics()[at]
	if len(p.GetContainerMetrics()) != 1 || p.GetContainerMetrics()[0].GetContainerId() != id {
		c.t.Fatalf("containers %v", p.GetContainerMetrics())
	}
	labels := map[string]string{"namespace": "test", "pod": pod.GetMetadata().GetName()}
	network := c.metrics(keys, p.GetMetrics(), labels)
	if got := network["container_network_transmit_bytes_total/eth0"]; got.GetValue().GetValue() < traffic["eth0"][8] || got.GetMetricType() != cri.MetricType_COUNTER {
		c.t.Errorf("sent %v, the kernel says %d", got, traffic["eth0"][8])
	}
	labels["container"], labels["id"] = config.GetMetadata().GetName(), strings.TrimPrefix(c.cgroupOf(id, "memory"), "/sys/fs/cgroup")
	if !cgroupV2() {
		labels["id"] = strings.TrimPrefix(labels["id"], "/memory")
	}
	all := c.metrics(keys, p.GetContainerMetrics()[0].GetMetrics(), labels)
	for name, want := range map[string][2]uint64{
		"container_cpu_usage_seconds_total/total":              {before["cpu"] / 1e9, after["cpu"] / 1e9},
		"container_memory_usage_bytes":                         {before["usage"] - min(before["usage"], slack), after["usage"] + slack},
		"container_memory_rss":                                 {before["rss"] - min(before["rss"], slack), after["rss"] + slack},
		"container_memory_failures_total/pgfault/container":    {before["faults"], after["faults"]},
		"container_memory_failures_total/pgmajfault/hierarchy": {before["major"], after["major"]},
		"container_memory_total_inactive_file_bytes":           {before["inactive"] - min(before["inactive"], slack), after["inactive"] + slack},
		"container_spec_memory_limit_bytes":                    {128 * mib, 128 * mib},
		"container_spec_cpu_quota":                             {90_000, 90_000},
		"container_spec_cpu_period":                            {100_000, 100_000},
		"container_processes":                                  {1, 1},
		"container_threads":                                    {1, 1},
		"container_file_descriptors":                           {1, 20},
		"container_sockets":                                    {0, 3},
		"container_oom_events_total":                           {0, 0},
		"container_cpu_cfs_periods_total":                      {first, periods()},
		"container_ulimits_soft/max_open_files":                {16, 1 << 30},
		"container_last_seen":                                  {uint64(time.Now().Add(-time.Minute).Unix()), uint64(time.Now().Unix())},
		"container_start_time_seconds":                         {uint64(time.Now().Add(-time.Minute).Unix()), uint64(time.Now().Unix())},
	} {
		got := all[name]
		if got == nil || got.GetValue().GetValue() < want[0] || got.GetValue().GetValue() > want[1] || got.GetTimestamp() != 0 {
			c.t.Errorf("%s: %v, want from %d to %d", name, got, want[0], want[1])
		}
	}
	for name, m := range all {
		if strings.HasPrefix(name, "container_fs_usage_bytes/") && (m.GetTimestamp() == 0 || m.GetValue().GetValue() < 8*mib || m.GetMetricType() != cri.MetricType_GAUGE) {
			c.t.Errorf("layer %v", m)
		}
	}
}

// metrics checks each against its descriptor and the labels that it has to have, and
// returns them by name and the values of their further labels.
func (c *conform) metrics(keys map[string][]string, all []*cri.Metric, labels map[string]string) map[string]*cri.Metric {
	c.t.Helper()
	const base = 6
	byName := map[string]*cri.Metric{}
	for _, m := range all {
		if len(keys[m.GetName()]) != len(m.GetLabelValues()) || m.GetValue() == nil {
			c.t.Errorf("%v does not go with %q", m, keys[m.GetName()])
			continue
		}
		for i, key := range keys[m.GetName()] {
			if want, ok := labels[key]; ok && m.GetLabelValues()[i] != want {
				c.t.Errorf("%s: label %s is %q, want %q", m.GetName(), key, m.GetLabelValues()[i], want)
			}
		}
		byName[strings.Join(append([]string{m.GetName()}, m.GetLabelValues()[base:]...), "/")] = m
	}
	return byName
}
