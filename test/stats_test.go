package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPressureOfAHybridNode reads what a node of both cgroup versions counts in its v2
// hierarchy, which the conformance suite does not see with v1.
func TestPressureOfAHybridNode(t *testing.T) {
	const unified = "/sys/fs/cgroup/unified"
	if _, err := os.ReadFile("/proc/pressure/cpu"); err != nil || cgroupV2() {
		t.Skipf("the kernel counts no pressure, or the node is none of v1: %v", err)
	}
	if err := os.Mkdir(unified, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("cgroup2", unified, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if parent := filepath.Join(unified, testParent()); os.Remove(parent) != nil {
			_ = os.Remove(filepath.Join(parent, "monitors"))
			_ = os.Remove(parent)
		}
		if err := errors.Join(unix.Unmount(unified, 0), os.Remove(unified)); err != nil {
			t.Error(err)
		}
	})
	n, image := readyNode(t, options{})
	c := &conform{n, image, "runc"}
	box, pod := c.pod(nil)
	id, _ := c.worker(box, pod)
	dir := c.pressureDir(func(controller string) string { return c.cgroupOf(id, controller) })
	if dir == "" {
		t.Fatal("the container's group has no pressure")
	}
	s := c.containerStats(id)
	c.checkPressure(dir, s.GetCpu().GetPsi(), s.GetMemory().GetPsi(), s.GetIo())
	metrics, err := c.ListPodSandboxMetrics(c.ctx(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range metrics.GetPodMetrics()[0].GetContainerMetrics()[0].GetMetrics() {
		names = append(names, m.GetName())
	}
	for _, name := range []string{"cpu_stalled", "cpu_waiting", "memory_stalled", "memory_waiting", "io_stalled", "io_waiting"} {
		if !slices.Contains(names, "container_pressure_"+name+"_seconds_total") {
			t.Errorf("no metric of %s in %q", name, names)
		}
	}
}

// TestStatisticsWhilePodsComeAndGo guards the lists: what ends while they are made is left
// out of them, and they never fail for it.
func TestStatisticsWhilePodsComeAndGo(t *testing.T) {
	n, image := readyNode(t, options{})
	c := &conform{n, image, "runc"}
	stays := c.sleeper(nil)
	stop := c.churn(3)
	const enough = 3 // containers, of which one stays
	seen := map[string]bool{}
	for end := time.Now().Add(3 * waitTime); len(seen) < enough; {
		if time.Now().After(end) {
			t.Errorf("the lists have seen only %d containers", len(seen))
			break
		}
		containers, err := c.ListContainerStats(c.ctx(), &cri.ListContainerStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		ids := containerIDs(containers.GetStats())
		if !slices.Contains(ids, stays) {
			t.Fatalf("the container that stays is not in %v", containers)
		}
		for _, id := range ids {
			seen[id] = true
		}
		pods, err := c.ListPodSandboxStats(c.ctx(), &cri.ListPodSandboxStatsRequest{})
		if err != nil || len(pods.GetStats()) == 0 {
			t.Fatalf("%v, %v", pods, err)
		}
		metrics, err := c.ListPodSandboxMetrics(c.ctx(), &cri.ListPodSandboxMetricsRequest{})
		if err != nil || len(metrics.GetPodMetrics()) == 0 {
			t.Fatalf("%v, %v", metrics, err)
		}
	}
	stop()
}

// TestStatisticsOfAFullNode allows the statistics of 250 containers 1 % of a core at one
// list every ten seconds. Those of their pods take more, and may not take more than that.
func TestStatisticsOfAFullNode(t *testing.T) {
	if os.Getenv("CRIO_TORTURE") == "" {
		t.Skip("takes a minute: set CRIO_TORTURE=1")
	}
	const pods, lists = 250, 15
	most := map[string]int{"ListContainerStats": 100, "ListPodSandboxStats": 150, "ListPodSandboxMetrics": 250} // ms of CPU
	n, image := readyNode(t, options{plain: true})
	c := &conform{n, image, "runc"}
	for range pods {
		c.sleeper(nil)
	}
	for name, list := range map[string]func() (int, error){
		"ListContainerStats": func() (int, error) {
			a, err := c.ListContainerStats(c.ctx(), &cri.ListContainerStatsRequest{})
			return len(a.GetStats()), err
		},
		"ListPodSandboxStats": func() (int, error) {
			a, err := c.ListPodSandboxStats(c.ctx(), &cri.ListPodSandboxStatsRequest{})
			return len(a.GetStats()), err
		},
		"ListPodSandboxMetrics": func() (int, error) {
			a, err := c.ListPodSandboxMetrics(c.ctx(), &cri.ListPodSandboxMetricsRequest{})
			return len(a.GetPodMetrics()), err
		},
	} {
		var took []time.Duration
		before := n.ticks()
		for range lists {
			begun := time.Now()
			if got, err := list(); err != nil || got != pods {
				t.Fatalf("%s: %d, %v", name, got, err)
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		each := (n.ticks() - before) * 10 / lists // a tick is 10 ms
		t.Logf("%s of %d: median %v, least %v, most %v, CPU %d ms each", name, pods, took[len(took)/2], took[0], took[len(took)-1], each)
		if each > most[name] {
			t.Errorf("a %s costs %d ms of CPU, and may cost %d", name, each, most[name])
		}
	}
}

// ticks of a hundredth of a second are what the daemon has used of the CPUs, fields 14
// and 15 of /proc/<pid>/stat.
func (n *node) ticks() (sum int) {
	n.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.daemon.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	for _, field := range fields[14-3 : 16-3] {
		ticks, err := strconv.Atoi(field)
		if err != nil {
			n.t.Fatal(err)
		}
		sum += ticks
	}
	return sum
}
