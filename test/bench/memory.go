package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// memory of a process in KiB (proc_pid_smaps(5)): PSS counts pages that processes share
// once, private are those that it alone has.
type memory struct {
	pss, anonymous, private int
}

func memoryOf(pid int) (m memory, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return m, err
	}
	fields := map[string]*int{"Pss:": &m.pss, "Pss_Anon:": &m.anonymous, "Private_Clean:": &m.private, "Private_Dirty:": &m.private}
	for text := range strings.Lines(string(data)) {
		f := strings.Fields(text)
		if len(f) != 3 || fields[f[0]] == nil {
			continue
		}
		kib, err := strconv.Atoi(f[1])
		if err != nil {
			return m, err
		}
		*fields[f[0]] += kib
	}
	return m, nil
}

// helpers are the processes beside the containers' own: those of the benchmark's network
// namespace that are neither of its own session nor daemons.
func (b *bench) helpers() ([]int, error) {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	known := map[int]bool{1: true, os.Getpid(): true}
	for _, d := range b.daemons {
		pid, err := d.pid()
		if err != nil {
			return nil, err
		}
		known[pid] = true
	}
	var all []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		// What has ended, and the kernel's own, have no memory to look at.
		if there, err := os.Readlink(dir + "/ns/net"); err != nil || there != here || known[pid] {
			continue
		}
		if m, err := memoryOf(pid); err == nil && m.pss > 0 {
			all = append(all, pid)
		}
	}
	return all, nil
}

// pid of the process that listens on the socket (SO_PEERCRED of its client).
func (d *daemon) pid() (int, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.socket, Net: "unix"})
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
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// cpu is the time that the process has run, in nanoseconds (first field of schedstat).
func cpu(pid int) (total int64, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		first, _, _ := strings.Cut(string(data), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, err
		}
		total += ns
	}
	return total, nil
}

// machine is what the figures depend on.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cpus, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*")
	return fmt.Sprintf("%d CPUs, kernel %s", len(cpus), unix.ByteSliceToString(u.Release[:]))
}
