package spec

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of the kernel (kernel/sched: tg_set_cfs_bandwidth, sched_group_set_shares). The
// times are microseconds.
const (
	cpuPeriodMin = 1000
	cpuPeriodMax = 1000000
	cpuQuotaMin  = 1000
	cpuSharesMin = 2
	cpuSharesMax = 1 << 18
)

// CheckResources refuses what can never be put in force on the node: the runtime would
// say so only at the start, and at every start again. Zero is "not specified". Errors
// name the field.
func CheckResources(r *cri.LinuxContainerResources, node Node) error {
	for _, f := range []struct {
		name            string
		value, min, max int64
		unlimited       bool // takes -1
	}{
		{"cpu_period", r.GetCpuPeriod(), cpuPeriodMin, cpuPeriodMax, false},
		{"cpu_quota", r.GetCpuQuota(), cpuQuotaMin, math.MaxInt64, true},
		{"cpu_shares", r.GetCpuShares(), cpuSharesMin, cpuSharesMax, false},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), 1, math.MaxInt64, true},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), 1, math.MaxInt64, true},
		{"oom_score_adj", r.GetOomScoreAdj(), oomScoreAdjMin, oomScoreAdjMax, false},
	} {
		if f.value == 0 || f.unlimited && f.value == unlimited || f.min <= f.value && f.value <= f.max {
			continue
		}
		want := fmt.Sprintf("%d to %d", f.min, f.max)
		if f.unlimited {
			want = fmt.Sprintf("%d or more, or -1 for unlimited", f.min)
		}
		return fmt.Errorf("%s %d: must be %s", f.name, f.value, want)
	}
	for _, s := range []struct{ name, asked, has string }{
		{"cpuset_cpus", r.GetCpusetCpus(), node.CPUs}, {"cpuset_mems", r.GetCpusetMems(), node.MemoryNodes},
	} {
		if s.asked != "" && !node.Cpuset {
			return fmt.Errorf("%s %q: the node has no cpuset controller", s.name, s.asked)
		}
		if err := checkSet(s.name, s.asked, s.has); err != nil {
			return err
		}
	}
	// A limit equal to that of the memory forbids what cannot be limited.
	if swap := r.GetMemorySwapLimitInBytes(); !node.Swap && swap != 0 && swap != r.GetMemoryLimitInBytes() {
		return errors.New("memory_swap_limit_in_bytes: this node's kernel does not account swap")
	}
	// The kubelet sends a limit for every page size, mostly 0.
	for _, h := range r.GetHugepageLimits() {
		if !node.Hugetlb && h.GetLimit() != 0 {
			return fmt.Errorf("hugepage_limits: %d bytes of %s: the node has no hugetlb controller", h.GetLimit(), h.GetPageSize())
		}
	}
	return Resources(&specs.LinuxResources{}, r, node.CgroupV2)
}

// InForce is what of r, which CheckResources has accepted, the node puts in force, and
// what it does not, each as a sentence for the log. r stays as it is; nil remains nil.
func InForce(r *cri.LinuxContainerResources, node Node) (kept *cri.LinuxContainerResources, left []string) {
	if r != nil {
		kept = proto.CloneOf(r)
	}
	if !node.Swap && r.GetMemorySwapLimitInBytes() != 0 {
		left = append(left, "memory_swap_limit_in_bytes: this node's kernel does not account swap")
		kept.MemorySwapLimitInBytes = 0
	}
	if !node.Hugetlb && len(r.GetHugepageLimits()) > 0 {
		left = append(left, "hugepage_limits: the node has no hugetlb controller")
		kept.HugepageLimits = nil
	}
	if adj := r.GetOomScoreAdj(); adj < node.MinOOMScoreAdj {
		left = append(left, fmt.Sprintf("oom_score_adj %d: without CAP_SYS_RESOURCE the daemon cannot go below its own %d", adj, node.MinOOMScoreAdj))
		if kept != nil {
			kept.OomScoreAdj = node.MinOOMScoreAdj
		}
	}
	return kept, left
}

// checkSet takes a list of numbers such as "0-3,5" that are all in the node's list; an
// unknown one, "", leaves that to the kernel.
func checkSet(field, asked, node string) error {
	if asked == "" {
		return nil
	}
	spans, err := parseSet(asked)
	if err != nil {
		return fmt.Errorf("%s %q: %w", field, asked, err)
	}
	if node == "" {
		return nil
	}
	has, err := parseSet(node)
	if err != nil {
		return fmt.Errorf("%s %q: what the node has, %q: %w", field, asked, node, err)
	}
	for _, s := range spans {
		// The kernel joins neighbours, so that one of its spans has all of s or none does.
		if !slices.ContainsFunc(has, func(h span) bool { return h.first <= s.first && s.last <= h.last }) {
			return fmt.Errorf("%s %q: the node has %s", field, asked, node)
		}
	}
	return nil
}

// span is first to last, both included.
type span struct{ first, last uint64 }

// parseSet reads the lists of cpuset(7), "List format", without the strides, which the
// runtimes do not take all.
func parseSet(list string) ([]span, error) {
	var spans []span
	for part := range strings.SplitSeq(list, ",") {
		low, high, ranged := strings.Cut(part, "-")
		if !ranged {
			high = low
		}
		first, err1 := strconv.ParseUint(low, 10, 31)
		last, err2 := strconv.ParseUint(high, 10, 31)
		if err1 != nil || err2 != nil || first > last {
			return nil, fmt.Errorf("%q is neither a number nor a range such as 0-3", part)
		}
		spans = append(spans, span{first, last})
	}
	return spans, nil
}
