package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/test/fixture"
)

const (
	// waitTime bounds every wait for something that has to come about. A container that
	// ends twice is started again 10 s later.
	waitTime = 60 * time.Second
	nodeName = "node1"
	nodeIP   = "192.168.77.1"
	// socket is where cAdvisor looks for the daemon, whatever the kubelet is told.
	socket = "/run/crio/crio.sock"
)

// node is a machine as Kubernetes sees it: a daemon, a kubelet, a registry.
type node struct {
	t   *testing.T
	dir string
	// Images in the registry. unused and pinned are no pod's.
	busybox, guest, unused, pinned string
	registry                       *fixture.Registry
	runtime                        cri.RuntimeServiceClient
	images                         cri.ImageServiceClient
	crio, kubelet                  *process
	// asked gets the paths that lifecycle hooks have asked the test itself for.
	asked chan string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{
		t: t, dir: t.TempDir(), registry: fixture.StartRegistry(t, fixture.RegistryOptions{}),
		crio: newProcess(t, "crio.log"), kubelet: newProcess(t, "kubelet.log"), asked: make(chan string, 10),
	}
	// The way to the volumes of pods with users of their own.
	for dir := n.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		check(t, os.Chmod(dir, 0o711))
	}
	// The kubelet's mounts are the daemon's, too, and those of containers that ask for it.
	check(t, unix.Mount(n.dir, n.dir, "", unix.MS_BIND, ""))
	check(t, unix.Mount("", n.dir, "", unix.MS_SHARED, ""))
	t.Cleanup(func() { check(t, unix.Unmount(n.dir, unix.MNT_DETACH)) })
	for _, dir := range []string{"cni", "conf.d", "kubelet", "logs", "manifests", "pki", "plugins", "trail", "host/below", "/run/crio"} {
		check(t, os.MkdirAll(n.path(dir), 0o755))
	}
	n.write("host/below/file", "from the node\n")
	n.write("resolv.conf", "nameserver 192.0.2.1\nsearch example.org\n")
	n.busybox = n.registry.Push(t, "busybox", "v1", fixture.BusyboxImage(t))
	n.guest = n.registry.Push(t, "guest", "v1", guestImage(t))
	n.unused = n.registry.Push(t, "unused", "v1", fixture.BusyboxImage(t, "unused"))
	n.pinned = n.registry.Push(t, "pinned", "v1", fixture.BusyboxImage(t, "pinned"))
	daemon := fixture.Daemon{Dir: n.dir, Socket: socket, CgroupManager: "cgroupfs", MonitorsCgroup: cgroupRoot() + "/monitors", Registry: n.registry}
	t.Setenv("CONTAINER_PINNED_IMAGES", n.pinned)
	// Debian's runc knows nothing of user namespaces.
	n.write("crio.conf", daemon.Conf(t)+fmt.Sprintf("[crio.runtime.runtimes.runc]\nruntime_path = %q\n", fixture.Binary(t, "runtimes/runc")))
	n.write("cni/10-bridge.conflist", daemon.Conflist())
	// An address that hostPorts are reached by, since the kubelet closes those of the loopback.
	if out, err := exec.Command("ip", "address", "add", nodeIP+"/24", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("the node's address: %v\n%s", err, out)
	}
	conn, err := grpc.NewClient("passthrough:///crio", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return sys.Dial(ctx, socket) }))
	check(t, err)
	t.Cleanup(func() {
		n.kubelet.kill()
		if n.crio.alive() {
			n.removePods()
		}
		n.crio.kill()
		conn.Close()
	})
	n.runtime, n.images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return n
}

// removePods removes what a test that has failed has left to the daemon.
func (n *node) removePods() {
	ctx, cancel := context.WithTimeout(context.Background(), waitTime)
	defer cancel()
	list, err := n.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	for _, box := range list.GetItems() {
		_, failed := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: box.GetId()})
		err = errors.Join(err, failed)
	}
	if err != nil {
		n.t.Errorf("remove pods: %v", err)
	}
}

// guestImage has the program that serves probes, and nothing else.
func guestImage(t *testing.T) *fixture.Image {
	t.Helper()
	program, err := os.ReadFile(fixture.Binary(t, "kubelet/guest"))
	check(t, err)
	spec := fixture.ImageSpec{Layers: [][]fixture.File{{{Path: "guest", Mode: 0o755, Data: program}}}}
	spec.Config.Entrypoint = []string{"/guest"}
	return fixture.BuildImage(t, spec)
}

func (n *node) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(n.dir, name)
}

func (n *node) write(name, text string) {
	n.t.Helper()
	check(n.t, os.WriteFile(n.path(name), []byte(text), 0o644))
}

// read is a file of the node without the newline at its end; a file that is not there is empty.
func (n *node) read(name string) string {
	n.t.Helper()
	text, err := os.ReadFile(n.path(name))
	if !errors.Is(err, os.ErrNotExist) {
		check(n.t, err)
	}
	return strings.TrimSuffix(string(text), "\n")
}

// startCrio runs the daemon.
func (n *node) startCrio() {
	n.t.Helper()
	n.crio.start(n.t, fixture.Binary(n.t, "race/crio"), "--config", n.path("crio.conf"), "--config-dir", n.path("none"))
	n.await("the daemon's first answer", func() error {
		if !n.crio.alive() {
			n.t.Fatalf("the daemon has ended: see %s", n.crio.log)
		}
		_, err := n.runtime.Version(n.t.Context(), &cri.VersionRequest{})
		return err
	})
}

// startKubelet runs the kubelet with more lines of configuration, and marks both logs.
func (n *node) startKubelet(more string) {
	n.t.Helper()
	n.write("kubelet.yaml", fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///var%s
staticPodPath: %s
podLogsDir: %s
volumeStatsAggPeriod: 2s
volumePluginDir: %s
cgroupRoot: %s
resolvConf: %s
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
fileCheckFrequency: 1s
syncFrequency: 5s
serializeImagePulls: false
registryPullQPS: 0
containerLogMaxSize: 32Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
`, socket, n.path("manifests"), n.path("logs"), n.path("plugins"), cgroupRoot(), n.path("resolv.conf"))+more)
	n.crio.mark(n.t)
	n.kubelet.mark(n.t)
	n.kubelet.start(n.t, os.Getenv(kubeletVariable), "--config", n.path("kubelet.yaml"), "--root-dir", n.path("kubelet"),
		"--cert-dir", n.path("pki"), "--hostname-override", nodeName, "--node-ip", nodeIP, "-v", "2", "--vmodule", "evented=4")
	n.await("the kubelet's first answer", func() error {
		_, err := n.get("/healthz")
		return err
	})
}

// runPods writes the manifests of pods/, one file for each pod, as the kubelet wants them.
func (n *node) runPods() {
	n.t.Helper()
	files, err := template.ParseGlob("pods/*.yaml")
	check(n.t, err)
	values := map[string]any{
		"Busybox": n.busybox, "Guest": n.guest, "Missing": n.registry.Host + "/missing:v1",
		"Trail": n.path("trail"), "Host": n.path("host"), "HookHost": nodeIP, "HookPort": n.serveHooks(),
	}
	for _, file := range files.Templates() {
		var text bytes.Buffer
		check(n.t, file.Execute(&text, values))
		for i, pod := range strings.Split(text.String(), "\n---\n") {
			n.write(fmt.Sprintf("manifests/%d-%s", i, file.Name()), pod)
		}
	}
}

// serveHooks answers HTTP requests with success, and returns its port on nodeIP.
func (n *node) serveHooks() int {
	n.t.Helper()
	listener, err := net.Listen("tcp", nodeIP+":0")
	check(n.t, err)
	server := &http.Server{ReadHeaderTimeout: waitTime, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { n.asked <- r.URL.Path })}
	go func() { _ = server.Serve(listener) }()
	n.t.Cleanup(func() { server.Close() })
	return listener.Addr().(*net.TCPAddr).Port
}

// await repeats until try succeeds.
func (n *node) await(what string, try func() error) {
	n.t.Helper()
	var err error
	for end := time.Now().Add(waitTime); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	n.t.Fatalf("%s does not come about: %v", what, err)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
