package stats

import (
	"os"
	"slices"
	"strings"
	"testing"

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

func TestOpenFiles(t *testing.T) {
	for text, want := range map[string]struct {
		n     uint64
		known bool
	}{
		"Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 4096                 files     \n": {1024, true},
		"Max open files            unlimited            unlimited            files     \n":                                                                                 {},
		"Max open files\n": {},
		"":                 {},
	} {
		if got := openFiles([]byte(text)); got.N != want.n || got.Known != want.known {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
