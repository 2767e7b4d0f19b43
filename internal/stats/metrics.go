package stats

import (
	"context"
	"strconv"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
)

// Metrics reads ready pods and their running containers. One that ends meanwhile is left
// out. Every value but the size of a layer is live.
func (c *Collector) Metrics(ctx context.Context, pods []Pod) ([]*cri.PodSandboxMetrics, error) {
	networks := func() map[string][]netns.Interface { return nil }
	if c.wants(groupNetwork) {
		networks = c.networks(ctx, pods)
	}
	s := c.scrape()
	all := make([]*cri.PodSandboxMetrics, len(pods))
	labels := make([][]string, len(pods))
	err := each(ctx, len(pods), func(i int) {
		p := pods[i]
		var err error
		if labels[i], err = c.podLabels(p); c.skip("pod", p.ID, err) {
			return
		}
		m := &cri.PodSandboxMetrics{PodSandboxId: p.ID}
		for _, v := range p.Containers {
			metrics, err := c.containerMetrics(s, p, v)
			if !c.skip("container", v.ID, err) {
				m.ContainerMetrics = append(m.ContainerMetrics, &cri.ContainerMetrics{ContainerId: v.ID, Metrics: metrics})
			}
		}
		all[i] = m
	})
	byID := networks()
	if err != nil {
		return nil, err
	}
	for i, m := range all {
		if m != nil {
			w := s.writer(labels[i])
			w.network(byID[m.PodSandboxId])
			m.Metrics = w.metrics
		}
	}
	return withoutNil(all), nil
}

func (c *Collector) containerMetrics(s *scrape, p Pod, v *pod.Container) ([]*cri.Metric, error) {
	group, err := c.Cgroups.ContainerGroup(v.CgroupParent, v.ID)
	if err != nil {
		return nil, err
	}
	d, err := group.Detail()
	if err != nil {
		return nil, err
	}
	w := s.writer(containerLabels(p, v, group))
	w.spec(v, d)
	w.cpu(d)
	w.memory(d)
	w.pressure(d.Usage)
	w.diskIO(d.Operations)
	if c.wants(groupDisk) {
		w.disk(c.kept.size(v.ID, time.Now()))
	}
	if c.wants(groupProcess) {
		processes, err := processesOf(group, v.Init.Pid)
		if err != nil {
			return nil, err
		}
		w.processes(processes, d)
	}
	return w.metrics, nil
}

// containerLabels are the values of baseLabels, as cAdvisor has them for CRI-O's containers.
func containerLabels(p Pod, v *pod.Container, group cgroup.Group) []string {
	m, box := v.Config.GetMetadata(), p.Config.GetMetadata()
	return []string{m.GetName(), group.Path(), v.ImageName, pod.KubernetesName(m.GetName(), box, m.GetAttempt()), box.GetNamespace(), box.GetName()}
}

// podLabels name the pod's network as cAdvisor does, which has it from CRI-O's pause container.
func (c *Collector) podLabels(p Pod) ([]string, error) {
	box := p.Config.GetMetadata()
	path, err := c.Cgroups.ContainerPath(p.Config.GetLinux().GetCgroupParent(), p.ID)
	return []string{pod.InfraName, path, "", pod.KubernetesName(pod.InfraName, box, box.GetAttempt()), box.GetNamespace(), box.GetName()}, err
}

// scrape is what the containers of one call share.
type scrape struct {
	kinds   map[string]cri.MetricType // by name, of the metrics that are told
	now     time.Time
	storage fileSystem
	devices sync.Map // of strings: names by "major:minor"
}

func (c *Collector) scrape() *scrape {
	s := &scrape{kinds: map[string]cri.MetricType{}, now: time.Now()}
	for _, d := range descriptors() {
		if c.wants(d.group) {
			s.kinds[d.name] = d.kind
		}
	}
	if c.wants(groupDisk) {
		s.storage = c.fileSystem(s)
	}
	return s
}

// writer collects the metrics of one container or pod.
type writer struct {
	*scrape
	labels  []string // values of baseLabels
	metrics []*cri.Metric
}

// sample is a metric with its value beside it: there are thousands of them in a list.
type sample struct {
	cri.Metric
	value cri.UInt64Value
}

// usualMetrics is how many a container has without many devices.
const usualMetrics = 64

func (s *scrape) writer(labels []string) *writer {
	return &writer{scrape: s, labels: labels, metrics: make([]*cri.Metric, 0, usualMetrics)}
}

// add takes a metric that is told and whose value the kernel has; extra are the values of
// its further labels.
func (w *writer) add(name string, c cgroup.Count, extra ...string) {
	kind, told := w.kinds[name]
	if !told || !c.Known {
		return
	}
	labels := w.labels
	if len(extra) > 0 {
		labels = append(w.labels[:len(w.labels):len(w.labels)], extra...)
	}
	m := &sample{Metric: cri.Metric{Name: name, MetricType: kind, LabelValues: labels}, value: cri.UInt64Value{Value: c.N}}
	m.Value = &m.value
	w.metrics = append(w.metrics, &m.Metric)
}

func number(n uint64) cgroup.Count { return cgroup.Count{N: n, Known: true} }

// seconds is whole, for the proto has no fractions.
func seconds(c cgroup.Count, unit time.Duration) cgroup.Count {
	c.N /= uint64(time.Second / unit)
	return c
}

// limit is 0 where there is none.
func limit(c cgroup.Count) cgroup.Count {
	if c.N == cgroup.Unlimited {
		c.N = 0
	}
	return c
}

func (w *writer) spec(v *pod.Container, d cgroup.Detail) {
	w.add("container_last_seen", number(uint64(w.now.Unix())))
	w.add("container_start_time_seconds", number(uint64(v.StartedAt/int64(time.Second))))
	w.add("container_spec_cpu_period", d.Period)
	if d.Quota.N != cgroup.Unlimited {
		w.add("container_spec_cpu_quota", d.Quota)
	}
	w.add("container_spec_cpu_shares", d.Shares)
	w.add("container_spec_memory_limit_bytes", limit(d.Memory.Limit))
	if d.Memory.MemoryAndSwapLimit.Known {
		w.add("container_spec_memory_swap_limit_bytes", limit(d.Memory.MemoryAndSwapLimit))
	} else {
		w.add("container_spec_memory_swap_limit_bytes", limit(d.Memory.SwapLimit))
	}
	w.add("container_spec_memory_reservation_limit_bytes", limit(d.MemoryReservation))
}

func (w *writer) cpu(d cgroup.Detail) {
	c := d.CPU
	w.add("container_cpu_user_seconds_total", seconds(c.User, time.Nanosecond))
	w.add("container_cpu_system_seconds_total", seconds(c.System, time.Nanosecond))
	w.add("container_cpu_usage_seconds_total", seconds(c.Total, time.Nanosecond), "total")
	if d.Quota.N == cgroup.Unlimited {
		return // nothing throttles
	}
	w.add("container_cpu_cfs_periods_total", c.Periods)
	w.add("container_cpu_cfs_throttled_periods_total", c.ThrottledPeriods)
	w.add("container_cpu_cfs_throttled_seconds_total", seconds(c.Throttled, time.Nanosecond))
	w.add("container_cpu_cfs_burst_periods_total", c.Bursts)
	w.add("container_cpu_cfs_burst_seconds_total", seconds(c.Burst, time.Nanosecond))
}

func (w *writer) memory(d cgroup.Detail) {
	m := d.Memory
	w.add("container_memory_cache", m.Cache)
	w.add("container_memory_rss", m.RSS)
	w.add("container_memory_kernel_usage", m.Kernel)
	w.add("container_memory_mapped_file", m.MappedFile)
	w.add("container_memory_swap", m.Swap)
	w.add("container_memory_failcnt", d.MemoryFailures)
	w.add("container_memory_usage_bytes", m.Usage)
	w.add("container_memory_max_usage_bytes", d.MaxMemory)
	w.add("container_memory_working_set_bytes", m.WorkingSet())
	w.add("container_memory_total_active_file_bytes", m.ActiveFile)
	w.add("container_memory_total_inactive_file_bytes", m.InactiveFile)
	for _, scope := range []string{"container", "hierarchy"} {
		w.add("container_memory_failures_total", m.PageFaults, "pgfault", scope)
		w.add("container_memory_failures_total", m.MajorFaults, "pgmajfault", scope)
	}
	w.add("container_oom_events_total", d.OOMKills)
	for _, h := range d.HugePages {
		w.add("container_hugetlb_failcnt", h.Failures, h.Size)
		w.add("container_hugetlb_usage_bytes", h.Usage, h.Size)
		w.add("container_hugetlb_max_usage_bytes", h.Max, h.Size)
	}
}

func (w *writer) pressure(u cgroup.Usage) {
	for _, p := range []struct {
		resource string
		cgroup.Pressure
	}{{"cpu", u.CPUPressure}, {"memory", u.MemoryPressure}, {"io", u.IOPressure}} {
		if p.Full != nil {
			w.add("container_pressure_"+p.resource+"_stalled_seconds_total", seconds(number(p.Full.Total), time.Microsecond))
		}
		if p.Some != nil {
			w.add("container_pressure_"+p.resource+"_waiting_seconds_total", seconds(number(p.Some.Total), time.Microsecond))
		}
	}
}

func (w *writer) network(all []netns.Interface) {
	for _, i := range all {
		if i.Name == "lo" {
			continue
		}
		for _, way := range []struct {
			name string
			netns.Traffic
		}{{"receive", i.Received}, {"transmit", i.Sent}} {
			prefix := "container_network_" + way.name
			w.add(prefix+"_bytes_total", number(way.Bytes), i.Name)
			w.add(prefix+"_packets_total", number(way.Packets), i.Name)
			w.add(prefix+"_packets_dropped_total", number(way.Dropped), i.Name)
			w.add(prefix+"_errors_total", number(way.Errors), i.Name)
		}
	}
}

func (w *writer) diskIO(operations []cgroup.Operation) {
	for _, o := range operations {
		device := w.device(o.Major, o.Minor)
		switch o.Name {
		case "Read":
			w.add("container_fs_reads_bytes_total", number(o.Bytes), device)
			w.add("container_fs_reads_total", number(o.Times), device)
		case "Write":
			w.add("container_fs_writes_bytes_total", number(o.Bytes), device)
			w.add("container_fs_writes_total", number(o.Times), device)
		}
		w.add("container_blkio_device_usage_total", number(o.Bytes), device, strconv.FormatUint(o.Major, 10), strconv.FormatUint(o.Minor, 10), o.Name)
	}
}

// disk tells the container's layer with the time of its measure.
func (w *writer) disk(l layer) {
	s := w.storage
	w.add("container_fs_inodes_free", s.inodesFree, s.device)
	w.add("container_fs_inodes_total", s.inodes, s.device)
	w.add("container_fs_limit_bytes", s.bytes, s.device)
	if l.measured.IsZero() || s.device == "" {
		return
	}
	before := len(w.metrics)
	w.add("container_fs_usage_bytes", number(l.bytes), s.device)
	for _, m := range w.metrics[before:] {
		m.Timestamp = l.measured.UnixNano()
	}
}

func (w *writer) processes(p processes, d cgroup.Detail) {
	w.add("container_processes", number(uint64(p.count)))
	w.add("container_file_descriptors", p.descriptors)
	w.add("container_sockets", p.sockets)
	w.add("container_threads_max", limit(d.ThreadLimit))
	w.add("container_threads", d.Threads)
	w.add("container_ulimits_soft", p.openFiles, "max_open_files")
}
