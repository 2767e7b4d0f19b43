package spec

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrRecursiveReadOnly: the handler's runtime cannot make a mount recursively read-only.
var ErrRecursiveReadOnly = errors.New("the runtime handler does not support recursive read-only mounts")

// Bounds of oom_score_adj (proc(5)).
const (
	oomScoreAdjMin = -1000
	oomScoreAdjMax = 1000
)

// devices allows the runtime's own default nodes and those the pod asks for; a
// privileged container may use any, unless its handler keeps them from it.
func (b *builder) devices() error {
	l, all := b.g.Config.Linux, b.privileged() && !b.Node.WithoutNodeDevices
	l.Devices = nil
	l.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: all, Access: "rwm"}}}
	for _, d := range b.Devices {
		if strings.Trim(d.Access, "rwm") != "" || d.Access == "" {
			return fmt.Errorf("devices: permissions %q of %s are not one or more of r, w, m", d.Access, d.Path)
		}
		l.Devices = append(l.Devices, d.LinuxDevice)
		if all {
			continue
		}
		major, minor := d.Major, d.Minor
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: d.Access,
		})
	}
	return nil
}

func (b *builder) resources() error {
	g, r := b.g, b.Config.GetLinux().GetResources()
	g.SetLinuxCgroupsPath(b.CgroupsPath)
	if b.Node.PidsLimit > 0 {
		g.SetLinuxResourcesPidsLimit(b.Node.PidsLimit)
	}
	return b.limits(r)
}

// limits are what an update may change, too.
func (b *builder) limits(r *cri.LinuxContainerResources) error {
	if err := CheckResources(r, b.Node); err != nil {
		return fmt.Errorf("resources: %w", err)
	}
	var left []string
	b.inForce, left = InForce(r, b.Node)
	b.clamped = append(b.clamped, left...)
	b.g.SetProcessOOMScoreAdj(int(max(r.GetOomScoreAdj(), b.Node.MinOOMScoreAdj)))
	if err := Resources(b.g.Config.Linux.Resources, b.inForce, b.Node.CgroupV2); err != nil {
		return fmt.Errorf("resources: %w", err)
	}
	return nil
}

// Resources writes the fields that are set into out. A zero field is "not
// specified" (LinuxContainerResources) and leaves out as it is. The numbers and sets
// have to be such as CheckResources accepts.
func Resources(out *specs.LinuxResources, r *cri.LinuxContainerResources, cgroupV2 bool) error {
	cpu(out, r)
	if err := memory(out, r); err != nil {
		return err
	}
	if len(r.GetHugepageLimits()) > 0 {
		out.HugepageLimits = nil
	}
	for _, h := range r.GetHugepageLimits() {
		if !pageSize(h.GetPageSize()) {
			return fmt.Errorf("hugepage_limits: page_size %q is not of the form 2MB", h.GetPageSize())
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if len(r.GetUnified()) > 0 {
		if !cgroupV2 {
			return errors.New("unified needs cgroup v2, this node has v1")
		}
		for key := range r.GetUnified() {
			if key == "" || strings.Contains(key, "/") {
				return fmt.Errorf("unified: %q is not the name of a file of a cgroup", key)
			}
		}
		out.Unified = r.GetUnified()
	}
	return nil
}

// pageSize: "<size><unit-prefix>B" (HugepageLimit.page_size), as in the names of the
// kernel's files.
func pageSize(s string) bool {
	number, ok := strings.CutSuffix(s, "B")
	if !ok || number == "" || !strings.Contains("KMG", number[len(number)-1:]) {
		return false
	}
	_, err := strconv.ParseUint(number[:len(number)-1], 10, 32)
	return err == nil
}

func cpu(out *specs.LinuxResources, r *cri.LinuxContainerResources) {
	c := *cmp.Or(out.CPU, &specs.LinuxCPU{})
	c.Cpus = cmp.Or(r.GetCpusetCpus(), c.Cpus)
	c.Mems = cmp.Or(r.GetCpusetMems(), c.Mems)
	if v := r.GetCpuPeriod(); v != 0 {
		c.Period = ptr(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		c.Quota = ptr(v)
	}
	if v := r.GetCpuShares(); v != 0 {
		c.Shares = ptr(uint64(v))
	}
	out.CPU = &c
}

func memory(out *specs.LinuxResources, r *cri.LinuxContainerResources) error {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit == 0 && swap == 0 {
		return nil
	}
	m := *cmp.Or(out.Memory, &specs.LinuxMemory{})
	if limit != 0 {
		m.Limit = ptr(limit)
	}
	if swap != 0 {
		m.Swap = ptr(swap)
	}
	// The limit is that of memory and swap together: the kernel refuses less than the
	// memory with cgroup v1, the runtimes with v2.
	if swap != 0 && (m.Limit == nil || swap > 0 && (swap < *m.Limit || *m.Limit == unlimited)) {
		return fmt.Errorf("memory_swap_limit_in_bytes %d needs a memory_limit_in_bytes that is not above it", swap)
	}
	out.Memory = &m
	return nil
}

func (b *builder) rlimits() {
	b.g.ClearProcessRlimits()
	for _, l := range b.Node.Rlimits {
		if most, bounded := b.Node.HardLimits[l.Type]; bounded && l.Hard > most {
			b.clamp("%s %d: without CAP_SYS_RESOURCE the daemon cannot go above its own %d", l.Type, l.Hard, most)
			l.Hard, l.Soft = most, min(l.Soft, most)
		}
		b.g.AddProcessRlimits(l.Type, l.Hard, l.Soft)
	}
}

func ptr[T any](v T) *T { return &v }

// Rlimit parses one entry of default_ulimits, "name=soft:hard".
func Rlimit(s string) (specs.POSIXRlimit, error) {
	bad := fmt.Errorf("ulimit %q is not of the form name=soft:hard, as in nofile=1024:4096", s)
	name, values, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return specs.POSIXRlimit{}, bad
	}
	softText, hardText, ok := strings.Cut(values, ":")
	if !ok {
		hardText = softText
	}
	soft, err1 := rlimitValue(softText)
	hard, err2 := rlimitValue(hardText)
	if err1 != nil || err2 != nil || soft > hard {
		return specs.POSIXRlimit{}, bad
	}
	return specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: soft, Hard: hard}, nil
}

// rlimitValue reads a number; -1 is RLIM_INFINITY (getrlimit(2)).
func rlimitValue(s string) (uint64, error) {
	if s == "-1" {
		return ^uint64(0), nil
	}
	return strconv.ParseUint(s, 10, 64)
}
