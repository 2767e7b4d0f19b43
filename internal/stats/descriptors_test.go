package stats

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// untold are the metrics that cAdvisor has for the groups that the kubelet takes, and
// that a cgroup of a container has no numbers for: cAdvisor's own come from the whole
// disk, from drivers with file systems of their own, or from health checks of docker.
var untold = []string{
	"container_fs_io_cost_indebt_seconds_total", "container_fs_io_cost_indelay_seconds_total", "container_fs_io_cost_usage_seconds_total",
	"container_fs_io_cost_wait_seconds_total", "container_fs_io_current", "container_fs_io_time_seconds_total",
	"container_fs_io_time_weighted_seconds_total", "container_fs_read_seconds_total", "container_fs_reads_merged_total",
	"container_fs_sector_reads_total", "container_fs_sector_writes_total", "container_fs_write_seconds_total",
	"container_fs_writes_merged_total", "container_health_state",
}

// TestDescriptorsAreCadvisors: what a dashboard asks for has the same name, type, labels
// and meaning from either. testdata/cadvisor.tsv is of cAdvisor 0.56.2
// (metrics/prometheus.go): name, type, labels, help.
func TestDescriptorsAreCadvisors(t *testing.T) {
	text, err := os.ReadFile("testdata/cadvisor.tsv")
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]string{}
	for _, d := range descriptors() {
		ours[d.name] = strings.Join([]string{d.name, strings.ToLower(d.kind.String()), strings.Join(d.labels, ","), d.help}, "\t")
	}
	if len(ours) != len(descriptors()) {
		t.Error("a name is there twice")
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		name, _, _ := strings.Cut(line, "\t")
		switch {
		case ours[name] == "" && !slices.Contains(untold, name):
			t.Errorf("not told: %s", line)
		case ours[name] != "" && ours[name] != line:
			t.Errorf("ours: %s\ncAdvisor's: %s", ours[name], line)
		}
		delete(ours, name)
	}
	for _, line := range ours {
		t.Errorf("cAdvisor does not have %s", line)
	}
}

func TestGroupsOfMetrics(t *testing.T) {
	groups := map[string]int{}
	for _, d := range descriptors() {
		groups[d.group]++
	}
	for group, want := range groups {
		c := New(Options{Groups: []string{group}, Storage: t.TempDir()})
		got := c.Descriptors()
		if len(got) != want || !slices.Equal(got[0].GetLabelKeys()[:len(baseLabels())], baseLabels()) {
			t.Errorf("group %s has %v", group, got)
		}
		if told := c.scrape().kinds; len(told) != want {
			t.Errorf("group %s tells %v", group, told)
		}
		c.Close()
	}
	if got := New(Options{Groups: []string{groupAll}}).Descriptors(); len(got) != len(descriptors()) {
		t.Errorf("all are %d", len(got))
	}
	if got := New(Options{}).Descriptors(); got != nil {
		t.Errorf("none are %v", got)
	}
}

// TestAdd guards the labels that metrics of one container share.
func TestAdd(t *testing.T) {
	w := &writer{scrape: &scrape{kinds: map[string]cri.MetricType{"a": cri.MetricType_GAUGE}}, labels: append(make([]string, 0, 8), "x")}
	w.add("a", number(1), "one")
	w.add("a", number(2), "two")
	w.add("a", number(3))
	w.add("b", number(4))
	var got []string
	for _, m := range w.metrics {
		got = append(got, strings.Join(m.GetLabelValues(), ","))
	}
	if !slices.Equal(got, []string{"x,one", "x,two", "x"}) {
		t.Errorf("labels %q", got)
	}
}

func TestProcessesOfOne(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command("cat")
	cmd.ExtraFiles = []*os.File{theirs}
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() {
		in.Close()
		_ = cmd.Wait()
		if got := openFiles(pid); got.Known {
			t.Errorf("open files of nobody: %+v", got)
		}
	}()
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1234, Max: 4096}, nil); err != nil {
		t.Fatal(err)
	}
	if got := openFiles(pid); got != number(1234) {
		t.Errorf("open files: %+v", got)
	}
	// It has begun, and opens no files any more, once it answers.
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	inherited, err := filepath.Glob(dir + "/*") // beside the four that are the test's
	if err != nil {
		t.Fatal(err)
	}
	p := processes{descriptors: number(0), sockets: number(0)}
	p.look(dir)
	sockets := slices.DeleteFunc(slices.Clone(inherited), func(path string) bool {
		target, err := os.Readlink(path)
		return err != nil || !strings.HasPrefix(target, "socket:")
	})
	if len(inherited) < 4 || len(sockets) < 1 || p.descriptors != number(uint64(len(inherited))) || p.sockets != number(uint64(len(sockets))) {
		t.Errorf("%+v, want %q, of which sockets %q", p, inherited, sockets)
	}
	p.descriptors.N = mostDescriptors
	if p.look(dir); p.descriptors.Known || p.sockets.Known {
		t.Errorf("too many, but known: %+v", p)
	}
}
