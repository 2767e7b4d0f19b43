package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// conformCase is one case of the conformance suite: something that api.proto says,
// asked for over the socket and looked at from inside the container or on the node.
type conformCase struct {
	name string
	// proves are the calls and fields, such as "ExecSync" and "Mount.readonly", of which
	// the case would fail if they did not work.
	proves []string
	// refuses are fields of which it sees an unusable value refused with their name.
	refuses []string
	run     func(*conform)
}

// conform is what a case works with: a node that it shares with the other cases, and
// everything it makes there is taken away after it.
type conform struct {
	*node
	// image is busybox, by ID.
	image string
	// handler is the name of the OCI runtime under test, which is the default one.
	handler string
}

// conformCases are all of them, subject by subject.
func conformCases() []conformCase {
	return slices.Concat(
		conformSandboxCases(), conformContainerCases(), conformResourceCases(), conformRuntimeCases(), conformIsolationCases(),
		conformImageCases(), conformSecurityCases(), conformUsersCases(), conformSELinuxCases(), conformPathsCases(),
		conformValuesCases(), conformStatsCases(), conformWatchCases(), conformStreamCases(),
	)
}

// conformHandlers are the runtimes of the suite.
var conformHandlers = []string{"runc", "crun"}

// TestConformance runs every case with each runtime, one after the other with a look at
// the node after each, and then again on the same node, side by side.
func TestConformance(t *testing.T) {
	for _, handler := range conformHandlers {
		t.Run(handler, func(t *testing.T) {
			n, image := readyNode(t, conformOptions(t, handler))
			for _, c := range conformCases() {
				t.Run(c.name, func(t *testing.T) {
					sub := n.in(t)
					c.run(&conform{sub, image, handler})
					sub.removeMade()
					sub.compare(n.before)
				})
			}
			t.Run("side by side", func(t *testing.T) {
				for _, c := range conformCases() {
					t.Run(c.name, func(t *testing.T) {
						t.Parallel()
						sub := n.in(t)
						c.run(&conform{sub, image, handler})
						sub.removeMade()
					})
				}
			})
		})
	}
}

// conformOptions are a node whose default handler is the given one.
func conformOptions(t *testing.T, handler string) options {
	o := options{env: []string{"CONTAINER_DEFAULT_RUNTIME=" + handler, cdiSpecDirs + t.TempDir() + "," + t.TempDir()}, dual: true}
	o.env = append(o.env, "CONTAINER_PINNED_IMAGES=*/busybox*")
	if haveSELinux() {
		o.env = append(o.env, "CONTAINER_SELINUX=true")
	}
	for _, name := range conformHandlers {
		o.conf += fmt.Sprintf("[crio.runtime.runtimes.%s]\nruntime_path = %q\n", name, runtimePath(t, name))
	}
	return o
}

// runtimePath is a current OCI runtime, built by make runtimes.
func runtimePath(t *testing.T, name string) string {
	t.Helper()
	if dir := os.Getenv("CRIO_RUNTIMES"); dir != "" {
		return filepath.Join(dir, name)
	}
	return binary(t, "runtimes/"+name)
}

// in is the same node for another test, which removes what it makes with removeMade.
func (n *node) in(t *testing.T) *node {
	return &node{
		RuntimeServiceClient: n.RuntimeServiceClient, images: n.images, t: t, number: n.number, dir: n.dir,
		socket: n.socket, env: n.env, program: n.program, conn: n.conn, daemon: n.daemon, ended: n.ended, output: n.output,
	}
}

// removeMade removes the pods that this view of the node has run.
func (n *node) removeMade() {
	n.t.Helper()
	for _, id := range n.made {
		if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			n.t.Errorf("remove pod: %v", err)
		}
	}
}

// pod runs a pod that change, if any, has changed.
func (c *conform) pod(change func(*cri.PodSandboxConfig)) (id string, config *cri.PodSandboxConfig) {
	c.t.Helper()
	config = c.podConfig()
	if change != nil {
		change(config)
	}
	return c.runPod(config), config
}

// sleeper runs a container that stays, in a pod of its own, and returns its ID.
func (c *conform) sleeper(change func(*cri.ContainerConfig)) string {
	c.t.Helper()
	box, pod := c.pod(nil)
	return c.sleeperIn(box, pod, change)
}

func (c *conform) sleeperIn(box string, pod *cri.PodSandboxConfig, change func(*cri.ContainerConfig)) string {
	c.t.Helper()
	config := c.containerConfig(c.image, "sleep", "3600")
	if change != nil {
		change(config)
	}
	return c.runContainer(box, pod, config)
}

// iptables are the node's rules for addresses that it maps.
func (c *conform) iptables() string {
	c.t.Helper()
	out, err := exec.Command("iptables", "-w", "-t", "nat", "-S").CombinedOutput()
	if err != nil {
		c.t.Fatalf("iptables: %v: %s", err, out)
	}
	return string(out)
}

// sees checks what a script prints inside of a container.
func (c *conform) sees(id, script, want string) {
	c.t.Helper()
	got := c.exec(id, shell(script)...)
	if string(got.GetStdout()) != want {
		c.t.Errorf("%s: %q (%s), want %q", script, got.GetStdout(), got.GetStderr(), want)
	}
}

// pidOf is the container's first process as the node sees it.
func (c *conform) pidOf(id string) int {
	c.t.Helper()
	a, err := c.ContainerStatus(c.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(a.GetInfo()["info"]), &info); err != nil || info.Pid == 0 {
		c.t.Fatalf("info %s, %v", a.GetInfo(), err)
	}
	return info.Pid
}

// refusedPod checks that a pod is refused, with a message that has all the words.
func (c *conform) refusedPod(change func(*cri.PodSandboxConfig), words ...string) {
	c.t.Helper()
	config := c.podConfig()
	change(config)
	answer, err := c.RunPodSandbox(c.ctx(), &cri.RunPodSandboxRequest{Config: config})
	if err == nil {
		c.made = append(c.made, answer.GetPodSandboxId())
	}
	c.refused(err, codes.InvalidArgument, words...)
}

// refusedContainer is the same for a container.
func (c *conform) refusedContainer(change func(*cri.ContainerConfig), words ...string) {
	c.t.Helper()
	box, pod := c.pod(nil)
	config := c.containerConfig(c.image, "sleep", "3600")
	change(config)
	_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	c.refused(err, codes.InvalidArgument, words...)
}

// refused checks an error's code, and that it names what it is about.
func (c *conform) refused(err error, code codes.Code, words ...string) {
	c.t.Helper()
	if status.Code(err) != code {
		c.t.Errorf("%v, want %s", err, code)
	}
	for _, word := range words {
		if !strings.Contains(fmt.Sprint(err), word) {
			c.t.Errorf("%v does not name %q", err, word)
		}
	}
}
