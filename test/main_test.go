// Package test drives the real daemon over its real socket, on real parts: runc, the
// stock CNI plugins, docker-registry. Each test has a node of its own, and its
// inventory has to be the same at the end as at the beginning.
package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/test/fixture"
)

// inside marks the process that runs the tests in namespaces of its own.
const inside = "CRIO_TEST_INSIDE"

// TestMain runs the tests in a network and a mount namespace of their own: bridges,
// packet filter rules, forwarding and mounts of theirs are not the machine's.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(run(m))
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "test: a network namespace is needed, and so is root:", err)
		os.Exit(1)
	}
}

func run(m *testing.M) int {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "test: loopback: %v\n%s", err, out)
		return 1
	}
	if err := fixture.WithoutHybrid(); err != nil {
		fmt.Fprintln(os.Stderr, "test: cgroups of a hybrid node:", err)
		return 1
	}
	defer removeCgroups()
	return m.Run()
}

// removeCgroups takes the parents of this run's cgroups away, which the daemons leave
// as they would leave the kubelet's.
func removeCgroups() {
	if cgroupManager() == cgroup.Systemd {
		return // which removes its own
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		groups, _ := filepath.Glob(pattern + testParent() + "monitors")
		parents, _ := filepath.Glob(pattern + strings.TrimSuffix(testParent(), "/"))
		for _, dir := range append(groups, parents...) {
			if err := os.Remove(dir); err != nil {
				fmt.Fprintln(os.Stderr, "test: a cgroup is left:", err)
			}
		}
	}
}
