package main

import (
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/crio-minimal/crio/internal/cgroup"
)

// counterFiles are the kernel's of one cgroup, by its version, that the daemon reads for the
// metrics of a container without a quota.
func counterFiles(version int) []string {
	both := []string{"memory.stat", "pids.current", "pids.max", "cpu.pressure", "memory.pressure", "io.pressure"}
	if version == 2 {
		return append(both, "cpu.stat", "cpu.weight", "cpu.max", "memory.current", "memory.max", "memory.peak", "memory.min",
			"memory.events", "memory.swap.current", "memory.swap.max", "io.stat", "hugetlb.*B.current", "hugetlb.*B.events")
	}
	return append(both, "memory.usage_in_bytes", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes",
		"memory.soft_limit_in_bytes", "memory.max_usage_in_bytes", "memory.failcnt", "memory.kmem.usage_in_bytes",
		"memory.oom_control", "cpuacct.usage", "cpuacct.stat", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us",
		"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive",
		"hugetlb.*B.max_usage_in_bytes", "hugetlb.*B.failcnt")
}

// message is what an answer costs whoever gives it, without any work on it: files of the
// kernel are read, by as many threads as there are CPUs, and a message like the daemon's is
// encoded and decoded.
type message struct {
	files  []string
	answer proto.Message
}

// countersOf are the files behind the metrics of pods, each once, and those alone that the
// kernel opens.
func countersOf(pods []*pod) ([]string, error) {
	tree, err := cgroup.Open(cgroup.Cgroupfs)
	if err != nil {
		return nil, err
	}
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/")
	if err != nil {
		return nil, err
	}
	if tree.Version() == 2 {
		hierarchies = []string{"/sys/fs/cgroup"}
	}
	var files []string
	for _, hierarchy := range hierarchies {
		if target, err := filepath.EvalSymlinks(hierarchy); err != nil || target != filepath.Clean(hierarchy) {
			continue // systemd's names for the controllers of one
		}
		for _, p := range pods {
			group := filepath.Join(hierarchy, p.config.GetLinux().GetCgroupParent(), "*"+p.container)
			for _, name := range counterFiles(tree.Version()) {
				found, err := filepath.Glob(filepath.Join(group, name))
				if err != nil {
					return nil, err
				}
				files = append(files, found...)
			}
		}
	}
	buffer := make([]byte, 16<<10)
	return slices.DeleteFunc(files, func(path string) bool { return readCounter(path, buffer) != nil }), nil
}

func (m *message) tell() error {
	var next atomic.Int64
	var readers errgroup.Group
	for range runtime.NumCPU() {
		readers.Go(func() error {
			buffer := make([]byte, 16<<10)
			for i := next.Add(1) - 1; i < int64(len(m.files)); i = next.Add(1) - 1 {
				if err := readCounter(m.files[i], buffer); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := readers.Wait(); err != nil {
		return err
	}
	data, err := proto.Marshal(m.answer)
	if err != nil {
		return err
	}
	return proto.Unmarshal(data, m.answer.ProtoReflect().New().Interface())
}

func readCounter(path string, buffer []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Read(fd, buffer)
	return err
}
