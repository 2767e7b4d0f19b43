package test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/server"
	"github.com/crio-minimal/crio/test/fixture"
)

// waitTime bounds every wait for something that has to come about.
const waitTime = 20 * time.Second

// nodes numbers the nodes of this run, for names and subnets of their own.
var nodes atomic.Int32

// node is one daemon with everything it has below dir, and a client of it.
type node struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient

	t      *testing.T
	number int32
	dir    string
	socket string
	env    []string
	// program is the daemon.
	program string
	conn    *grpc.ClientConn
	before  inventory

	mu     sync.Mutex
	daemon *exec.Cmd
	ended  chan struct{}
	output *output

	// made are the pods that were run through this view of the node.
	made []string
}

// options of a node.
type options struct {
	registry *fixture.Registry
	// conf is added to the daemon's configuration.
	conf string
	// bare leaves the node without a CNI configuration; dual gives pods IPv6, too.
	bare, dual bool
	// socket is the path of the daemon's socket below the node's directory, unless it is "".
	socket string
	// plain has the daemon as it is installed, without the race detector: for a test that measures.
	plain bool
	// failpoints has it built so that it can be held, and killed, at its failpoints.
	failpoints bool
	env        []string
}

// newNode starts a daemon. At the end of the test the node's inventory is compared
// with what it was after the first pod had come and gone.
func newNode(t *testing.T, o options) *node {
	t.Helper()
	n := &node{t: t, number: nodes.Add(1), env: o.env, program: "race/crio", output: &output{}}
	if o.plain {
		n.program = "crio"
	}
	if o.failpoints {
		n.program = "failpoints/crio"
	}
	// Longer than the path of a unix socket may be.
	n.dir = filepath.Join(t.TempDir(), strings.Repeat("long-", 25))
	n.socket = n.path(cmp.Or(o.socket, "crio.sock"))
	// As the way to /run is on a node: the roots of user namespaces pass here.
	for dir := filepath.Dir(n.dir); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"cni", "logs", "conf.d"} {
		if err := os.MkdirAll(n.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if !o.bare {
		list := n.conflist()
		if o.dual {
			list = strings.Replace(list, `}]],"routes"`, fmt.Sprintf(`}],[{"subnet":"fd00:%x::/64"}]],"routes"`, n.number), 1)
		}
		n.write("cni/10-bridge.conflist", list)
	}
	n.write("crio.conf", n.config(o))
	n.connect()
	t.Cleanup(n.close)
	n.start()
	return n
}

// output collects what the daemon prints while a test looks at it.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, text string) {
	n.t.Helper()
	if err := os.WriteFile(n.path(name), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// fixture says where the node's daemon has everything.
func (n *node) fixture(o options) fixture.Daemon {
	return fixture.Daemon{
		Dir: n.dir, Socket: n.socket, CgroupManager: cgroupManager(), MonitorsCgroup: monitorsParent(),
		Number: n.number, Registry: o.registry,
	}
}

func (n *node) config(o options) string { return n.fixture(o).Conf(n.t) + o.conf }

func (n *node) conflist() string { return n.fixture(options{}).Conflist() }

// monitorsParent is the daemon's own group with systemd, by default.
func monitorsParent() string {
	if cgroupManager() == cgroup.Systemd {
		return ""
	}
	return testParent() + "monitors"
}

func binary(t *testing.T, name string) string { return fixture.Binary(t, name) }

// start runs the daemon and waits for its first answer.
func (n *node) start() {
	n.t.Helper()
	ended := n.launch()
	n.await("the daemon's first answer", func() error {
		select {
		case <-ended:
			n.t.Fatalf("the daemon ended: %s\n%s", n.daemon.ProcessState, n.output.String())
		default:
		}
		_, err := n.Version(n.ctx(), &cri.VersionRequest{})
		return err
	})
}

// launch runs the daemon, and returns what is closed when it has ended.
func (n *node) launch() (ended chan struct{}) {
	n.t.Helper()
	cmd := exec.Command(binary(n.t, n.program), "--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d"))
	cmd.Env = append(append(os.Environ(), "GORACE=halt_on_error=1 atexit_sleep_ms=0"), n.env...)
	cmd.Stderr = n.output
	// Somebody who is left behind with the output must not hold up the test, which looks for them.
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ended = make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.daemon, n.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	return ended
}

// await repeats until check succeeds.
func (n *node) await(what string, check func() error) {
	n.t.Helper()
	var err error
	for end := time.Now().Add(waitTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	n.t.Fatalf("%s does not come about: %v", what, err)
}

// kill ends the daemon as a crash does.
func (n *node) kill() {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.daemon.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	<-n.ended
}

// stop ends the daemon as systemd does, and returns its exit code.
func (n *node) stop() int {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	select {
	case <-n.ended:
	case <-time.After(waitTime):
		_ = n.daemon.Process.Signal(syscall.SIGQUIT)
		<-n.ended
		n.t.Errorf("the daemon does not end on SIGTERM")
	}
	return n.daemon.ProcessState.ExitCode()
}

func (n *node) running() bool {
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

func (n *node) connect() {
	n.t.Helper()
	conn, err := grpc.NewClient("passthrough:///crio", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(80<<20)),
		// gRPC's own second is most of the time that a restart takes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 100 * time.Millisecond},
			// Without it a dial has no longer than the backoff.
			MinConnectTimeout: waitTime,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return sys.Dial(ctx, n.socket) }))
	if err != nil {
		n.t.Fatal(err)
	}
	n.conn, n.RuntimeServiceClient, n.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
}

// ctx bounds one call.
func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	n.t.Cleanup(cancel)
	return ctx
}

// close removes every pod, compares the inventories, and ends the daemon.
func (n *node) close() {
	n.t.Helper()
	if n.running() {
		n.removeAll()
		if n.before != nil {
			n.compare(n.before)
		}
		n.conn.Close()
		if code := n.stop(); code != 0 {
			n.t.Errorf("the daemon's exit code is %d", code)
		}
	}
	if n.t.Failed() {
		n.t.Logf("the daemon's log:\n%s", n.output.String())
	}
	if strings.Contains(n.output.String(), "DATA RACE") {
		n.t.Errorf("the daemon has a data race:\n%s", n.output.String())
	}
	_ = sys.Unmount(n.path("storage/overlay"))
	for _, dir := range n.layerDirs() { // a test may have had more than one state directory
		_ = sys.Unmount(dir)
	}
	if out, err := exec.Command("ip", "link", "del", n.fixture(options{}).Bridge()).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("Cannot find")) {
		n.t.Errorf("bridge: %v: %s", err, out)
	}
}

// layers is the directory of the containers' layers.
func (n *node) layers() string {
	n.t.Helper()
	found := n.layerDirs()
	if len(found) != 1 {
		n.t.Fatalf("layers of containers in %v", found)
	}
	return found[0]
}

func (n *node) layerDirs() []string { return glob(n.path("storage/crio-layers/*/overlay")) }

func (n *node) removeAll() {
	n.t.Helper()
	list, err := n.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		n.t.Errorf("list: %v", err)
	}
	for _, s := range list.GetItems() {
		if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			n.t.Errorf("stop pod: %v", err)
		}
		if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			n.t.Errorf("remove pod: %v", err)
		}
	}
}

// status asks what `crio status` asks.
func (n *node) status() server.StatusReport { return n.report("/debug/status") }

func (n *node) report(path string) server.StatusReport {
	n.t.Helper()
	var report server.StatusReport
	if err := json.Unmarshal(n.get(path), &report); err != nil {
		n.t.Fatal(err)
	}
	return report
}

// get asks the HTTP side of the daemon's socket, and returns once the daemon has closed
// its end.
func (n *node) get(path string) []byte {
	n.t.Helper()
	conn, err := sys.Dial(n.ctx(), n.socket)
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: crio\r\n\r\n", path)
	all, err := io.ReadAll(conn)
	if err != nil {
		n.t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return text
}
