package stats

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
)

func containerAttributes(v *pod.Container) *cri.ContainerAttributes {
	return &cri.ContainerAttributes{
		Id: v.ID, Metadata: v.Config.GetMetadata(), Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(),
	}
}

func sandboxAttributes(v *pod.Sandbox) *cri.PodSandboxAttributes {
	return &cri.PodSandboxAttributes{
		Id: v.ID, Metadata: v.Config.GetMetadata(), Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(),
	}
}

// value of a number that the kernel has; nil where it has none.
func value(c cgroup.Count) *cri.UInt64Value {
	if !c.Known {
		return nil
	}
	return &cri.UInt64Value{Value: c.N}
}

// left is what a limit leaves; nil where there is no limit.
func left(limit, used cgroup.Count) *cri.UInt64Value {
	if !limit.Known || !used.Known || limit.N == cgroup.Unlimited {
		return nil
	}
	return &cri.UInt64Value{Value: limit.N - min(limit.N, used.N)}
}

func (c *Collector) cpu(id string, now time.Time, u cgroup.Usage) *cri.CpuUsage {
	s := &cri.CpuUsage{Timestamp: now.UnixNano(), UsageCoreNanoSeconds: value(u.CPU.Total), Psi: psi(u.CPUPressure)}
	if !u.CPU.Total.Known {
		return s
	}
	if r := c.kept.rate(id, now, u.CPU.Total.N); r.known {
		s.UsageNanoCores = &cri.UInt64Value{Value: r.nanoCores}
	}
	return s
}

func memory(now time.Time, u cgroup.Usage) *cri.MemoryUsage {
	m := u.Memory
	return &cri.MemoryUsage{
		Timestamp: now.UnixNano(), UsageBytes: value(m.Usage), WorkingSetBytes: value(m.WorkingSet()), AvailableBytes: left(m.Limit, m.WorkingSet()),
		RssBytes: value(m.RSS), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorFaults), Psi: psi(u.MemoryPressure),
	}
}

// swap is nil on a kernel that does not count it.
func swap(now time.Time, m cgroup.Memory) *cri.SwapUsage {
	if !m.Swap.Known {
		return nil
	}
	return &cri.SwapUsage{Timestamp: now.UnixNano(), SwapUsageBytes: value(m.Swap), SwapAvailableBytes: left(m.SwapLimit, m.Swap)}
}

// ioUsage is nil on a kernel without pressure stall information: it has nothing else.
func ioUsage(now time.Time, u cgroup.Usage) *cri.IoUsage {
	p := psi(u.IOPressure)
	if p == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: now.UnixNano(), Psi: p}
}

func psi(p cgroup.Pressure) *cri.PsiStats {
	if p.Some == nil && p.Full == nil {
		return nil
	}
	return &cri.PsiStats{Some: stall(p.Some), Full: stall(p.Full)}
}

func stall(s *cgroup.Stall) *cri.PsiData {
	if s == nil {
		return nil
	}
	return &cri.PsiData{Total: s.Total * uint64(time.Microsecond), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}

// layer is nil until the container's layer has been measured for the first time.
func (c *Collector) layer(id string) *cri.FilesystemUsage {
	l := c.kept.size(id, time.Now())
	if l.measured.IsZero() {
		return nil
	}
	return &cri.FilesystemUsage{
		Timestamp: l.measured.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: c.Storage},
		UsedBytes: &cri.UInt64Value{Value: l.bytes}, InodesUsed: &cri.UInt64Value{Value: l.inodes},
	}
}

// network is nil for a pod without interfaces of its own.
func (c *Collector) network(all []netns.Interface) *cri.NetworkUsage {
	if len(all) == 0 {
		return nil
	}
	n := &cri.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, i := range all {
		usage := &cri.NetworkInterfaceUsage{
			Name:    i.Name,
			RxBytes: &cri.UInt64Value{Value: i.Received.Bytes}, RxErrors: &cri.UInt64Value{Value: i.Received.Errors},
			TxBytes: &cri.UInt64Value{Value: i.Sent.Bytes}, TxErrors: &cri.UInt64Value{Value: i.Sent.Errors},
		}
		if i.Name == c.DefaultInterface {
			n.DefaultInterface = usage
		} else {
			n.Interfaces = append(n.Interfaces, usage)
		}
	}
	return n
}
