package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// qualityOfService compares the cgroups of pods and containers with the limits of their
// manifests, and looks where they are.
func qualityOfService(t *testing.T, n *node) {
	const mebi = 1 << 20
	for _, tt := range []struct {
		pod, class, dir string
		memory          int64 // 0 is none
		quota           int64 // in microseconds of 100 ms; 0 is none
		shares, weight  int64 // of the CPU, in version 1 and 2
	}{
		{"guaranteed", "Guaranteed", "", 64 * mebi, 20000, 204, 0},
		{"burstable", "Burstable", "burstable/", 48 * mebi, 0, 102, 0},
		{"besteffort", "BestEffort", "besteffort/", 0, 0, 2, 1},
	} {
		n.awaitContainer(t, tt.pod, "main", ready)
		p := n.awaitPod(t, tt.pod, phase("Running"))
		same(t, tt.pod+": the class", p.Status.QOSClass, tt.class)
		c, err := p.container("main")
		check(t, err)
		group := cgroupRoot() + "/kubepods/" + tt.dir + "pod" + p.Metadata.UID
		for _, dir := range []string{group, group + "/crio-" + c.id()} {
			if tt.memory != 0 {
				same(t, dir+": memory", limit(t, dir, "memory/memory.limit_in_bytes", "memory.max"), fmt.Sprint(tt.memory))
			}
			if tt.quota != 0 {
				same(t, dir+": CPU", limit(t, dir, "cpu/cpu.cfs_quota_us", "cpu.max"), fmt.Sprint(tt.quota))
			}
			want := tt.shares
			if version2() {
				want = tt.weight
			}
			if want != 0 {
				same(t, dir+": share", limit(t, dir, "cpu/cpu.shares", "cpu.weight"), fmt.Sprint(want))
			}
		}
	}
}

// limit is the first word of a cgroup's file, by its name in version 1 (with the hierarchy) and 2.
func limit(t *testing.T, group, v1, v2 string) string {
	t.Helper()
	path := filepath.Join("/sys/fs/cgroup", filepath.Dir(v1), group, filepath.Base(v1))
	if version2() {
		path = filepath.Join("/sys/fs/cgroup", group, v2)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return ""
	}
	var word string
	_, err = fmt.Sscan(string(text), &word)
	check(t, err)
	return word
}
