package test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/test/fixture"
)

var pods atomic.Int32

// testParent begins the cgroups of this run's pods and monitors: others may test here, too.
func testParent() string {
	if cgroupManager() == cgroup.Systemd {
		return fmt.Sprintf("criotest%d", os.Getpid())
	}
	return fmt.Sprintf("/crio-test-%d/", os.Getpid())
}

// parentOf is the cgroup of a pod, as the kubelet would name it.
func parentOf(pod string) string {
	if cgroupManager() == cgroup.Systemd {
		return testParent() + "-" + strings.ReplaceAll(pod, "-", "_") + ".slice"
	}
	return testParent() + pod
}

// cgroupManager is the driver of the daemons under test: cgroupfs, unless the variable
// CRIO_TEST_CGROUP_MANAGER says systemd on a machine that has it.
func cgroupManager() string {
	return cmp.Or(os.Getenv("CRIO_TEST_CGROUP_MANAGER"), cgroup.Cgroupfs)
}

// readyNode is a node with busybox on it that has run a pod before: what stays for
// good (a bridge, packet filter chains) is there, and the inventory is taken.
func readyNode(t *testing.T, o options) (*node, string) {
	t.Helper()
	if o.registry == nil {
		o.registry = fixture.StartRegistry(t, fixture.RegistryOptions{})
	}
	ref := o.registry.Push(t, "busybox", "v1", fixture.BusyboxImage(t, "sleep", "3600"))
	n := newNode(t, o)
	image := n.pull(ref)
	config := n.podConfig()
	config.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 18999}}
	box := n.runPod(config)
	id := n.runContainer(box, config, n.containerConfig(image, "true"))
	n.exited(id)
	n.exec(n.runContainer(box, config, n.containerConfig(image, "sleep", "99")), "true")
	n.removeAll()
	n.before = n.settled()
	return n, image
}

func (n *node) pull(ref string) string {
	n.t.Helper()
	a, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatalf("pull: %v", err)
	}
	return a.GetImageRef()
}

// podConfig is a pod of its own name, with a PID namespace for each container.
func (n *node) podConfig() *cri.PodSandboxConfig {
	name := fmt.Sprintf("pod-%d", pods.Add(1))
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name},
		Hostname: name, LogDirectory: n.path("logs/" + name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: parentOf(name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
}

func (n *node) containerConfig(image string, command ...string) *cri.ContainerConfig {
	name := fmt.Sprintf("ctr-%d", pods.Add(1))
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image}, Command: command, LogPath: name + "/0.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
}

func shell(script string) []string { return []string{"sh", "-c", script} }

func (n *node) runPod(config *cri.PodSandboxConfig) string {
	n.t.Helper()
	a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		n.t.Fatalf("run pod: %v", err)
	}
	n.made = append(n.made, a.GetPodSandboxId())
	return a.GetPodSandboxId()
}

func (n *node) create(box string, pod *cri.PodSandboxConfig, config *cri.ContainerConfig) string {
	n.t.Helper()
	a, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	if err != nil {
		n.t.Fatalf("create container: %v", err)
	}
	return a.GetContainerId()
}

func (n *node) startContainer(id string) {
	n.t.Helper()
	if _, err := n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatalf("start container: %v", err)
	}
}

func (n *node) runContainer(box string, pod *cri.PodSandboxConfig, config *cri.ContainerConfig) string {
	n.t.Helper()
	id := n.create(box, pod, config)
	n.startContainer(id)
	return id
}

func (n *node) container(id string) *cri.ContainerStatus {
	n.t.Helper()
	a, err := n.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatalf("container status: %v", err)
	}
	return a.GetStatus()
}

func (n *node) sandbox(id string) *cri.PodSandboxStatus {
	n.t.Helper()
	a, err := n.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		n.t.Fatalf("sandbox status: %v", err)
	}
	return a.GetStatus()
}

// exited waits for the end of a container.
func (n *node) exited(id string) *cri.ContainerStatus {
	n.t.Helper()
	var s *cri.ContainerStatus
	n.await("the end of the container", func() error {
		if s = n.container(id); s.GetState() != cri.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %s", s.GetState())
		}
		return nil
	})
	return s
}

func (n *node) exec(id string, command ...string) *cri.ExecSyncResponse {
	n.t.Helper()
	a, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 60})
	if err != nil {
		n.t.Fatalf("exec %q: %v", command, err)
	}
	return a
}

// record is one line of a CRI log.
type record struct {
	at          time.Time
	stream, tag string
	text        string
}

func (n *node) log(path string) []record {
	n.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	var all []record
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 || !strings.HasSuffix(line, "\n") {
			n.t.Fatalf("%s: %q is not a record", path, line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			n.t.Fatalf("%s: %v", path, err)
		}
		all = append(all, record{at, f[1], f[2], f[3]})
	}
	return all
}

func logOf(pod *cri.PodSandboxConfig, config *cri.ContainerConfig) string {
	return filepath.Join(pod.GetLogDirectory(), config.GetLogPath())
}

// awaitLog waits until the container has written a line.
func (n *node) awaitLog(path, want string) {
	n.t.Helper()
	n.await("line "+want, func() error {
		data, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(data), want) {
			err = fmt.Errorf("the log is %q", data)
		}
		return err
	})
}
