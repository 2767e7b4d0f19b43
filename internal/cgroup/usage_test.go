package cgroup

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/crio-minimal/crio/test/fixture"
)

const somePressure = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n"

func TestDetailV2(t *testing.T) {
	root := fixture.Tree(t, map[string]string{
		"c/cpu.stat":            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 10\nnr_throttled 4\nthrottled_usec 7\nnr_bursts 1\nburst_usec 6\n",
		"c/cpu.weight":          "100\n",
		"c/cpu.max":             "max 100000\n",
		"c/cpu.pressure":        somePressure,
		"c/memory.current":      "1000\n",
		"c/memory.max":          "max\n",
		"c/memory.min":          "0\n",
		"c/memory.peak":         "2000\n",
		"c/memory.swap.current": "0\n",
		"c/memory.swap.max":     "4096\n",
		"c/memory.stat":         "anon 1\nfile 2\nkernel 3\nfile_mapped 4\ninactive_file 300\nactive_file 6\npgfault 7\npgmajfault 8\n",
		"c/memory.events":       "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\n",
		"c/io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n",
		"c/pids.current":        "3\n",
		"c/pids.max":            "max\n",
		"c/hugetlb.2MB.current": "2097152\n",
	})
	got, err := (&Tree{version: 2, roots: map[string]string{wholeTree: root}, pages: []string{"2MB"}}).group("c", "c").Detail()
	if err != nil {
		t.Fatal(err)
	}
	want := Detail{
		Usage: Usage{
			CPU: CPU{
				Total: known(5000), User: known(3000), System: known(2000), Throttled: known(7000), Burst: known(6000),
				Periods: known(10), ThrottledPeriods: known(4), Bursts: known(1),
			},
			CPUPressure: Pressure{Some: &Stall{Avg10: 1.5, Avg60: 0.25, Total: 1234}, Full: &Stall{Total: 99}},
			Memory: Memory{
				Usage: known(1000), Limit: known(Unlimited), RSS: known(1), Cache: known(2), Kernel: known(3), MappedFile: known(4), InactiveFile: known(300),
				ActiveFile: known(6), PageFaults: known(7), MajorFaults: known(8), Swap: known(0), SwapLimit: known(4096),
			},
		},
		Shares: known(2597), Quota: known(Unlimited), Period: known(100000), MaxMemory: known(2000), MemoryFailures: known(5), MemoryReservation: known(0),
		OOMKills: known(1), Threads: known(3), ThreadLimit: known(Unlimited),
		Operations: []Operation{{8, 0, "Discard", 5, 6}, {8, 0, "Read", 1, 3}, {8, 0, "Write", 2, 4}},
		HugePages:  []HugePages{{Size: "2MB", Usage: known(2097152)}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if set := got.Memory.WorkingSet(); set != known(700) {
		t.Errorf("working set %v", set)
	}
}

func TestDetailV1(t *testing.T) {
	root := fixture.Tree(t, map[string]string{
		"cpuacct/c/cpuacct.usage":              "5\n",
		"cpuacct/c/cpuacct.stat":               "user 3\nsystem 2\n",
		"cpu/c/cpu.stat":                       "nr_periods 10\nnr_throttled 4\nthrottled_time 7\nnr_bursts 1\nburst_time 6\n",
		"cpu/c/cpu.shares":                     "1024\n",
		"cpu/c/cpu.cfs_period_us":              "100000\n",
		"cpu/c/cpu.cfs_quota_us":               "-1\n",
		"memory/c/memory.usage_in_bytes":       "1000\n",
		"memory/c/memory.limit_in_bytes":       "9000\n",
		"memory/c/memory.memsw.limit_in_bytes": "9500\n",
		"memory/c/memory.soft_limit_in_bytes":  "9223372036854771712\n",
		"memory/c/memory.max_usage_in_bytes":   "2000\n",
		"memory/c/memory.kmem.usage_in_bytes":  "3\n",
		"memory/c/memory.failcnt":              "5\n",
		"memory/c/memory.oom_control":          "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"memory/c/memory.stat": "rss 77\ntotal_rss 1\ntotal_cache 2\ntotal_mapped_file 4\ntotal_inactive_file 3000\ntotal_active_file 6\ntotal_pgfault 7\ntotal_pgmajfault 8\ntotal_swap 9\n" +
			"hierarchical_memory_limit 5000\nhierarchical_memsw_limit 5000\n", // a parent's
		"blkio/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
		"blkio/c/blkio.throttle.io_serviced_recursive":      "8:0 Read 4\n8:0 Write 5\n8:0 Total 9\nTotal 9\n",
		"pids/c/pids.current":                               "3\n",
		"pids/c/pids.max":                                   "50\n",
		"hugetlb/c/hugetlb.2MB.usage_in_bytes":              "1\n",
		"hugetlb/c/hugetlb.2MB.max_usage_in_bytes":          "2\n",
		"hugetlb/c/hugetlb.2MB.failcnt":                     "3\n",
		"unified/c/io.pressure":                             somePressure,
	})
	roots := map[string]string{}
	for _, controller := range []string{"cpuacct", "cpu", "memory", "blkio", "pids", "hugetlb", "unified"} {
		roots[controller] = filepath.Join(root, controller)
	}
	g := (&Tree{version: 1, roots: roots, pages: []string{"2MB"}}).group("c", "c")
	got, err := g.Detail()
	if err != nil {
		t.Fatal(err)
	}
	want := Detail{
		Usage: Usage{
			CPU: CPU{
				Total: known(5), User: known(30_000_000), System: known(20_000_000), // and no quota
			},
			IOPressure: Pressure{Some: &Stall{Avg10: 1.5, Avg60: 0.25, Total: 1234}, Full: &Stall{Total: 99}},
			Memory: Memory{
				Usage: known(1000), Limit: known(9000), RSS: known(1), Cache: known(2), Kernel: known(3), MappedFile: known(4), InactiveFile: known(3000),
				ActiveFile: known(6), PageFaults: known(7), MajorFaults: known(8), Swap: known(9), SwapLimit: known(500), MemoryAndSwapLimit: known(9500),
			},
		},
		Shares: known(1024), Quota: known(Unlimited), Period: known(100000), MaxMemory: known(2000), MemoryFailures: known(5),
		MemoryReservation: known(Unlimited), OOMKills: known(1), Threads: known(3), ThreadLimit: known(50),
		Operations: []Operation{{8, 0, "Read", 1, 4}, {8, 0, "Total", 3, 9}, {8, 0, "Write", 2, 5}},
		HugePages:  []HugePages{{"2MB", known(1), known(2), known(3)}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if set := got.Memory.WorkingSet(); set != known(0) {
		t.Errorf("working set %v of pages that are more than the usage", set)
	}
	if err := os.WriteFile(filepath.Join(root, "cpu/c/cpu.cfs_quota_us"), []byte("50000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want.Quota = known(50000)
	want.CPU.Throttled, want.CPU.Burst = known(7), known(6)
	want.CPU.Periods, want.CPU.ThrottledPeriods, want.CPU.Bursts = known(10), known(4), known(1)
	if got, err = g.Detail(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with a quota: %v, got  %+v\nwant %+v", err, got, want)
	}
	// Neither it nor a parent has a limit.
	const none = "9223372036854771712"
	for name, text := range map[string]string{
		"memory/c/memory.stat": "hierarchical_memory_limit " + none + "\nhierarchical_memsw_limit " + none + "\n", "memory/c/memory.limit_in_bytes": none,
		"memory/c/memory.memsw.limit_in_bytes": none, "blkio/c/blkio.throttle.io_serviced_recursive": "Total 0\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unlimited := known(Unlimited)
	want.Memory = Memory{Usage: known(1000), Limit: unlimited, SwapLimit: unlimited, MemoryAndSwapLimit: unlimited, Kernel: known(3)}
	want.Operations = nil
	if got, err = g.Detail(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("without limits: %v, got  %+v\nwant %+v", err, got, want)
	}
}

// TestUsageOfAGroupThatIsGone tells it from one whose kernel counts less.
func TestUsageOfAGroupThatIsGone(t *testing.T) {
	root := fixture.Tree(t, map[string]string{"c/cpu.stat": "usage_usec 5\n"})
	v2 := &Tree{version: 2, roots: map[string]string{wholeTree: root}}
	if u, err := v2.group("c", "c").Usage(); err != nil || u.CPU != (CPU{Total: known(5000)}) || u.Memory != (Memory{}) || u.IOPressure != (Pressure{}) {
		t.Errorf("without a memory controller: %+v, %v", u, err)
	}
	for name, tree := range map[string]*Tree{"v2": v2, "v1": {version: 1, roots: map[string]string{"memory": root, "pids": root}}} {
		if _, err := tree.group("gone", "gone").Usage(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tree.group("gone", "gone").Detail(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPodGroup(t *testing.T) {
	for _, c := range []struct {
		driver, parent, want string
		own                  bool
	}{
		{Cgroupfs, "/kubepods/podX", "/kubepods/podX", true},
		{Cgroupfs, "", "", false},
		{Cgroupfs, "/", "", false},
		{Cgroupfs, "/../x", "", false},
		{Systemd, "/kubepods.slice/kubepods-podX.slice", "/kubepods.slice/kubepods-podX.slice", true},
		{Systemd, "kubepods-podX.slice", "/kubepods.slice/kubepods-podX.slice", true},
		{Systemd, "", "", false},
		{Systemd, "-.slice", "", false},
		{Systemd, "/kubepods/podX", "", false},
	} {
		g, own := (&Tree{driver: c.driver, version: 2, roots: map[string]string{wholeTree: base}}).PodGroup(c.parent)
		if own != c.own || g.Path() != c.want {
			t.Errorf("%s %q: %q, %v", c.driver, c.parent, g.Path(), own)
		}
	}
}

// FuzzParse: what the kernel writes is trusted, but not always as it is today.
func FuzzParse(f *testing.F) {
	for _, text := range []string{somePressure, "8:0 rbytes=1 wios=4\n", "8:0 Read 1\nTotal 1\n", "max", "some total=\nfull\n", ": Read 1\n", "max:max Read 1"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		parsePressure(text)
		parseCount(text)
		parseBlkio(text, func(o Operation, _ uint64) {
			if o.Major == Unlimited || o.Minor == Unlimited {
				t.Errorf("%+v", o)
			}
		})
		names := map[string]bool{}
		for _, o := range parseIOStat(text) {
			names[o.Name] = true
		}
		if len(names) > 0 && !maps.Equal(names, map[string]bool{"Read": true, "Write": true, "Discard": true}) {
			t.Errorf("operations %v", names)
		}
	})
}
