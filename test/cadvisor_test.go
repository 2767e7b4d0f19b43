package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/server"
)

// cadvisorNode listens where the kubelet asks its cAdvisor for what pods use.
func cadvisorNode(t *testing.T) (*node, string) {
	return readyNode(t, options{socket: "run/crio/crio.sock"})
}

// ask decodes an answer of the HTTP side, false when there is no such thing.
func (n *node) ask(path string, into any) bool {
	n.t.Helper()
	text := n.get(path)
	if strings.Contains(string(text), "does not exist") {
		return false
	}
	if err := json.Unmarshal(text, into); err != nil {
		n.t.Fatalf("%s: %q: %v", path, text, err)
	}
	return true
}

// countersGroups are the cgroups of the pod in which cAdvisor looks for its network.
func countersGroups(t *testing.T, pod *cri.PodSandboxConfig, box string) []string {
	t.Helper()
	var all []string
	parent := pod.GetLinux().GetCgroupParent()
	if cgroupManager() == cgroup.Systemd {
		parent = "/" + testParent() + ".slice/" + parent
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, err := filepath.Glob(pattern + parent + "/crio-" + box)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// kubeletsPod is a pod whose slice is there, as the kubelet makes it.
func (n *node) kubeletsPod() *cri.PodSandboxConfig {
	n.t.Helper()
	pod := n.podConfig()
	if slice := pod.GetLinux().GetCgroupParent(); cgroupManager() == cgroup.Systemd {
		if out, err := exec.Command("systemctl", "start", slice).CombinedOutput(); err != nil {
			n.t.Fatalf("%s: %v: %s", slice, err, out)
		}
		n.t.Cleanup(func() { _ = exec.Command("systemctl", "stop", slice).Run() })
	}
	return pod
}

// inGroup checks that a process is one of a container, or of the pause, with the id.
func (n *node) inGroup(pid int, id string) {
	n.t.Helper()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(groups), "/crio-"+id) {
		n.t.Errorf("pid %d is in %s, %v; want crio-%s", pid, groups, err, id)
	}
}

// What cAdvisor reads of a pod and its containers
// (github.com/google/cadvisor/container/crio).
func TestCAdvisorsDoor(t *testing.T) {
	n, image := cadvisorNode(t)
	var info server.NodeInfo
	if !n.ask("/info", &info) || info.StorageDriver != "overlay" || info.StorageRoot != n.path("storage") || info.StorageImage != "" || info.CgroupDriver != cgroupManager() {
		t.Errorf("info: %+v", info)
	}
	pod := n.kubeletsPod()
	pod.Labels = map[string]string{"io.kubernetes.pod.name": "web"}
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	config.Labels = map[string]string{"io.kubernetes.container.name": "main"}
	config.Annotations = map[string]string{"io.kubernetes.container.restartCount": "2"}
	id := n.create(box, pod, config)
	var c, p server.ContainerInfo
	if !n.ask("/containers/"+id, &c) || c.Pid != 0 {
		t.Errorf("a container that was created has pid %d", c.Pid)
	}
	if !n.ask("/containers/"+box, &p) || p.Pid != 0 {
		t.Errorf("a pod without a process has pid %d", p.Pid)
	}
	n.startContainer(id)
	n.ask("/containers/"+id, &c)
	n.ask("/containers/"+box, &p)
	n.inGroup(c.Pid, id)
	m := pod.GetMetadata()
	want := fmt.Sprintf("k8s_%s_%s_%s_%s_0", config.GetMetadata().GetName(), m.GetName(), m.GetNamespace(), m.GetUid())
	ip := n.sandbox(box).GetNetwork().GetIp()
	if c.Name != want || c.Labels["io.kubernetes.container.name"] != "main" || c.Annotations["io.kubernetes.container.restartCount"] != "2" ||
		c.LogPath != logOf(pod, config) || !strings.Contains(c.Image, "busybox") || c.CreatedTime != n.container(id).GetCreatedAt() ||
		c.Sandbox != box || len(c.IPs) != 1 || c.IPs[0] != ip {
		t.Errorf("container: %+v", c)
	}
	// cAdvisor measures what the container wrote beside its root.
	n.exec(id, "touch", "/written")
	root, mounted := strings.CutSuffix(c.Root, "/merged")
	if _, err := os.Stat(root + "/diff/written"); err != nil || !mounted {
		t.Errorf("root %s: %v", c.Root, err)
	}
	// The pod is what has the network: by its label, in a cgroup, at a process.
	if p.Labels["io.kubernetes.container.name"] != "POD" || p.Labels["io.kubernetes.pod.name"] != "web" || len(p.IPs) != 1 {
		t.Errorf("pod: %+v", p)
	}
	if written, err := os.ReadDir(p.Root + "/diff"); err != nil || len(written) != 0 {
		t.Errorf("the pod's root has %v, %v", written, err)
	}
	counters, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", p.Pid))
	if err != nil || !strings.Contains(string(counters), "eth0:") {
		t.Errorf("network of pid %d: %s, %v", p.Pid, counters, err)
	}
	groups := countersGroups(t, pod, box)
	if len(groups) == 0 {
		t.Error("the pod has no cgroup of its name")
	}
	for _, dir := range groups {
		if pids, err := os.ReadFile(dir + "/cgroup.procs"); err != nil || len(pids) != 0 {
			t.Errorf("%s: %q, %v", dir, pids, err)
		}
	}
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Fatal(err)
	}
	if left := countersGroups(t, pod, box); len(left) != 0 {
		t.Errorf("left of a pod that is stopped: %q", left)
	}
	if n.ask("/containers/"+box, &p); p.Pid != 0 {
		t.Errorf("a pod that is stopped has pid %d", p.Pid)
	}
	if n.ask("/containers/"+strings.Repeat("0", 64), &c) {
		t.Error("a container that does not exist is told")
	}
}

// A pod with a pause process has the cgroup and the process already; one on the node's
// network has no counters of its own; and elsewhere nobody looks for them.
func TestPodsWithoutCountersGroup(t *testing.T) {
	n, _ := cadvisorNode(t)
	sharing := n.podConfig()
	sharing.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	box := n.runPod(sharing)
	var p server.ContainerInfo
	n.ask("/containers/"+box, &p)
	n.inGroup(p.Pid, box)
	host := n.hostPod()
	if left := countersGroups(t, host, n.runPod(host)); len(left) != 0 {
		t.Errorf("a pod on the node's network has %q", left)
	}
	// The next daemon, at another socket, removes what the first one made.
	pod := n.kubeletsPod()
	box = n.runPod(pod)
	n.kill()
	made := countersGroups(t, pod, box)
	n.socket = n.path("crio.sock")
	n.write("crio.conf", strings.Replace(n.config(options{}), n.path("run/crio/crio.sock"), n.socket, 1))
	n.start()
	other := n.kubeletsPod()
	if left := countersGroups(t, other, n.runPod(other)); len(left) != 0 || len(made) == 0 {
		t.Errorf("where cAdvisor does not look there is %q, and was %q", left, made)
	}
	n.removeAll()
	for _, dir := range made {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left: %s, %v", dir, err)
		}
	}
}

func TestDebugDoor(t *testing.T) {
	n := newNode(t, options{})
	for _, answer := range []struct{ path, want string }{
		{"/config", fmt.Sprintf("listen = %q", n.socket)},
		{"/debug/goroutines", "goroutine "},
		{"/debug/heap", "\x1f\x8b"},
		{"/debug/status", `"Goroutines":`},
		{"/debug/status?gc=1", `"Heap":`},
		{"/metrics", "\ncrio_event_subscribers 0\n"},
		{"/metrics", "\n# TYPE go_gc_heap_allocs_objects_total counter\ngo_gc_heap_allocs_objects_total "},
	} {
		if text := string(n.get(answer.path)); !strings.Contains(text, answer.want) {
			t.Errorf("%s has no %q: %.1000s", answer.path, answer.want, text)
		}
	}
}
