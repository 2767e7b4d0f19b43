package kubelet

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// exception is a kind of series in which cAdvisor and the daemon may differ.
type exception struct {
	pattern, why string
	// idle series tell nothing, and are excepted for as long as that is so.
	idle bool
}

// onlyCadvisors are series that the daemon does not tell by CRI.
func onlyCadvisors() []exception {
	return []exception{
		{`container="",`, "the pod's own cgroup is the kubelet's; CRI's metrics are those of containers, and of the pod's network", false},
		{`^container_(cpu|memory|fs|spec|file|ulimits|health|tasks|last|oom|processes|sockets|start|threads)\w*\{container="POD",`, "cAdvisor looks at the empty cgroup that is there for the pod's network", false},
		{`^container_cpu_load_(d_)?average_10s`, "always 0: the kubelet's cAdvisor does not measure it", true},
		{`^container_tasks_state`, "always 0, as the load", true},
		{`^container_health_state`, "always -1: pods have no health check of Docker's", true},
		{`^container_fs_(io_current|io_time|read_seconds|reads_merged|reads_total|sector|write_seconds|writes_merged|writes_total)`, "0 where the cgroup has accounted no I/O, which the daemon leaves out", true},
	}
}

// tellsNothing is a value of a series that has nothing to tell.
func tellsNothing(series string, value float64) bool {
	return value == 0 || value == -1 && strings.HasPrefix(series, "container_health_state{")
}

// compareMetrics compares what the kubelet's cAdvisor has told of two pods with what the
// daemon tells of them later: the same names and labels, and values of the same size.
func compareMetrics(t *testing.T, cadvisor, cri string) {
	before, after := podSeries(t, cadvisor), podSeries(t, cri)
	if len(after) < 100 {
		t.Errorf("there are %d series", len(after))
	}
	compared := 0
	for series, was := range before {
		now, both := after[series]
		switch {
		case both:
			compared++
			if why := differs(series, was, now); why != "" {
				t.Errorf("%s: cAdvisor told %g, the daemon tells %g: %s", series, was, now, why)
			}
		case excepted(series, was):
		case version2():
			t.Logf("only cAdvisor tells %s %g", series, was) // the exceptions were found with version 1
		default:
			t.Errorf("only cAdvisor tells %s %g", series, was)
		}
	}
	for series, value := range after {
		if _, both := before[series]; !both {
			t.Errorf("only the daemon tells %s %g", series, value)
		}
	}
	t.Logf("%d series are told by both", compared)
}

func excepted(series string, value float64) bool {
	return slices.ContainsFunc(onlyCadvisors(), func(e exception) bool {
		return regexp.MustCompile(e.pattern).MatchString(series) && (!e.idle || tellsNothing(series, value))
	})
}

// podSeries are the series of pods busy and probes by their names and labels.
func podSeries(t *testing.T, text string) map[string]float64 {
	t.Helper()
	found := map[string]float64{}
	for _, match := range regexp.MustCompile(`(?m)^(\w+\{.*pod="(?:busy|probes)-`+nodeName+`".*\}) (\S+)`).FindAllStringSubmatch(text, -1) {
		value, err := strconv.ParseFloat(match[2], 64)
		check(t, err)
		found[match[1]] = value
	}
	return found
}

// differs tells in which way two values of a series, the second one younger, do not go
// together; "" if they do.
func differs(series string, was, now float64) string {
	name, _, _ := strings.Cut(series, "{")
	far := math.Abs(now - was)
	switch {
	case strings.HasPrefix(name, "container_fs_inodes_"):
		return "" // cAdvisor tells how many the container's layer has, and none as free; the daemon tells what the disk has
	case name == "container_start_time_seconds":
		if far > 2 {
			return "it starts at another time"
		}
	case strings.HasPrefix(name, "container_spec_"), name == "container_fs_limit_bytes", name == "container_ulimits_soft", name == "container_threads_max":
		if far != 0 {
			return "it is a limit"
		}
	case strings.HasSuffix(name, "_seconds_total"):
		if now <= was-1 {
			return "it goes back" // by more than the part of a second that CRI's whole numbers lose
		}
	case strings.HasSuffix(name, "_total"), name == "container_memory_failcnt", name == "container_last_seen":
		if now < was {
			return "it goes back"
		}
	case strings.HasSuffix(name, "_bytes"), strings.HasPrefix(name, "container_memory_"):
		if far > 1<<20 && (now > 4*was || was > 4*now) {
			return "it is a multiple"
		}
	case far > 10 && (now > 4*was || was > 4*now):
		return "it is a multiple"
	}
	return ""
}
