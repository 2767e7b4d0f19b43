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
	CPU    CPU
	Memory Memory
	// The waits for each resource. A hybrid machine counts them in its v2 hierarchy.
	CPUPressure, MemoryPressure, IOPressure Pressure
}

// CPU has times in nanoseconds. With v1 only Total is in Usage, the rest in Detail.
type CPU struct {
	Total, User, System Count
	// Of the quota, in times. Where there is none v1 has no numbers.
	Periods, ThrottledPeriods, Bursts Count
	Throttled, Burst                  Count
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
	r := g.newReader()
	defer r.close()
	u := g.usage(r)
	return u, g.check(r, u)
}

// check tells a group that has gone from one whose kernel does not count everything.
func (g Group) check(r *reader, u Usage) error {
	if !u.CPU.Total.Known || !u.Memory.Usage.Known {
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
		u.CPU = g.cpuV2(r)
		u.Memory = g.memoryV2(r)
	} else {
		u.CPU.Total = r.count(g.of["cpuacct"], "cpuacct.usage")
		u.Memory = g.memoryV1(r)
	}
	unified := cmp.Or(g.of[wholeTree], g.of[hybridTree])
	u.CPUPressure = r.pressure(unified, "cpu.pressure")
	u.MemoryPressure = r.pressure(unified, "memory.pressure")
	u.IOPressure = r.pressure(unified, "io.pressure")
	return u
}

func (g Group) cpuV2(r *reader) CPU {
	var c CPU
	times := map[string]*Count{
		"usage_usec": &c.Total, "user_usec": &c.User, "system_usec": &c.System, "throttled_usec": &c.Throttled, "burst_usec": &c.Burst,
		"nr_periods": &c.Periods, "nr_throttled": &c.ThrottledPeriods, "nr_bursts": &c.Bursts,
	}
	r.keyed(g.memory, "cpu.stat", times)
	for name, value := range times {
		if strings.HasSuffix(name, "_usec") {
			value.N *= 1000
		}
	}
	return c
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
	m := Memory{Usage: r.count(g.memory, "memory.usage_in_bytes")}
	r.keyed(g.memory, "memory.stat", map[string]*Count{
		"total_rss": &m.RSS, "total_cache": &m.Cache, "total_mapped_file": &m.MappedFile, "total_active_file": &m.ActiveFile,
		"total_inactive_file": &m.InactiveFile, "total_pgfault": &m.PageFaults, "total_pgmajfault": &m.MajorFaults, "total_swap": &m.Swap,
		"hierarchical_memory_limit": &m.Limit, "hierarchical_memsw_limit": &m.MemoryAndSwapLimit,
	})
	m.Limit = g.limitV1(r, m.Limit, "memory.limit_in_bytes")
	m.MemoryAndSwapLimit = g.limitV1(r, m.MemoryAndSwapLimit, "memory.memsw.limit_in_bytes")
	if both := m.MemoryAndSwapLimit; both.Known {
		m.SwapLimit = both
		if both.N != Unlimited {
			m.SwapLimit = known(both.N - min(both.N, m.Limit.N))
		}
	}
	return m
}

// limitV1 is the group's own limit. effective is the least of its own and of those above it:
// where that is none, no file has to be read.
func (g Group) limitV1(r *reader, effective Count, name string) Count {
	if limit := v1Limit(effective); limit == known(Unlimited) {
		return limit
	}
	return v1Limit(r.count(g.memory, name))
}

func v1Limit(c Count) Count {
	if c.N >= v1Unlimited {
		c.N = Unlimited
	}
	return c
}

// tick is USER_HZ's in nanoseconds, which is the same everywhere (time(7)).
const tick = 10_000_000

// Detail is all that the kernel counts of a group, and its limits.
type Detail struct {
	Usage
	Shares, Quota, Period       Count // quota and period in microseconds
	MaxMemory, MemoryFailures   Count // bytes; how often the limit was hit
	MemoryReservation, OOMKills Count
	Threads, ThreadLimit        Count
	Operations                  []Operation // by device and name
	HugePages                   []HugePages // by size
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
	r := g.newReader()
	defer r.close()
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
	// In ticks, but both in one file.
	r.keyed(g.of["cpuacct"], "cpuacct.stat", map[string]*Count{"user": &d.CPU.User, "system": &d.CPU.System})
	d.CPU.User.N, d.CPU.System.N = d.CPU.User.N*tick, d.CPU.System.N*tick
	d.Shares, d.Period = r.count(g.of["cpu"], "cpu.shares"), r.count(g.of["cpu"], "cpu.cfs_period_us")
	if d.Quota = r.count(g.of["cpu"], "cpu.cfs_quota_us"); !d.Quota.Known && d.Period.Known {
		d.Quota = known(Unlimited) // -1
	} else {
		r.keyed(g.of["cpu"], "cpu.stat", map[string]*Count{
			"nr_periods": &d.CPU.Periods, "nr_throttled": &d.CPU.ThrottledPeriods, "throttled_time": &d.CPU.Throttled,
			"nr_bursts": &d.CPU.Bursts, "burst_time": &d.CPU.Burst,
		})
	}
	d.MaxMemory, d.MemoryFailures = r.count(g.memory, "memory.max_usage_in_bytes"), r.count(g.memory, "memory.failcnt")
	d.MemoryReservation = v1Limit(r.count(g.memory, "memory.soft_limit_in_bytes"))
	d.Memory.Kernel = r.count(g.memory, "memory.kmem.usage_in_bytes")
	r.keyed(g.memory, "memory.oom_control", map[string]*Count{"oom_kill": &d.OOMKills})
	d.Operations = g.blkio(r)
	for _, size := range g.pages {
		dir, name := g.of["hugetlb"], "hugetlb."+size+"."
		h := HugePages{Size: size, Max: r.count(dir, name+"max_usage_in_bytes"), Failures: r.count(dir, name+"failcnt")}
		h.Usage = h.Max // none, where there never were any
		if h.Max.N > 0 {
			h.Usage = r.count(dir, name+"usage_in_bytes")
		}
		d.HugePages = append(d.HugePages, h)
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
	parseBlkio(r.file(g.of["blkio"], "blkio.throttle.io_serviced_recursive"), func(o Operation, n uint64) { at(o).Times = n })
	if len(all) > 0 { // else there are no bytes either
		parseBlkio(r.file(g.of["blkio"], "blkio.throttle.io_service_bytes_recursive"), func(o Operation, n uint64) { at(o).Bytes = n })
	}
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
