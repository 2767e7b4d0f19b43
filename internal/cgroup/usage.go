package cgroup

import (
	"cmp"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Usage is what the processes of a group, and of those inside it, use and have used.
type Usage struct {
	// CPU is the time on all CPUs, in nanoseconds.
	CPU    Count
	Memory Memory
	// The waits for each resource. A hybrid machine counts them in its v2 hierarchy.
	CPUPressure, MemoryPressure, IOPressure Pressure
}

// Memory in bytes, and faults in times. A limit may be Unlimited.
type Memory struct {
	Usage, Limit                        Count
	RSS, Cache, MappedFile              Count
	ActiveFile, InactiveFile            Count
	PageFaults, MajorFaults             Count // the first count the second, too
	Kernel                              Count
	Swap, SwapLimit, MemoryAndSwapLimit Count // the last one in v1 alone
}

// WorkingSet is what the kubelet evicts by: the usage without the file pages that the
// kernel would drop first.
func (m Memory) WorkingSet() Count {
	if !m.Usage.Known || !m.InactiveFile.Known {
		return m.Usage
	}
	return known(m.Usage.N - min(m.Usage.N, m.InactiveFile.N))
}

// Usage reads the group's counters. The error is fs.ErrNotExist when the group is gone.
func (g Group) Usage() (Usage, error) {
	r := newReader()
	u := g.usage(r)
	return u, g.check(r, u)
}

// check tells a group that has gone from one whose kernel does not count everything.
func (g Group) check(r *reader, u Usage) error {
	if !u.CPU.Known || !u.Memory.Usage.Known {
		if missing(g.memory) {
			return fmt.Errorf("cgroup %s: %w", g.path, fs.ErrNotExist)
		}
	}
	if r.err != nil {
		return fmt.Errorf("cgroup %s: %w", g.path, r.err)
	}
	return nil
}

func (g Group) usage(r *reader) Usage {
	var u Usage
	if g.version == 2 {
		r.keyed(g.memory, "cpu.stat", map[string]*Count{"usage_usec": &u.CPU})
		u.CPU.N *= 1000
		u.Memory = g.memoryV2(r)
	} else {
		u.CPU = r.count(g.of["cpuacct"], "cpuacct.usage")
		u.Memory = g.memoryV1(r)
	}
	unified := cmp.Or(g.of[wholeTree], g.of["unified"])
	u.CPUPressure = r.pressure(unified, "cpu.pressure")
	u.MemoryPressure = r.pressure(unified, "memory.pressure")
	u.IOPressure = r.pressure(unified, "io.pressure")
	return u
}

func (g Group) memoryV2(r *reader) Memory {
	m := Memory{
		Usage: r.count(g.memory, "memory.current"), Limit: r.count(g.memory, "memory.max"),
		Swap: r.count(g.memory, "memory.swap.current"), SwapLimit: r.count(g.memory, "memory.swap.max"),
	}
	r.keyed(g.memory, "memory.stat", map[string]*Count{
		"anon": &m.RSS, "file": &m.Cache, "file_mapped": &m.MappedFile, "active_file": &m.ActiveFile, "inactive_file": &m.InactiveFile,
		"pgfault": &m.PageFaults, "pgmajfault": &m.MajorFaults, "kernel": &m.Kernel,
	})
	return m
}

func (g Group) memoryV1(r *reader) Memory {
	m := Memory{
		Usage: r.count(g.memory, "memory.usage_in_bytes"), Limit: v1Limit(r.count(g.memory, "memory.limit_in_bytes")),
		MemoryAndSwapLimit: v1Limit(r.count(g.memory, "memory.memsw.limit_in_bytes")),
	}
	r.keyed(g.memory, "memory.stat", map[string]*Count{
		"total_rss": &m.RSS, "total_cache": &m.Cache, "total_mapped_file": &m.MappedFile, "total_active_file": &m.ActiveFile,
		"total_inactive_file": &m.InactiveFile, "total_pgfault": &m.PageFaults, "total_pgmajfault": &m.MajorFaults, "total_swap": &m.Swap,
	})
	if both := m.MemoryAndSwapLimit; both.Known {
		m.SwapLimit = both
		if both.N != Unlimited {
			m.SwapLimit = known(both.N - min(both.N, m.Limit.N))
		}
	}
	return m
}

func v1Limit(c Count) Count {
	if c.N >= v1Unlimited {
		c.N = Unlimited
	}
	return c
}

// Detail is all that the kernel counts of a group, and its limits.
type Detail struct {
	Usage
	// CPU times in nanoseconds.
	User, System, Throttled, Burst    Count
	Periods, ThrottledPeriods, Bursts Count
	Shares, Quota, Period             Count // quota and period in microseconds
	MaxMemory, MemoryFailures         Count // bytes; how often the limit was hit
	MemoryReservation, OOMKills       Count
	Threads, ThreadLimit              Count
	Operations                        []Operation // by device and name
	HugePages                         []HugePages // by size
}

// HugePages of one size, in bytes.
type HugePages struct {
	// Size as in the names of the files: 2MB.
	Size       string
	Usage, Max Count
	// Failures is how often the limit was hit.
	Failures Count
}

// Detail reads everything. The error is fs.ErrNotExist when the group is gone.
func (g Group) Detail() (Detail, error) {
	r := newReader()
	d := Detail{Usage: g.usage(r)}
	if g.version == 2 {
		g.detailV2(r, &d)
	} else {
		g.detailV1(r, &d)
	}
	slices.SortFunc(d.Operations, func(a, b Operation) int {
		return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor), cmp.Compare(a.Name, b.Name))
	})
	d.Threads, d.ThreadLimit = r.count(g.pids, "pids.current"), r.count(g.pids, "pids.max")
	return d, g.check(r, d.Usage)
}

func (g Group) detailV2(r *reader, d *Detail) {
	r.keyed(g.memory, "cpu.stat", map[string]*Count{
		"user_usec": &d.User, "system_usec": &d.System, "throttled_usec": &d.Throttled, "burst_usec": &d.Burst,
		"nr_periods": &d.Periods, "nr_throttled": &d.ThrottledPeriods, "nr_bursts": &d.Bursts,
	})
	for _, c := range []*Count{&d.User, &d.System, &d.Throttled, &d.Burst} {
		c.N *= 1000
	}
	d.Shares = r.count(g.memory, "cpu.weight")
	if d.Shares.Known {
		// The scale of v1, 2 to 262144, from 1 to 10000: the inverse of what runtimes write.
		d.Shares.N = 2 + (max(d.Shares.N, 1)-1)*262142/9999
	}
	if quota, period, ok := strings.Cut(strings.TrimSpace(string(r.file(g.memory, "cpu.max"))), " "); ok {
		d.Quota, d.Period = parseCount([]byte(quota)), parseCount([]byte(period))
	}
	d.MaxMemory, d.MemoryReservation = r.count(g.memory, "memory.peak"), r.count(g.memory, "memory.min")
	r.keyed(g.memory, "memory.events", map[string]*Count{"max": &d.MemoryFailures, "oom_kill": &d.OOMKills})
	d.Operations = parseIOStat(r.file(g.memory, "io.stat"))
	for _, size := range g.pages {
		h := HugePages{Size: size, Usage: r.count(g.memory, "hugetlb."+size+".current")}
		r.keyed(g.memory, "hugetlb."+size+".events", map[string]*Count{"max": &h.Failures})
		d.HugePages = append(d.HugePages, h)
	}
}

func (g Group) detailV1(r *reader, d *Detail) {
	d.User, d.System = r.count(g.of["cpuacct"], "cpuacct.usage_user"), r.count(g.of["cpuacct"], "cpuacct.usage_sys")
	r.keyed(g.of["cpu"], "cpu.stat", map[string]*Count{
		"nr_periods": &d.Periods, "nr_throttled": &d.ThrottledPeriods, "throttled_time": &d.Throttled,
		"nr_bursts": &d.Bursts, "burst_time": &d.Burst,
	})
	d.Shares, d.Period = r.count(g.of["cpu"], "cpu.shares"), r.count(g.of["cpu"], "cpu.cfs_period_us")
	if d.Quota = r.count(g.of["cpu"], "cpu.cfs_quota_us"); !d.Quota.Known && d.Period.Known {
		d.Quota = known(Unlimited) // -1
	}
	d.MaxMemory, d.MemoryFailures = r.count(g.memory, "memory.max_usage_in_bytes"), r.count(g.memory, "memory.failcnt")
	d.MemoryReservation = v1Limit(r.count(g.memory, "memory.soft_limit_in_bytes"))
	d.Memory.Kernel = r.count(g.memory, "memory.kmem.usage_in_bytes")
	r.keyed(g.memory, "memory.oom_control", map[string]*Count{"oom_kill": &d.OOMKills})
	d.Operations = g.blkio(r)
	for _, size := range g.pages {
		dir, name := g.of["hugetlb"], "hugetlb."+size+"."
		d.HugePages = append(d.HugePages, HugePages{
			Size: size, Usage: r.count(dir, name+"usage_in_bytes"), Max: r.count(dir, name+"max_usage_in_bytes"), Failures: r.count(dir, name+"failcnt"),
		})
	}
}

// blkio joins bytes and times, which v1 has in two files.
func (g Group) blkio(r *reader) []Operation {
	var all []Operation
	at := func(o Operation) *Operation {
		for i := range all {
			if all[i].Major == o.Major && all[i].Minor == o.Minor && all[i].Name == o.Name {
				return &all[i]
			}
		}
		all = append(all, o)
		return &all[len(all)-1]
	}
	parseBlkio(r.file(g.of["blkio"], "blkio.throttle.io_service_bytes_recursive"), func(o Operation, n uint64) { at(o).Bytes = n })
	parseBlkio(r.file(g.of["blkio"], "blkio.throttle.io_serviced_recursive"), func(o Operation, n uint64) { at(o).Times = n })
	return all
}

// pageSizes are the sizes of huge pages that the kernel has, as the controller names them.
func pageSizes() []string {
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	var sizes []string
	for _, dir := range dirs {
		kib := parseCount([]byte(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB")))
		switch {
		case !kib.Known:
		case kib.N >= 1<<20:
			sizes = append(sizes, fmt.Sprintf("%dGB", kib.N>>20))
		case kib.N >= 1<<10:
			sizes = append(sizes, fmt.Sprintf("%dMB", kib.N>>10))
		default:
			sizes = append(sizes, fmt.Sprintf("%dKB", kib.N))
		}
	}
	return sizes
}
