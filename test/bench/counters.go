package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// counterFiles are the kernel's of one cgroup, by its version, that the daemon reads for the
// metrics of a container without limits, that does nothing to disks.
func counterFiles(version int) []string {
	both := []string{"memory.stat", "pids.current", "pids.max", "cpu.pressure", "memory.pressure", "io.pressure"}
	if version == 2 {
		return append(both, "cpu.stat", "cpu.weight", "cpu.max", "memory.current", "memory.max", "memory.peak", "memory.min",
			"memory.events", "memory.swap.current", "memory.swap.max", "io.stat", "hugetlb.*B.current", "hugetlb.*B.events")
	}
	return append(both, "memory.usage_in_bytes", "memory.soft_limit_in_bytes", "memory.max_usage_in_bytes", "memory.failcnt", "memory.kmem.usage_in_bytes",
		"memory.oom_control", "cpuacct.usage", "cpuacct.stat", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us",
		"blkio.throttle.io_serviced_recursive", "hugetlb.*B.max_usage_in_bytes", "hugetlb.*B.failcnt")
}

// statFiles are the same for the statistics of a container or a pod.
func statFiles(version int) []string {
	pressure := []string{"cpu.pressure", "memory.pressure", "io.pressure", "memory.stat"}
	if version == 2 {
		return append(pressure, "cpu.stat", "memory.current", "memory.max", "memory.swap.current", "memory.swap.max")
	}
	return append(pressure, "cpuacct.usage", "memory.usage_in_bytes")
}

// whose counters are read beside the containers': the pods' own, or those of the processes;
// with each of them those of the pods' networks.
type whose struct{ pods, processes bool }

// message is what an answer costs whoever gives it, without any work on it: files of the
// kernel are read, by as many threads as there are CPUs, and a message like the daemon's is
// encoded and decoded.
type message struct {
	files  []string
	answer proto.Message
}

// countersOf are the files behind the metrics of pods, each once, and those alone that the
// kernel opens.
func countersOf(version int, pods []*pod, names func(version int) []string, of whose) ([]string, error) {
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return nil, err
	}
	if version == 2 {
		hierarchies = []string{"/sys/fs/cgroup"}
	}
	var files []string
	seen := map[string]bool{} // pods, of which there may be several containers
	for _, hierarchy := range hierarchies {
		if target, err := filepath.EvalSymlinks(hierarchy); err != nil || target != hierarchy {
			continue // systemd's names for the controllers of one
		}
		for _, p := range pods {
			parent := filepath.Join(hierarchy, p.config.GetLinux().GetCgroupParent())
			groups, err := filepath.Glob(filepath.Join(parent, "*"+p.container))
			if err != nil {
				return nil, err
			}
			ofPids := version == 2 || filepath.Base(hierarchy) == "pids"
			for _, group := range groups {
				files = append(files, filesIn(group, names(version))...)
				if ofPids {
					files = append(files, filesOfProcesses(group, of)...)
				}
			}
			if of.pods && !seen[parent] {
				seen[parent] = true
				files = append(files, filesIn(parent, names(version))...)
			}
		}
	}
	buffer := make([]byte, 16<<10)
	files = slices.DeleteFunc(files, func(path string) bool { return readCounter(path, buffer) != nil })
	if least := 3 * len(pods); len(files) < least {
		return nil, fmt.Errorf("the kernel counts %d things of %d containers", len(files), len(pods))
	}
	return files, nil
}

func filesIn(group string, names []string) (files []string) {
	for _, name := range names {
		file := filepath.Join(group, name)
		if !strings.Contains(name, "*") {
			files = append(files, file)
			continue
		}
		found, _ := filepath.Glob(file) // fails for a pattern alone that is none
		files = append(files, found...)
	}
	return files
}

// filesOfProcesses have the counters of a pod's network and of its processes' descriptors.
func filesOfProcesses(group string, of whose) (files []string) {
	list := filepath.Join(group, "cgroup.procs")
	text, _ := os.ReadFile(list) // that has no processes is noticed by their number
	for i, pid := range strings.Fields(string(text)) {
		if of.processes {
			files = append(files, list, "/proc/"+pid+"/fd")
		}
		if i == 0 && (of.processes || of.pods) {
			files = append(files, "/proc/"+pid+"/net/dev")
		}
	}
	return files
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

// readCounter also reads a directory of links, and where each points to.
func readCounter(path string, buffer []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err = unix.Read(fd, buffer); !errors.Is(err, unix.EISDIR) {
		return err
	}
	var names []string
	n, err := unix.ReadDirent(fd, buffer)
	for ; n > 0; n, err = unix.ReadDirent(fd, buffer) {
		_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	}
	for _, name := range names {
		if _, err := unix.Readlinkat(fd, name, buffer); err != nil {
			return err
		}
	}
	return err
}
