package spec

import (
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
// privileged container may use any.
func (b *builder) devices() error {
	l := b.g.Config.Linux
	l.Devices = nil
	l.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: b.privileged(), Access: "rwm"}}}
	for _, d := range b.Devices {
		if strings.Trim(d.Access, "rwm") != "" || d.Access == "" {
			return fmt.Errorf("devices: permissions %q of %s are not one or more of r, w, m", d.Access, d.Path)
		}
		l.Devices = append(l.Devices, d.LinuxDevice)
		if b.privileged() {
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
	if err := b.oomScore(r.GetOomScoreAdj()); err != nil {
		return err
	}
	return Resources(g.Config.Linux.Resources, r, b.Node.CgroupV2)
}

// Resources writes the fields that are set into out. A zero field is "not
// specified" (LinuxContainerResources) and leaves out as it is.
func Resources(out *specs.LinuxResources, r *cri.LinuxContainerResources, cgroupV2 bool) error {
	cpu := specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if v := r.GetCpuPeriod(); v != 0 {
		cpu.Period = ptr(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		cpu.Quota = ptr(v)
	}
	if v := r.GetCpuShares(); v != 0 {
		cpu.Shares = ptr(uint64(v))
	}
	out.CPU = &cpu
	if limit := r.GetMemoryLimitInBytes(); limit != 0 {
		out.Memory = &specs.LinuxMemory{Limit: ptr(limit)}
	}
	if swap := r.GetMemorySwapLimitInBytes(); swap != 0 {
		if out.Memory == nil || (swap > 0 && swap < *out.Memory.Limit) {
			return fmt.Errorf("resources: memory_swap_limit_in_bytes %d needs a memory_limit_in_bytes that is not above it", swap)
		}
		out.Memory.Swap = ptr(swap)
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if len(r.GetUnified()) > 0 {
		if !cgroupV2 {
			return errors.New("resources: unified needs cgroup v2, this node has v1")
		}
		out.Unified = r.GetUnified()
	}
	return nil
}

func (b *builder) oomScore(adj int64) error {
	if adj < oomScoreAdjMin || adj > oomScoreAdjMax {
		return fmt.Errorf("resources: oom_score_adj %d is not within %d to %d", adj, oomScoreAdjMin, oomScoreAdjMax)
	}
	if adj < b.Node.MinOOMScoreAdj {
		b.clamp("oom_score_adj %d: without CAP_SYS_RESOURCE the daemon cannot go below its own %d", adj, b.Node.MinOOMScoreAdj)
		adj = b.Node.MinOOMScoreAdj
	}
	b.g.SetProcessOOMScoreAdj(int(adj))
	return nil
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
