package kubelet

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// usage is what the tests read of an object in the kubelet's summary
// (k8s.io/kubelet/pkg/apis/stats/v1alpha1), nothing in it being an error.
type usage struct {
	Name   string
	PodRef struct{ Name string }
	CPU    struct {
		UsageNanoCores, UsageCoreNanoSeconds uint64
	}
	Memory       struct{ WorkingSetBytes, UsageBytes, RSSBytes uint64 }
	Rootfs, Logs struct {
		UsedBytes, InodesUsed, CapacityBytes uint64
	}
	Network      struct{ RxBytes, TxBytes uint64 }
	Volume       []volumeUsage
	ProcessStats struct {
		ProcessCount uint64 `json:"process_count"`
	} `json:"process_stats"`
	Containers []usage
}

type volumeUsage struct {
	Name      string
	UsedBytes uint64
}

// summary is the kubelet's /stats/summary.
type summary struct {
	Node struct {
		usage
		Runtime struct {
			ImageFs, ContainerFs volumeUsage
		}
	}
	Pods []usage
}

// statisticsByName: at a socket of this name the kubelet's cAdvisor reads cgroups itself,
// and whose they are, without which nothing has a pod's name, it asks the daemon over HTTP.
func statisticsByName(t *testing.T, n *node) {
	n.statistics(t)
	for _, name := range n.called(t) {
		if strings.Contains(name, "Stats") || strings.Contains(name, "Metric") || strings.HasPrefix(name, "Stream") {
			t.Errorf("the kubelet has asked by CRI: %s", name)
		}
	}
	if !strings.Contains(n.kubelet.sinceMark(t), "Registration of the crio container factory successfully") {
		t.Error("cAdvisor does not know the daemon")
	}
	body, err := n.get("/metrics/cadvisor")
	check(t, err)
	n.write("cadvisor.txt", string(body))
}

// statisticsByCRI: the kubelet asks for lists.
func statisticsByCRI(t *testing.T, n *node) {
	n.statistics(t)
	n.asks(t, "ListPodSandboxStats", "ListMetricDescriptors", "ListPodSandboxMetrics")
	n.doesNotAsk(t, "Stream")
}

// statisticsInStreams: the kubelet asks for the same lists, and all others, as streams.
func statisticsInStreams(t *testing.T, n *node) {
	n.statistics(t)
	n.asks(t, "StreamPodSandboxStats", "ListMetricDescriptors", "StreamPodSandboxMetrics", "StreamPodSandboxes", "StreamContainers", "StreamImages")
	n.doesNotAsk(t, "ListPodSandboxStats", "ListContainerStats", "ListPodSandboxMetrics")
	body, err := n.get("/metrics/cadvisor")
	check(t, err)
	compareMetrics(t, readFile(t, n.path("cadvisor.txt")), string(body))
}

// asks looks for calls that the kubelet has made since it was started.
func (n *node) asks(t *testing.T, names ...string) {
	t.Helper()
	n.await("calls of the kubelet", func() error {
		called := n.called(t)
		for _, name := range names {
			if !slices.Contains(called, name) {
				return fmt.Errorf("it has not asked for %s", name)
			}
		}
		return nil
	})
}

// doesNotAsk looks that it has made no call whose name begins with one of these.
func (n *node) doesNotAsk(t *testing.T, prefixes ...string) {
	t.Helper()
	for _, name := range n.called(t) {
		if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			t.Errorf("the kubelet has asked for %s", name)
		}
	}
}

// statistics asks for what the kubelet knows of a pod that is busy, of its container, and
// of the node.
func (n *node) statistics(t *testing.T) {
	n.await("the summary", func() error {
		var s summary
		body, err := n.get("/stats/summary")
		if err == nil {
			err = json.Unmarshal(body, &s)
		}
		if err != nil {
			return err
		}
		return s.check()
	})
	const own = `container="main",.*pod="busy-` + nodeName + `"`
	for path, metrics := range map[string]map[string]float64{
		"/metrics/resource": {
			`container_cpu_usage_seconds_total{` + own: 0.01, `container_memory_working_set_bytes{` + own: 4096,
			`container_start_time_seconds{` + own: 1, `pod_cpu_usage_seconds_total{.*pod="busy-`: 0.01,
			`pod_memory_working_set_bytes{.*pod="busy-`: 4096, `node_cpu_usage_seconds_total`: 1, `node_memory_working_set_bytes`: 4096,
		},
		"/metrics/cadvisor": {
			`container_cpu_usage_seconds_total{` + own: 0.01, `container_memory_working_set_bytes{` + own: 4096,
			`container_spec_memory_limit_bytes{` + own: 64 << 20, `container_start_time_seconds{` + own: 1,
			`container_cpu_cfs_throttled_periods_total{` + own: 1, `container_processes{` + own: 1,
			`container_fs_usage_bytes{` + own:                                  4 << 20,
			`container_network_receive_bytes_total{.*pod="probes-` + nodeName:  1,
			`container_network_transmit_bytes_total{.*pod="probes-` + nodeName: 1,
		},
	} {
		n.await(path, func() error {
			body, err := n.get(path)
			if err != nil {
				return err
			}
			for name, least := range metrics {
				if err := atLeast(string(body), name, least); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// check compares what pods are made to use with what is told of them.
func (s summary) check() error {
	pods := map[string]usage{}
	for _, p := range s.Pods {
		pods[strings.TrimSuffix(p.PodRef.Name, "-"+nodeName)] = p
	}
	busy, probes := pods["busy"], pods["probes"]
	if len(busy.Containers) != 1 || len(busy.Volume) == 0 {
		return fmt.Errorf("pod busy has %d containers and %d volumes", len(busy.Containers), len(busy.Volume))
	}
	main := busy.Containers[0]
	// Its limits are 50m and 64Mi.
	for _, tt := range []struct {
		what      string
		got, most uint64
	}{
		{"the pod's CPU", busy.CPU.UsageNanoCores, 100_000_000}, {"the container's CPU", main.CPU.UsageNanoCores, 100_000_000},
		{"the pod's memory", busy.Memory.WorkingSetBytes, 64 << 20}, {"the container's memory", main.Memory.WorkingSetBytes, 64 << 20},
		{"the container's memory with all caches", main.Memory.UsageBytes, 64 << 20},
	} {
		if tt.got > tt.most {
			return fmt.Errorf("%s is %d, more than %d", tt.what, tt.got, tt.most)
		}
	}
	for _, tt := range []struct {
		what       string
		got, least uint64
	}{
		{"the node's CPU", s.Node.CPU.UsageNanoCores, 1}, {"the node's memory", s.Node.Memory.WorkingSetBytes, 1 << 20},
		{"images", s.Node.Runtime.ImageFs.UsedBytes, 1 << 20}, {"containers", s.Node.Runtime.ContainerFs.UsedBytes, 1},
		{"the pod's CPU", busy.CPU.UsageNanoCores, 1_000_000}, {"the pod's CPU time", busy.CPU.UsageCoreNanoSeconds, 10_000_000},
		{"the pod's memory", busy.Memory.WorkingSetBytes, 4096}, {"the pod's processes", busy.ProcessStats.ProcessCount, 1},
		{"the container's CPU", main.CPU.UsageNanoCores, 1_000_000}, {"the container's CPU time", main.CPU.UsageCoreNanoSeconds, 10_000_000},
		{"the container's memory", main.Memory.WorkingSetBytes, 4096}, {"the container's layer", main.Rootfs.UsedBytes, 4 << 20},
		{"the layer's inodes", main.Rootfs.InodesUsed, 1}, {"the disk of the layer", main.Rootfs.CapacityBytes, 1 << 30},
		{"the container's log", main.Logs.UsedBytes, 1}, {"the pod's volume", busy.volume("scratch"), 2 << 20},
		{"bytes received", probes.Network.RxBytes, 100}, {"bytes sent", probes.Network.TxBytes, 100},
	} {
		if tt.got < tt.least {
			return fmt.Errorf("%s is %d, less than %d", tt.what, tt.got, tt.least)
		}
	}
	return nil
}

func (u usage) volume(name string) uint64 {
	for _, v := range u.Volume {
		if v.Name == name {
			return v.UsedBytes
		}
	}
	return 0
}

// atLeast finds a metric in the text of Prometheus, by its name and how its labels begin (a
// regular expression), whose value is large enough.
func atLeast(text, name string, least float64) error {
	metric, labels, _ := strings.Cut(name, "{")
	pattern := "(?m)^" + metric + `(?:\{.*` + labels + `.*\})? (\S+)`
	largest, found := 0.0, false
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		value, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		largest, found = max(largest, value), true
	}
	if !found || largest < least {
		return fmt.Errorf("%s is %g (found: %t), less than %g", name, largest, found, least)
	}
	return nil
}
