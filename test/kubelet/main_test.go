// Package kubelet runs the real kubelet, on its own (without an API server), on the real
// daemon: static pods side by side, and what the kubelet then tells of them. Run it with
// make test-kubelet, which builds the kubelet.
package kubelet

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/test/fixture"
)

// kubeletVariable names the kubelet's program; without it there is nothing to test.
const kubeletVariable = "CRIO_KUBELET"

// TestMain gives the kubelet a node of its own: network, mounts, cgroups, and the kernel's
// settings, which it writes and which have no namespace, put back.
func TestMain(m *testing.M) {
	if os.Getenv(kubeletVariable) == "" {
		fmt.Println("the kubelet is tested by make test-kubelet")
		return
	}
	settings := readSettings()
	code := fixture.Inside(m, run)
	if err := settings.restore(); err != nil {
		fmt.Fprintln(os.Stderr, "test:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) int {
	// The kubelet and cAdvisor have paths that no option moves: the daemon's socket, the
	// links to logs.
	for _, dir := range []string{"/run", "/var/log"} {
		if err := unix.Mount("kubelet-test", dir, "tmpfs", 0, "mode=755"); err != nil {
			fmt.Fprintf(os.Stderr, "test: mount on %s: %v\n", dir, err)
			return 1
		}
	}
	if err := makeCgroups(); err != nil {
		fmt.Fprintln(os.Stderr, "test: cgroups:", err)
		return 1
	}
	code := m.Run()
	if err := removeCgroups(); err != nil {
		fmt.Fprintln(os.Stderr, "test: a cgroup is left:", err)
		code = 1
	}
	return code
}

// settings are values of the kernel by their files.
type settings map[string][]byte

// readSettings reads what the kubelet sets at its start (setupKernelTunables).
func readSettings() settings {
	s := settings{}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		path := "/proc/sys/" + name
		if value, err := os.ReadFile(path); err == nil {
			s[path] = value
		}
	}
	return s
}

func (s settings) restore() error {
	for path, value := range s {
		if err := os.WriteFile(path, value, 0); err != nil {
			return fmt.Errorf("put back: %w", err)
		}
	}
	return nil
}
