package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/test/fixture"
)

// The benchmark runs in network, mount and PID namespaces of its own: bridges, packet
// filter rules, mounts and /run are not the machine's, and whatever happens to it, no
// process stays.
const (
	stageVariable = "CRIO_BENCH_STAGE"
	stageInit     = "init"
	stageInside   = "inside"
)

// enter runs this program as the first process of new namespaces, and passes on its exit code.
func enter(ctx context.Context) (int, error) {
	return again(ctx, stageInit, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS|syscall.CLONE_NEWPID)
}

// again runs this program as a stage. It is asked to end, not killed, when ctx ends.
func again(ctx context.Context, stage string, namespaces uintptr) (int, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageVariable+"="+stage)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	err := cmd.Run()
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
