package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// memory in KiB of proportional set size: pages that processes share are counted once.
type memory struct {
	daemon, perContainer int
}

// memory of the daemon, and of what runs beside the containers' own processes.
func (p *peer) memory(ctx context.Context, containers int) (m memory, err error) {
	before, err := sizes()
	if err != nil {
		return m, err
	}
	var boxes []string
	defer func() {
		for _, box := range boxes {
			_, _ = p.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: box})
			_, _ = p.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: box})
		}
	}()
	for i := range containers {
		pod := podConfig(fmt.Sprint(p.name, "-memory-", i))
		if err := os.MkdirAll(pod.GetLogDirectory(), 0o755); err != nil {
			return m, err
		}
		a, err := p.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
		if err != nil {
			return m, err
		}
		boxes = append(boxes, a.GetPodSandboxId())
		id, err := p.create(ctx, pod, a.GetPodSandboxId(), "c")
		if err == nil {
			_, err = p.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
		}
		if err != nil {
			return m, err
		}
	}
	after, err := sizes()
	if err != nil {
		return m, err
	}
	daemon, err := listenerOf(p.socket)
	if err != nil {
		return m, err
	}
	m.daemon = after[daemon]
	for pid, kib := range after {
		if _, old := before[pid]; !old {
			m.perContainer += kib
		}
	}
	m.perContainer /= containers
	return m, nil
}

// sizes of all processes of this network namespace: neither the containers' own, nor
// what else the machine does, when the benchmark and its daemons have one for themselves.
func sizes() (map[int]int, error) {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	all := map[int]int{}
	for _, dir := range dirs {
		if there, err := os.Readlink(dir + "/ns/net"); err != nil || there != here {
			continue
		}
		rollup, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			continue // it has ended, or is the kernel's
		}
		kib := 0
		for line := range strings.Lines(string(rollup)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				if kib, err = strconv.Atoi(f[1]); err != nil {
					return nil, err
				}
			}
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		all[pid] = kib
	}
	return all, nil
}

// listenerOf is the process that listens on the socket (SO_PEERCRED of its client).
func listenerOf(socket string) (int, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Pid), nil
}
