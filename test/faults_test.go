package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reconfigure replaces a part of the daemon's configuration; it counts after a start.
func (n *node) reconfigure(old, replacement string) {
	n.t.Helper()
	data, err := os.ReadFile(n.path("crio.conf"))
	if err != nil || !strings.Contains(string(data), old) {
		n.t.Fatalf("%q is not in the configuration, %v", old, err)
	}
	n.write("crio.conf", strings.Replace(string(data), old, replacement, 1))
}

// monitorOf is the pid of the container's monitor.
func (n *node) monitorOf(id string) int {
	n.t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, path := range found {
		words, _ := os.ReadFile(path)
		if strings.Contains(string(words), "conmon\x00--id\x00"+id) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				n.t.Fatal(err)
			}
			return pid
		}
	}
	n.t.Fatalf("container %s has no monitor", id)
	return 0
}

func signal(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("signal %s to %d: %v", sig, pid, err)
	}
}

// The sweep after a start took pods that were being made for half-made ones of the
// daemon before, and tore them down under the hands of their maker.
func TestSweepLeavesNewPodsAlone(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	var removals sync.WaitGroup
	for range 25 {
		id := n.create(box, pod, n.containerConfig(image, "sleep", "99"))
		removals.Go(func() {
			_, _ = n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}) // cut off by the kill
		})
	}
	time.Sleep(60 * time.Millisecond)
	n.kill()
	removals.Wait()
	n.start()
	var churn sync.WaitGroup
	for range 4 {
		churn.Go(func() {
			for range 10 {
				a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()})
				if err == nil {
					_, err = n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: a.GetPodSandboxId()})
				}
				if err != nil {
					t.Errorf("beside the sweep: %v", err)
				}
			}
		})
	}
	churn.Wait()
}

// A container that was being made when its pod was removed made the call fail with an
// illegal transition.
func TestCreateContainerWhileItsPodIsRemoved(t *testing.T) {
	n, image := readyNode(t, options{})
	for round := range 10 {
		pod := n.podConfig()
		box := n.runPod(pod)
		var wait sync.WaitGroup
		for range 4 {
			config := n.containerConfig(image, "sleep", "99")
			wait.Go(func() {
				_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
				if c := status.Code(err); c != codes.OK && c != codes.NotFound && c != codes.FailedPrecondition {
					t.Errorf("create: %v", err)
				}
			})
		}
		time.Sleep(time.Duration(round*3) * time.Millisecond)
		if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
			t.Errorf("remove: %v", err)
		}
		wait.Wait()
	}
}

// A monitor that did not answer at once (its log's disk hangs) had its container killed
// by the daemon's restart.
func TestRestartWaitsForAMonitorThatDoesNotAnswer(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, shell("trap 'exit 42' TERM; sleep 99 & wait $!")...))
	monitor := n.monitorOf(id)
	n.kill()
	signal(t, monitor, syscall.SIGSTOP)
	n.start()
	if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("while the monitor is stopped: %v", s)
	}
	n.answersInTime()
	if waits := n.operations("reach monitor"); len(waits) != 1 {
		t.Errorf("operations: %+v", n.status().Operations)
	}
	if out := n.exec(id, "echo", "alive").GetStdout(); string(out) != "alive\n" {
		t.Errorf("exec: %q", out)
	}
	signal(t, monitor, syscall.SIGCONT)
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
		t.Error(err)
	}
	if s := n.container(id); s.GetExitCode() != 42 {
		t.Errorf("at the end: %v", s)
	}
}

// A start that took longer than the daemon's patience at its restart was made an exit.
func TestRestartWaitsForASlowStart(t *testing.T) {
	slow := filepath.Join(t.TempDir(), "slow")
	script := "#!/bin/sh\ncase \" $* \" in *\" create \"*) sleep 12;; esac\nexec runc \"$@\"\n"
	if err := os.WriteFile(slow, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n, image := readyNode(t, options{conf: fmt.Sprintf("[crio.runtime.runtimes.slow]\nruntime_path = %q\n", slow)})
	n.before["file run/oci/slow"]++ // stays, as any handler's
	pod := n.podConfig()
	a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: "slow"})
	if err != nil {
		t.Fatal(err)
	}
	id := n.create(a.GetPodSandboxId(), pod, n.containerConfig(image, shell("exit 42")...))
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		_, _ = n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}) // cut off by the kill
	}()
	n.await("the start", func() error {
		if ops := n.status().Operations; len(ops) == 0 || !strings.Contains(ops[0].Stage, "runtime create") {
			return fmt.Errorf("operations %+v", ops)
		}
		return nil
	})
	n.kill()
	<-begun
	n.start()
	if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("while the runtime creates: %v", s)
	}
	n.startContainer(id) // joins the one under way
	if s := n.exited(id); s.GetExitCode() != 42 {
		t.Errorf("at the end: %v", s)
	}
}

// A container that was to join the PID namespace of another one joined that of whoever
// had the other's pid by the time it was started: the node's, for instance.
func TestTargetPIDNamespace(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	target := n.runContainer(box, pod, n.containerConfig(image, "sleep", "4711"))
	debug := func() string {
		config := n.containerConfig(image, "sleep", "99")
		config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: target}
		return n.create(box, pod, config)
	}
	beside, late := debug(), debug()
	n.startContainer(beside)
	if out := string(n.exec(beside, "ps").GetStdout()); !strings.Contains(out, "sleep 4711") {
		t.Errorf("it does not see the target: %s", out)
	}
	if source, err := os.ReadFile(n.path("run/containers/" + late + "/config.json")); err != nil || strings.Contains(string(source), `"path":"/proc/`) {
		t.Errorf("the namespace is named by a pid, %v", err)
	}
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: target}); err != nil {
		t.Fatal(err)
	}
	_, err := n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: late})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), target) {
		t.Errorf("start beside a target that has ended: %v", err)
	}
}

// A full disk kept the pods that filled it from being removed.
func TestFullStateDiskKeepsNothingFromBeingRemoved(t *testing.T) {
	n, image := readyNode(t, options{})
	n.stop()
	if err := os.Mkdir(n.path("small"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.path("small"), "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(n.path("small"), unix.MNT_DETACH) })
	n.reconfigure(fmt.Sprintf("state_dir = %q", n.path("state")), fmt.Sprintf("state_dir = %q", n.path("small/state")))
	n.start()
	n.before = n.settled()
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	n.fill(n.path("small/fill"))
	if _, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()}); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("run pod: %v", err)
	}
	n.kill()
	n.start()
	n.answersInTime()
	if _, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("remove container: %v", err)
	}
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Errorf("remove pod: %v", err)
	}
	n.compare(n.before)
	n.stop() // before the disk goes
}

// A terminal that is closed, or a journal that restarts, ended the daemon.
func TestSignalsThatDoNotEndTheDaemon(t *testing.T) {
	n, _ := readyNode(t, options{})
	signal(t, n.daemon.Process.Pid, syscall.SIGHUP)
	n.stop()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(binary(t, "race/crio"), "--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d"))
	daemon.Stderr = writer
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	n.await("the daemon's answer", func() error {
		_, err := n.Version(n.ctx(), &cri.VersionRequest{})
		return err
	})
	reader.Close()
	signal(t, daemon.Process.Pid, syscall.SIGHUP)
	for range 3 {
		if _, err := n.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: "absent"}); status.Code(err) != codes.NotFound {
			t.Errorf("without anybody who reads the log: %v", err)
		}
	}
	signal(t, daemon.Process.Pid, syscall.SIGTERM)
	if err := daemon.Wait(); err != nil {
		t.Error(err)
	}
	n.start()
	n.before = nil // of another daemon
}

// Each removal that failed began a chain of retries of its own, for ever.
func TestFailedRemovalsAreRetriedOnce(t *testing.T) {
	n, _ := readyNode(t, options{})
	box := n.runPod(n.podConfig())
	n.kill()
	n.reconfigure(`plugin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]`, fmt.Sprintf("plugin_dirs = [%q]", n.path("plugins")))
	n.start()
	const calls = 10
	for range calls {
		if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err == nil {
			t.Fatal("it was removed without plugins")
		}
	}
	time.Sleep(4 * time.Second) // the next try comes after a minute
	if b := n.status().Blocked; len(b) != 1 || b[0].Tries != calls {
		t.Errorf("blocked: %+v, want %d tries", b, calls)
	}
	if err := os.Symlink("/usr/lib/cni", n.path("plugins")); err != nil {
		t.Fatal(err)
	}
	n.before = nil // of another daemon
}

// A second daemon that shared only the run directory swept the first one's containers.
func TestSecondDaemonOnTheSameRunDirectoryIsRefused(t *testing.T) {
	n, _ := readyNode(t, options{})
	ctx, cancel := context.WithTimeout(context.Background(), waitTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary(t, "race/crio"), "--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d"),
		"--state-dir", n.path("state2"), "--root", n.path("storage2"), "--runroot", n.path("storage-run2"), "--listen", n.path("2.sock")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another crio uses it") {
		t.Errorf("%v: %s", err, out)
	}
}

// A container whose monitor hung could be killed, but neither stopped nor removed.
func TestHangingMonitorDoesNotKeepItsContainer(t *testing.T) {
	n, image := readyNode(t, options{env: []string{"CONTAINER_CTR_STOP_TIMEOUT=1"}})
	pod := n.podConfig()
	box := n.runPod(pod)
	for _, remove := range []bool{false, true} {
		id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
		signal(t, n.monitorOf(id), syscall.SIGSTOP)
		n.answersInTime()
		if remove {
			if _, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Errorf("remove: %v", err)
			}
			continue
		}
		if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("stop: %v", err)
		}
		if s := n.container(id); s.GetExitCode() != 255 || s.GetReason() != "MonitorLost" {
			t.Errorf("status: %v", s)
		}
	}
}

// A log on a full disk loses output, not the container; what it loses is counted.
func TestFullLogDiskIsCounted(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	if err := os.MkdirAll(pod.GetLogDirectory(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", pod.GetLogDirectory(), "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(pod.GetLogDirectory(), unix.MNT_DETACH) })
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, shell("yes 0123456789 | head -n 50000; exit 42")...))
	if s := n.exited(id); s.GetExitCode() != 42 {
		t.Errorf("status: %v", s)
	}
	n.answersInTime()
	text := n.get("/metrics")
	var dropped int
	_, rest, _ := strings.Cut(string(text), "\ncrio_container_log_dropped_bytes_total ")
	if _, err := fmt.Sscan(rest, &dropped); err != nil || dropped < 400_000 || dropped > 550_000 {
		t.Errorf("dropped %d of 550000 bytes, %v:\n%s", dropped, err, text)
	}
	n.removeAll()
	if err := unix.Unmount(pod.GetLogDirectory(), unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}
