package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/test/fixture"
)

// The benchmark runs in network, mount and PID namespaces of its own: bridges, packet
// filter rules, mounts and /run are not the machine's, and whatever happens to it, no
// process stays.
const (
	dirVariable   = "CRIO_BENCH_DIR"
	stageVariable = "CRIO_BENCH_STAGE"
	stageInit     = "init"
	stageInside   = "inside"
)

// enter runs this program as the first process of new namespaces, and passes on its exit
// code. Once it has ended there are no processes and no mounts of its any more, and what
// else it made is taken away: the directory, and the cgroups that have its name.
func enter(ctx context.Context) (code int, err error) {
	dir, err := os.MkdirTemp("", "crio-bench-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, removeCgroups("/"+filepath.Base(dir)), os.RemoveAll(dir)) }()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageVariable+"="+stageInit, dirVariable+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL, Setpgid: true,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// reap is the first process of the namespace: monitors, and containers of the floor, are
// its children once those that started them have ended.
func reap(ctx context.Context) (int, error) {
	if err := os.Setenv(stageVariable, stageInside); err != nil {
		return 1, err
	}
	self, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 1, err
	}
	defer context.AfterFunc(ctx, func() { _ = unix.Kill(self.Pid, unix.SIGTERM) })()
	signal.Ignore(unix.SIGHUP)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid == self.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// setUpNamespaces makes them look like a node's.
func setUpNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("run", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, out)
	}
	if err := fixture.WithoutHybrid(); err != nil {
		return fmt.Errorf("cgroups of a hybrid node: %w", err)
	}
	return nil
}

// removeCgroups removes a cgroup with those in it, in every hierarchy.
func removeCgroups(path string) error {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, err := filepath.Glob(pattern + path)
		if err != nil {
			return err
		}
		for _, root := range roots {
			var dirs []string
			err := filepath.WalkDir(root, func(dir string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, dir)
				}
				return err
			})
			for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
				err = os.Remove(dirs[i])
			}
			if err != nil {
				return fmt.Errorf("a cgroup is left: %w", err)
			}
		}
	}
	return nil
}
