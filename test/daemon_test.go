package test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// condition returns a condition of Status.
func (n *node) condition(kind string) *cri.RuntimeCondition {
	n.t.Helper()
	s, err := n.Status(n.ctx(), &cri.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range s.GetStatus().GetConditions() {
		if c.GetType() == kind {
			return c
		}
	}
	n.t.Fatalf("no condition %s", kind)
	return nil
}

// Without a network pods are refused at once and told why; one that appears is used
// without a restart.
func TestNetworkConfigurationComesAndGoes(t *testing.T) {
	n := newNode(t, options{bare: true})
	refused := func(reason string) {
		t.Helper()
		if c := n.condition(cri.NetworkReady); c.GetStatus() || !strings.Contains(c.GetMessage(), reason) {
			t.Errorf("NetworkReady: %v, want %q", c, reason)
		}
		begun := time.Now()
		_, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()})
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), reason) {
			t.Errorf("run pod: %v, want %q", err, reason)
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("the refusal took %s", took)
		}
	}
	refused("no CNI configuration in " + n.path("cni"))
	n.write("cni/05-broken.conflist", "{")
	refused("05-broken.conflist")
	n.write("cni/05-broken.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"not-installed"}]}`)
	refused(`plugin "not-installed" is in none of`)
	n.write("cni/05-broken.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"../escape"}]}`)
	refused("is not a file name")
	if err := os.RemoveAll(n.path("cni")); err != nil {
		t.Fatal(err)
	}
	refused("does not exist")
	// A host network pod needs none of it.
	host := n.podConfig()
	host.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	if ip := n.sandbox(n.runPod(host)).GetNetwork().GetIp(); ip != "" {
		t.Errorf("a host network pod has the address %s", ip)
	}
	if err := os.Mkdir(n.path("cni"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("cni/05-broken.conflist", "{") // passed over, since there is a good one
	n.write("cni/10-bridge.conflist", n.conflist())
	if c := n.condition(cri.NetworkReady); !c.GetStatus() {
		t.Errorf("NetworkReady: %v", c)
	}
	pod := n.podConfig()
	box := n.runPod(pod)
	if ip := n.sandbox(box).GetNetwork().GetIp(); !strings.HasPrefix(ip, "10.") {
		t.Errorf("address %q", ip)
	}
	// The pod is detached with what it was attached with, although that is gone.
	if err := os.RemoveAll(n.path("cni")); err != nil {
		t.Fatal(err)
	}
	n.removeAll()
	if left, err := os.ReadDir(n.path(fmt.Sprintf("ipam/test%d", n.number))); err != nil || strings.Contains(fmt.Sprint(left), " 10.") {
		t.Errorf("addresses are still given: %v, %v", left, err)
	}
}

// A plugin that fails in ADD leaves no pod, and its words are told.
func TestFailingNetworkPluginLeavesNothing(t *testing.T) {
	n, _ := readyNode(t, options{})
	script := "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\necho '{\"cniVersion\":\"1.0.0\",\"code\":99,\"msg\":\"no luck today\"}'\nexit 1\n"
	n.write("failing", script)
	if err := os.Chmod(n.path("failing"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("crio.conf", strings.Replace(n.config(options{}), `plugin_dirs = [`, fmt.Sprintf(`plugin_dirs = [%q, `, n.dir), 1))
	n.stop()
	n.start()
	n.write("cni/10-bridge.conflist", strings.Replace(n.conflist(), `{"type":"portmap"`, `{"type":"failing"},{"type":"portmap"`, 1))
	_, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()})
	if err == nil || !strings.Contains(err.Error(), "no luck today") || !strings.Contains(err.Error(), "cni add") {
		t.Errorf("run pod: %v", err)
	}
	n.before = nil // another daemon, with another number of goroutines; what counts is below
	inv := n.inventory()
	for name := range inv {
		for _, part := range []string{"ipam/test", "run/pods/", "state/pods/", testParent() + "pod", "veth", "ns/net"} {
			if strings.Contains(name, part) && !strings.Contains(name, "last_reserved") && !strings.HasSuffix(name, "/lock") {
				t.Errorf("left: %s", name)
			}
		}
	}
}

func TestStatusAndVersions(t *testing.T) {
	n := newNode(t, options{})
	v, err := n.Version(n.ctx(), &cri.VersionRequest{})
	if err != nil || v.GetRuntimeName() != "cri-o" || !strings.HasPrefix(v.GetRuntimeVersion(), "1.37.") || v.GetRuntimeApiVersion() != "v1" {
		t.Errorf("%v, %v", v, err)
	}
	if c := n.condition(cri.RuntimeReady); !c.GetStatus() {
		t.Errorf("RuntimeReady: %v", c)
	}
	for verbose, wanted := range map[bool]bool{true: true, false: false} {
		s, err := n.Status(n.ctx(), &cri.StatusRequest{Verbose: verbose})
		if err != nil || (len(s.GetInfo()) > 0) != wanted || len(s.GetRuntimeHandlers()) != 2 {
			t.Errorf("verbose %t: %v, %v", verbose, s, err)
		}
	}
	c, err := n.RuntimeConfig(n.ctx(), &cri.RuntimeConfigRequest{})
	if err != nil || c.GetLinux().GetCgroupDriver() != cri.CgroupDriver_CGROUPFS {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig(), RuntimeHandler: "absent"}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "absent") {
		t.Errorf("an unknown handler: %v", err)
	}
}

// systemd is told when the daemon is ready and when it ends, and SIGTERM ends it with 0.
func TestNotifyAndSIGTERM(t *testing.T) {
	path := t.TempDir() + "/notify"
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	n := newNode(t, options{env: []string{"NOTIFY_SOCKET=" + path}})
	told := func() string {
		buf := make([]byte, 256)
		if err := listener.SetReadDeadline(time.Now().Add(waitTime)); err != nil {
			t.Fatal(err)
		}
		count, err := listener.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:count])
	}
	if got := told(); got != "READY=1" {
		t.Errorf("told %q", got)
	}
	if info, err := os.Stat(n.socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got := told(); got != "STOPPING=1" {
		t.Errorf("told %q", got)
	}
}

// A call that runs when SIGTERM comes is answered before the daemon ends.
func TestSIGTERMDrains(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	answered := make(chan error, 1)
	go func() {
		a, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: shell("touch /begun; sleep 1; echo done")})
		if err == nil && string(a.GetStdout()) != "done\n" {
			err = fmt.Errorf("answer %v", a)
		}
		answered <- err
	}()
	n.await("the command", func() error {
		if code := n.exec(id, "test", "-e", "/begun").GetExitCode(); code != 0 {
			return fmt.Errorf("code %d", code)
		}
		return nil
	})
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	n.start()
	if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container after a restart: %v", s)
	}
}

func TestSecondDaemonOnTheSameStateIsRefused(t *testing.T) {
	n := newNode(t, options{})
	ctx, cancel := context.WithTimeout(context.Background(), waitTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary(t, "race/crio"), "--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another crio uses it") || !strings.Contains(string(out), fmt.Sprint(n.daemon.Process.Pid)) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := n.Version(n.ctx(), &cri.VersionRequest{}); err != nil {
		t.Errorf("the first daemon: %v", err)
	}
}

// crio status on the socket of the daemon, whose path is longer than a socket's may be.
func TestStatusCommand(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	out, err := exec.Command(binary(t, "race/crio"), "--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d"), "status").CombinedOutput()
	for _, want := range []string{"network", "ready", "sandboxes ready", "containers running", "heap"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("no %q: %v\n%s", want, err, out)
		}
	}
}

// An operation that hangs is named with its stage, and holds up nobody else.
func TestHangingPluginIsNamedAndHoldsUpNobody(t *testing.T) {
	n, image := readyNode(t, options{})
	n.write("hanging", "#!/bin/sh\n[ $CNI_COMMAND != ADD ] || exec sleep 3\nexit 0\n")
	if err := os.Chmod(n.path("hanging"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("crio.conf", strings.Replace(n.config(options{}), `plugin_dirs = [`, fmt.Sprintf(`plugin_dirs = [%q, `, n.dir), 1))
	n.stop()
	n.start()
	n.before = n.settled()
	pod := n.podConfig()
	box := n.runPod(pod)
	n.write("cni/10-bridge.conflist", strings.Replace(n.conflist(), `"plugins":[`, `"plugins":[{"type":"hanging"},`, 1))
	hung := n.podConfig()
	ctx, cancel := context.WithTimeout(n.ctx(), 500*time.Millisecond)
	defer cancel()
	_, err := n.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: hung})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("run pod: %v", err)
	}
	if ops := n.status().Operations; len(ops) != 1 || ops[0].Stage != "cni add" {
		t.Errorf("operations: %+v", ops)
	}
	begun := time.Now()
	if _, err := n.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{}); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("a list took %s", took)
	}
	n.runContainer(box, pod, n.containerConfig(image, "true"))
	// The plugin's empty answer is no network: the pod is refused, and undone.
	if _, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: hung}); err == nil {
		t.Error("a network without a result was accepted")
	}
}
