package stats

import (
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The groups of metrics, as the configuration names them (crio.stats.included_pod_metrics).
const (
	groupCPU      = "cpu"
	groupDisk     = "disk"
	groupDiskIO   = "diskIO"
	groupHugetlb  = "hugetlb"
	groupMemory   = "memory"
	groupNetwork  = "network"
	groupOOM      = "oom"
	groupPressure = "pressure"
	groupProcess  = "process"
	groupSpec     = "spec"
	groupAll      = "all"
)

// descriptor is a metric with the name, help, type and labels that cAdvisor gives it
// (metrics/prometheus.go).
type descriptor struct {
	group, name, help string
	kind              cri.MetricType
	labels            []string // after those of every metric
}

// baseLabels are those that the kubelet has cAdvisor give to every metric of a container.
func baseLabels() []string { return []string{"container", "id", "image", "name", "namespace", "pod"} }

// wants tells whether a group is to be told.
func (c *Collector) wants(group string) bool {
	return slices.Contains(c.Groups, group) || slices.Contains(c.Groups, groupAll)
}

// Descriptors describe all that Metrics may tell. They are the same for as long as the
// collector lives.
func (c *Collector) Descriptors() []*cri.MetricDescriptor {
	var all []*cri.MetricDescriptor
	for _, d := range descriptors() {
		if c.wants(d.group) {
			all = append(all, &cri.MetricDescriptor{Name: d.name, Help: d.help, LabelKeys: slices.Concat(baseLabels(), d.labels)})
		}
	}
	return all
}

func descriptors() []descriptor {
	return slices.Concat(usageDescriptors(), storageDescriptors(), nodeDescriptors())
}

func counter(group, name, help string, labels ...string) descriptor {
	return descriptor{group, name, help, cri.MetricType_COUNTER, labels}
}

func gauge(group, name, help string, labels ...string) descriptor {
	return descriptor{group, name, help, cri.MetricType_GAUGE, labels}
}

// usageDescriptors: time and memory.
func usageDescriptors() []descriptor {
	return []descriptor{
		counter(groupCPU, "container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds."),
		counter(groupCPU, "container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds."),
		counter(groupCPU, "container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "cpu"),
		counter(groupCPU, "container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals."),
		counter(groupCPU, "container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals."),
		counter(groupCPU, "container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled."),
		counter(groupCPU, "container_cpu_cfs_burst_periods_total", "Number of periods when burst occurs."),
		counter(groupCPU, "container_cpu_cfs_burst_seconds_total", "Total time duration the container has been bursted."),
		gauge(groupMemory, "container_memory_cache", "Number of bytes of page cache memory."),
		gauge(groupMemory, "container_memory_rss", "Size of RSS in bytes."),
		gauge(groupMemory, "container_memory_kernel_usage", "Size of kernel memory allocated in bytes."),
		gauge(groupMemory, "container_memory_mapped_file", "Size of memory mapped files in bytes."),
		gauge(groupMemory, "container_memory_swap", "Container swap usage in bytes."),
		counter(groupMemory, "container_memory_failcnt", "Number of memory usage hits limits"),
		gauge(groupMemory, "container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed"),
		gauge(groupMemory, "container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes"),
		gauge(groupMemory, "container_memory_working_set_bytes", "Current working set in bytes."),
		gauge(groupMemory, "container_memory_total_active_file_bytes", "Current total active file in bytes."),
		gauge(groupMemory, "container_memory_total_inactive_file_bytes", "Current total inactive file in bytes."),
		counter(groupMemory, "container_memory_failures_total", "Cumulative count of memory allocation failures.", "failure_type", "scope"),
		counter(groupHugetlb, "container_hugetlb_failcnt", "Number of hugepage usage hits limits", "pagesize"),
		gauge(groupHugetlb, "container_hugetlb_usage_bytes", "Current hugepage usage in bytes", "pagesize"),
		gauge(groupHugetlb, "container_hugetlb_max_usage_bytes", "Maximum hugepage usage recorded in bytes", "pagesize"),
		counter(groupOOM, "container_oom_events_total", "Count of out of memory events observed for the container"),
		counter(groupPressure, "container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion."),
		counter(groupPressure, "container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion."),
		counter(groupPressure, "container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion."),
		counter(groupPressure, "container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion."),
		counter(groupPressure, "container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion."),
		counter(groupPressure, "container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion."),
	}
}

func storageDescriptors() []descriptor {
	return []descriptor{
		gauge(groupDisk, "container_fs_inodes_free", "Number of available Inodes", "device"),
		gauge(groupDisk, "container_fs_inodes_total", "Number of Inodes", "device"),
		gauge(groupDisk, "container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", "device"),
		gauge(groupDisk, "container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", "device"),
		counter(groupDiskIO, "container_fs_reads_bytes_total", "Cumulative count of bytes read", "device"),
		counter(groupDiskIO, "container_fs_reads_total", "Cumulative count of reads completed", "device"),
		counter(groupDiskIO, "container_fs_writes_bytes_total", "Cumulative count of bytes written", "device"),
		counter(groupDiskIO, "container_fs_writes_total", "Cumulative count of writes completed", "device"),
		counter(groupDiskIO, "container_blkio_device_usage_total", "Blkio Device bytes usage", "device", "major", "minor", "operation"),
	}
}

// nodeDescriptors: network, processes, and what was asked for.
func nodeDescriptors() []descriptor {
	all := []descriptor{
		gauge(groupProcess, "container_processes", "Number of processes running inside the container."),
		gauge(groupProcess, "container_file_descriptors", "Number of open file descriptors for the container."),
		gauge(groupProcess, "container_sockets", "Number of open sockets for the container."),
		gauge(groupProcess, "container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero"),
		gauge(groupProcess, "container_threads", "Number of threads running inside the container"),
		gauge(groupProcess, "container_ulimits_soft", "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice", "ulimit"),
		gauge(groupSpec, "container_last_seen", "Last time a container was seen by the exporter"),
		gauge(groupSpec, "container_start_time_seconds", "Start time of the container since unix epoch in seconds."),
		gauge(groupSpec, "container_spec_cpu_period", "CPU period of the container."),
		gauge(groupSpec, "container_spec_cpu_quota", "CPU quota of the container."),
		gauge(groupSpec, "container_spec_cpu_shares", "CPU share of the container."),
		gauge(groupSpec, "container_spec_memory_limit_bytes", "Memory limit for the container."),
		gauge(groupSpec, "container_spec_memory_swap_limit_bytes", "Memory swap limit for the container."),
		gauge(groupSpec, "container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container."),
	}
	for _, way := range []struct{ name, doing string }{{"receive", "receiv"}, {"transmit", "transmitt"}} {
		for _, what := range []struct{ name, help string }{
			{"bytes", "Cumulative count of bytes " + way.doing + "ed"},
			{"packets", "Cumulative count of packets " + way.doing + "ed"},
			{"packets_dropped", "Cumulative count of packets dropped while " + way.doing + "ing"},
			{"errors", "Cumulative count of errors encountered while " + way.doing + "ing"},
		} {
			all = append(all, counter(groupNetwork, "container_network_"+way.name+"_"+what.name+"_total", what.help, "interface"))
		}
	}
	return all
}
