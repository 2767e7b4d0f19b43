// Package test drives the real daemon over its real socket, on real parts: runc, the
// stock CNI plugins, docker-registry. Each test has a node of its own, and its
// inventory has to be the same at the end as at the beginning.
package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/test/fixture"
)

// TestMain runs the tests in a network and a mount namespace of their own.
func TestMain(m *testing.M) {
	if socket := os.Getenv(idleSocket); socket != "" {
		os.Exit(serveIdle(socket))
	}
	os.Exit(fixture.Inside(m, func(m *testing.M) int {
		defer removeCgroups()
		return m.Run()
	}))
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
