package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// powerOff takes away all that a node loses with its power: processes, mounts, cgroups,
// and what is on tmpfs. What is on the disk stays. The next start sees another boot.
func (n *node) powerOff() {
	n.t.Helper()
	if n.running() {
		n.kill()
	}
	n.await("the end of all processes", func() error {
		left := n.pids()
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	var mounted []string
	for line := range strings.Lines(string(data)) {
		if path := strings.Fields(line)[4]; strings.HasPrefix(path, n.dir) {
			mounted = append(mounted, path)
		}
	}
	for _, path := range slices.Backward(mounted) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			n.t.Fatalf("unmount %s: %v", path, err)
		}
	}
	for _, dir := range []string{"run", "storage-run"} {
		if err := os.RemoveAll(n.path(dir)); err != nil {
			n.t.Fatal(err)
		}
	}
	n.removePodCgroups()
	n.nextBoot()
}

// removePodCgroups takes away what pods that are gone had of a hierarchy.
func (n *node) removePodCgroups() {
	n.t.Helper()
	inv := inventory{}
	n.cgroups(inv)
	var dirs []string
	for name := range inv {
		dirs = append(dirs, strings.TrimPrefix(name, "cgroup "))
	}
	slices.Sort(dirs)
	for _, dir := range slices.Backward(dirs) {
		_ = os.Remove(dir) // the parents of all pods may have others
	}
}

// nextBoot shows the daemons of this test another boot_id.
func (n *node) nextBoot() {
	n.t.Helper()
	const file = "/proc/sys/kernel/random/boot_id"
	path := filepath.Join(n.t.TempDir(), "boot_id")
	if err := os.WriteFile(path, []byte(pod.NewID()[:36]+"\n"), 0o444); err != nil {
		n.t.Fatal(err)
	}
	if err := unix.Mount(path, file, "", unix.MS_BIND, ""); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := unix.Unmount(file, 0); err != nil {
			n.t.Error(err)
		}
	})
}

// wantWorking runs a pod with a container of the image.
func (n *node) wantWorking(config *cri.PodSandboxConfig, image string) {
	n.t.Helper()
	id := n.runContainer(n.runPod(config), config, n.containerConfig(image, "sleep", "99"))
	if out := n.exec(id, "echo", "up").GetStdout(); string(out) != "up\n" {
		n.t.Errorf("a new pod says %q", out)
	}
}

// A reboot in the middle of everything: nothing runs, all of it is told, all of it can be
// removed, the addresses too, once, and the image works.
func TestReboot(t *testing.T) {
	n, image, orders := pluginNode(t, options{})
	config := n.podConfig()
	box := n.runPod(config)
	running := n.runContainer(box, config, n.containerConfig(image, "sleep", "999"))
	created := n.create(box, config, n.containerConfig(image, "true"))
	exited := n.runContainer(box, config, n.containerConfig(image, shell("exit 42")...))
	n.exited(exited)
	sharing := n.podConfig()
	sharing.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	sharingBox := n.runPod(sharing)
	stopped := n.podConfig()
	stoppedBox := n.runPod(stopped)
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: stoppedBox}); err != nil {
		t.Fatal(err)
	}
	n.powerOff()
	n.start()
	for _, id := range []string{box, sharingBox, stoppedBox} {
		if s := n.sandbox(id); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod after a reboot: %v", s)
		}
	}
	for _, id := range []string{running, created} {
		if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 255 || s.GetReason() != pod.ReasonNodeRebooted {
			t.Errorf("container after a reboot: %v", s)
		}
	}
	if s := n.container(exited); s.GetExitCode() != 42 {
		t.Errorf("a container that had ended before: %v", s)
	}
	// The kubelet makes the pod anew, while the old one is still there.
	again := n.podConfig()
	again.Metadata = config.Metadata
	again.Metadata.Attempt++
	n.wantWorking(again, image)
	if report := n.status(); len(report.Quarantined)+len(report.Blocked) > 0 {
		t.Errorf("status: %+v", report)
	}
	n.removeAll()
	calls, err := os.ReadFile(filepath.Join(orders, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{box, sharingBox, stoppedBox} {
		if count := strings.Count(string(calls), "DEL "+id+"\n"); count != 1 {
			t.Errorf("CNI DEL was called %d times for pod %s", count, id)
		}
	}
}

// Another reboot before anybody has cleaned up after the first.
func TestRebootTwice(t *testing.T) {
	n, image := readyNode(t, options{})
	config := n.podConfig()
	box := n.runPod(config)
	n.runContainer(box, config, n.containerConfig(image, "sleep", "999"))
	n.powerOff()
	n.start()
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Errorf("stop: %v", err)
	}
	n.powerOff()
	n.start()
	if s := n.sandbox(box); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after the second: %v", s)
	}
	n.wantWorking(n.podConfig(), image)
}
