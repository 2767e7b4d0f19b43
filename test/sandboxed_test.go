package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runscConf is Debian's runsc. ptrace is the one platform of it that needs nothing of the
// machine. Its own network stack refuses newer kernels, on which it takes each network
// namespace for the node's (net.core.rmem_default is in all of them since Linux 6.9), so
// that it has the sockets of the pod's network namespace, without privileges in it.
const runscConf = `
[crio.runtime.runtimes.runsc]
runtime_type = "sandbox"
runtime_args = ["--platform=ptrace", "--network=host"]
[crio.runtime.runtimes.absent]
runtime_type = "sandbox"
runtime_path = "/absent/runsc"
`

// runSandboxed runs a pod of the handler runsc.
func (n *node) runSandboxed(config *cri.PodSandboxConfig) string {
	n.t.Helper()
	a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "runsc"})
	if err != nil {
		n.t.Fatalf("run pod: %v", err)
	}
	return a.GetPodSandboxId()
}

// sandboxNode is a node that has run such a pod before.
func sandboxNode(t *testing.T) (*node, string) {
	t.Helper()
	n, image := readyNode(t, options{conf: runscConf})
	config := n.podConfig()
	n.wantCode(n.runContainer(n.runSandboxed(config), config, n.containerConfig(image, "true")), 0)
	n.removeAll()
	n.before = n.settled()
	return n, image
}

// wantCode waits for the end of a container.
func (n *node) wantCode(id string, code int32) {
	n.t.Helper()
	if s := n.exited(id); s.GetExitCode() != code || s.GetFinishedAt() < s.GetStartedAt() || s.GetStartedAt() == 0 {
		n.t.Errorf("exit code %d, want %d: %v", s.GetExitCode(), code, s)
	}
}

// A pod in runsc's sandbox: not the node's kernel, but the pod's network, log, exec and
// exit codes as elsewhere; and the daemon may die beside it.
func TestPodInASandboxOfItsRuntime(t *testing.T) {
	n, image := sandboxNode(t)
	client := n.podConfig()
	caller := n.runContainer(n.runPod(client), client, n.containerConfig(image, "sleep", "999"))

	pod := n.podConfig()
	box := n.runSandboxed(pod)
	server := n.containerConfig(image, shell("mkdir /www; echo page > /www/index.html; echo serving; echo trouble >&2; exec httpd -f -p 8080 -h /www")...)
	serverID := n.runContainer(box, pod, server)
	second := n.containerConfig(image, shell("trap 'echo asked; exit 3' TERM; while :; do sleep 0.1; done")...)
	secondID := n.runContainer(box, pod, second)

	n.awaitLog(logOf(pod, server), "serving")
	n.awaitLog(logOf(pod, server), "trouble")
	for _, r := range n.log(logOf(pod, server)) {
		if r.text == "serving" && r.stream != "stdout" || r.text == "trouble" && r.stream != "stderr" || r.tag != "F" {
			t.Errorf("record %+v", r)
		}
	}
	if got := string(n.exec(serverID, "busybox", "dmesg").GetStdout()); !strings.Contains(got, "gVisor") {
		t.Errorf("the kernel's words: %q", got)
	}
	if got := string(n.exec(caller, "busybox", "dmesg").GetStdout()); strings.Contains(got, "gVisor") {
		t.Errorf("a pod of the default handler runs in a sandbox: %q", got)
	}
	if got := string(n.exec(serverID, "hostname").GetStdout()); got != pod.GetHostname()+"\n" {
		t.Errorf("hostname %q", got)
	}
	page := func() {
		t.Helper()
		address := n.sandbox(box).GetNetwork().GetIp()
		n.await("the page", func() error {
			if got := n.exec(caller, "wget", "-q", "-O", "-", "http://"+address+":8080/"); string(got.GetStdout()) != "page\n" {
				return fmt.Errorf("exit code %d, %q: %s", got.GetExitCode(), got.GetStdout(), got.GetStderr())
			}
			return nil
		})
	}
	page()
	if got := n.exec(serverID, shell("echo out; echo err >&2; exit 42")...); string(got.GetStdout()) != "out\n" || string(got.GetStderr()) != "err\n" || got.GetExitCode() != 42 {
		t.Errorf("exec: %v", got)
	}
	if _, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: serverID, Cmd: []string{"/absent"}}); err == nil || !strings.Contains(err.Error(), "/absent") {
		t.Errorf("exec of what is absent: %v", err)
	}

	before, beforeBox := n.container(serverID), n.sandbox(box)
	n.kill()
	n.start()
	if after, afterBox := n.container(serverID), n.sandbox(box); !proto.Equal(before, after) || !proto.Equal(beforeBox, afterBox) {
		t.Errorf("before %v %v\nafter  %v %v", before, beforeBox, after, afterBox)
	}
	page()

	n.wantCode(n.runContainer(box, pod, n.containerConfig(image, "true")), 0)
	n.wantCode(n.runContainer(box, pod, n.containerConfig(image, shell("exit 3")...)), 3)
	terminal := n.containerConfig(image, shell("test -t 0 && test -t 1 && echo a terminal; exit 5")...)
	terminal.Tty = true
	n.wantCode(n.runContainer(box, pod, terminal), 5)
	n.awaitLog(logOf(pod, terminal), "a terminal")
	begun := time.Now()
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: secondID, Timeout: 30}); err != nil {
		t.Errorf("stop: %v", err)
	}
	n.wantCode(secondID, 3)
	n.awaitLog(logOf(pod, second), "asked")
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: serverID}); err != nil {
		t.Errorf("kill: %v", err)
	}
	n.wantCode(serverID, 137)
	if s := n.sandbox(box); s.GetState() != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the sandbox: %v", s)
	}
}

// Users, environment, mounts and a read-only root are what they are elsewhere; so is a
// command that does not exist.
func TestContainersInASandboxHaveWhatTheyAskFor(t *testing.T) {
	n, image := sandboxNode(t)
	pod := n.podConfig()
	pod.Linux.SecurityContext.Privileged = true
	box := n.runSandboxed(pod)
	shared, fixed := t.TempDir(), t.TempDir()
	if err := errors.Join(os.WriteFile(fixed+"/in", []byte("given\n"), 0o644), os.Chmod(shared, 0o777), os.Chmod(fixed, 0o755)); err != nil {
		t.Fatal(err)
	}
	config := n.containerConfig(image, shell("id -u; id -g; echo $WHO; cat /fixed/in; grep -c . /etc/hosts; echo made > /shared/out; touch /root/x || echo no; touch /fixed/x || echo no; touch /dev/shm/x && echo shm; exec sleep 999")...)
	config.Envs = []*cri.KeyValue{{Key: "WHO", Value: []byte("me")}}
	config.Mounts = []*cri.Mount{{HostPath: shared, ContainerPath: "/shared"}, {HostPath: fixed, ContainerPath: "/fixed", Readonly: true}}
	config.Linux.SecurityContext.RunAsUser, config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 1001}
	config.Linux.SecurityContext.ReadonlyRootfs = true
	config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	id := n.runContainer(box, pod, config)
	n.awaitLog(logOf(pod, config), "shm")
	var lines []string
	for _, r := range n.log(logOf(pod, config)) {
		if r.stream == "stdout" {
			lines = append(lines, r.text)
		}
	}
	if got := strings.Join(lines, " "); !regexp.MustCompile(`^1000 1001 me given [1-9][0-9]* no no shm$`).MatchString(got) {
		t.Errorf("the container sees %q", got)
	}
	if out, err := os.ReadFile(shared + "/out"); err != nil || string(out) != "made\n" {
		t.Errorf("on the node: %q, %v", out, err)
	}
	if got := string(n.exec(id, shell("id -u; echo $WHO")...).GetStdout()); got != "1000\nme\n" {
		t.Errorf("exec: %q", got)
	}
	privileged := n.containerConfig(image, "sleep", "999")
	privileged.Linux.SecurityContext.Privileged = true
	nodes := string(n.exec(n.runContainer(box, pod, privileged), "ls", "/dev").GetStdout())
	if !strings.Contains(nodes, "null") || strings.Contains(nodes, "loop") || strings.Contains(nodes, "kmsg") {
		t.Errorf("a privileged container's devices: %q", nodes)
	}
	absent := n.create(box, pod, n.containerConfig(image, "/absent"))
	if _, err := n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: absent}); err == nil || !strings.Contains(err.Error(), "/absent") {
		t.Errorf("start of what is absent: %v", err)
	}
	if s := n.container(absent); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 128 || s.GetReason() != "StartError" {
		t.Errorf("what could not be started: %v", s)
	}
}

// What a sandbox cannot have is refused by name, before anything is made.
func TestSandboxRefusesWhatItCannotHave(t *testing.T) {
	n, image := sandboxNode(t)
	for want, change := range map[string]func(*cri.PodSandboxConfig){
		"namespace_options.network": func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		},
		"namespace_options.pid": func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
		},
		"namespace_options.ipc": func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
		},
		"sysctls":        func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} },
		"userns_options": podUsers(usersFrom(1 << 20)),
	} {
		config := n.podConfig()
		change(config)
		_, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "runsc"})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	pod := n.podConfig()
	box := n.runSandboxed(pod)
	for want, change := range map[string]func(*cri.ContainerConfig){
		"namespace_options.pid NODE": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
		},
		"namespace_options.pid TARGET": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "x"}
		},
		"devices": func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rw"}}
		},
		"CDI_devices": func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "a/b=c"}} },
		"seccomp": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/x"}
		},
		"apparmor": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "x"}
		},
		"propagation": func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: t.TempDir(), ContainerPath: "/m", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
		},
		"recursive": func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: t.TempDir(), ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true}}
		},
	} {
		config := n.containerConfig(image, "true")
		change(config)
		_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	_, err := n.UpdateContainerResources(n.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 512}})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "runsc") {
		t.Errorf("update: %v", err)
	}
}

// A command that is given up is killed inside of the sandbox with what it has forked,
// and so is one whose daemon was killed.
func TestExecInASandboxLeavesNoProcess(t *testing.T) {
	n, image := sandboxNode(t)
	pod := n.podConfig()
	box := n.runSandboxed(pod)
	for _, mode := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD} {
		config := n.containerConfig(image, "sleep", "999")
		config.Linux.SecurityContext.NamespaceOptions.Pid = mode
		id := n.runContainer(box, pod, config)
		first := "1"
		if mode == cri.NamespaceMode_POD {
			first = "pause"
		}
		if got := string(n.exec(id, "ps").GetStdout()); mode == cri.NamespaceMode_POD != strings.Contains(got, "pause") {
			t.Errorf("%s: PID 1 is to be %s:\n%s", mode, first, got)
		}
		_, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: shell("sleep 71 & sleep 72; echo"), Timeout: 1})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s: exec: %v", mode, err)
		}
		n.wantNoCommand(id)
		go func() {
			_, _ = n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: shell("touch /begun; sleep 71 & sleep 72; echo")})
		}()
		n.await("the command", func() error {
			if code := n.exec(id, "test", "-e", "/begun").GetExitCode(); code != 0 {
				return fmt.Errorf("code %d", code)
			}
			return nil
		})
		n.kill()
		n.start()
		n.wantNoCommand(id)
	}
	// The handler leaves the configuration, and its pods stay.
	n.write("crio.conf", n.config(options{}))
	n.stop()
	n.start()
	for _, c := range n.containersOf(box) {
		if got := n.exec(c, "true"); got.GetExitCode() != 0 {
			t.Errorf("exec: %v", got)
		}
	}
}

func (n *node) containersOf(box string) []string {
	n.t.Helper()
	list, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: box}})
	if err != nil {
		n.t.Fatal(err)
	}
	var ids []string
	for _, c := range list.GetContainers() {
		ids = append(ids, c.GetId())
	}
	return ids
}

func (n *node) wantNoCommand(id string) {
	n.t.Helper()
	n.await("the end of the command", func() error {
		if got := string(n.exec(id, "ps").GetStdout()); strings.Contains(got, "sleep 7") {
			return fmt.Errorf("processes:\n%s", got)
		}
		return nil
	})
}

// The sandbox's end is that of its containers, whose codes nobody knows.
func TestLostSandboxIsTold(t *testing.T) {
	n, image := sandboxNode(t)
	pod := n.podConfig()
	box := n.runSandboxed(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
	n.killSandbox(box)
	if s := n.exited(id); s.GetExitCode() != 255 || !strings.Contains(s.GetMessage(), "runtime wait") {
		t.Errorf("the container: %v", s)
	}
	n.await("the sandbox's end", func() error {
		if s := n.sandbox(box).GetState(); s != cri.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("it is %s", s)
		}
		return nil
	})
}

// killSandbox kills the process that the pod's sandbox is on the node.
func (n *node) killSandbox(box string) {
	n.t.Helper()
	data, err := os.ReadFile(n.path("run/containers/" + box + "/pid"))
	if err != nil {
		n.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		n.t.Fatal(err)
	}
	// With its memory it is the pod's, not the monitor's.
	if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !strings.Contains(string(groups), box) || strings.Contains(string(groups), "conmon") {
		n.t.Errorf("the sandbox's cgroups: %v\n%s", err, groups)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

// Handlers are listed by name, sorted; one whose runtime is absent is left out.
// A runtime whose kill hangs, or fails or dies in the long form: the container in its sandbox is stopped without it,
// and is told why nobody saw its end.
func TestFaultyKillInASandbox(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runsc")
	orders := faulty(t, path, runtimeVerb, `runsc "$@"`)
	n, image := readyNode(t, options{
		conf: strings.Replace(runscConf, "runtime_type", fmt.Sprintf("runtime_path = %q\nruntime_type", path), 1),
		env:  []string{"CONTAINER_CTR_STOP_TIMEOUT=1"},
	})
	n.before["file run/oci/runsc"]++ // stays, as any handler's
	order := filepath.Join(orders, "kill")
	faults := map[string]string{"hangs": "runtime kill"}
	if os.Getenv("CRIO_TORTURE") != "" {
		faults["fails"], faults["dies"] = "no luck in kill", "signal: killed"
	}
	for fault, reason := range faults {
		pod := n.podConfig()
		box := n.runSandboxed(pod)
		id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
		n.order(order, fault)
		if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("stop with a kill that %s: %v", fault, err)
		}
		if s := n.container(id); s.GetExitCode() != 255 || s.GetReason() != "MonitorLost" || !strings.Contains(s.GetMessage(), reason) {
			t.Errorf("a kill that %s: %v", fault, s)
		}
		n.answersInTime()
		if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
			t.Errorf("removal with a kill that %s: %v", fault, err)
		}
		n.endOrder(order)
	}
}

func TestSandboxHandlerIsListed(t *testing.T) {
	n := newNode(t, options{conf: runscConf})
	s, err := n.Status(n.ctx(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range s.GetRuntimeHandlers() {
		names = append(names, h.GetName())
		if f := h.GetFeatures(); h.GetName() == "runsc" && (f.GetRecursiveReadOnlyMounts() || f.GetUserNamespaces()) {
			t.Errorf("features: %v", f)
		}
	}
	if !slices.Equal(names, []string{"", "runc", "runsc"}) {
		t.Errorf("handlers %q", names)
	}
	if log := n.output.String(); !strings.Contains(log, "runtime handler is left out") || !strings.Contains(log, "/absent/runsc") {
		t.Error("nobody was told of the absent runtime")
	}
}

// A daemon that is killed at any moment of a sandbox's life leaves nothing of it.
func TestKilledAmongSandboxesNothingIsLeft(t *testing.T) {
	n, image := sandboxNode(t)
	for round := range 6 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			pod := n.podConfig()
			a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: "runsc"})
			if err != nil {
				return
			}
			c, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: a.GetPodSandboxId(), Config: n.containerConfig(image, "sleep", "999"), SandboxConfig: pod})
			if err != nil {
				return
			}
			_, _ = n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: c.GetContainerId()})
			_, _ = n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: a.GetPodSandboxId()})
		}()
		time.Sleep(time.Duration(50+rand.IntN(1500)) * time.Millisecond)
		n.kill()
		<-done
		n.start()
		n.removeAll()
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}
