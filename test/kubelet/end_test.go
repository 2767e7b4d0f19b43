package kubelet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// garbage: a kubelet whose disk seems to be full removes what no pod needs, images and the
// containers of pods that have ended, and nothing else.
func garbage(t *testing.T, n *node) {
	var pulled []string
	for _, ref := range []string{n.unused, n.pinned} {
		answer, err := n.images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		check(t, err)
		pulled = append(pulled, answer.GetImageRef())
	}
	n.awaitContainer(t, "order", "main", ready)
	before, err := n.lives()
	check(t, err)
	n.kubelet.stop(t)
	n.startKubelet("featureGates: {PodAndContainerStatsFromCRI: true}\nimageMinimumGCAge: 1s\nevictionHard: {nodefs.available: 99.9999%}\n")
	statisticsByCRI(t, n)
	n.await("the removal of an image", func() error {
		ids, err := n.imageIDs()
		if err == nil && slices.Contains(ids, pulled[0]) {
			err = fmt.Errorf("it is there")
		}
		return err
	})
	ids, err := n.imageIDs()
	check(t, err)
	if len(ids) != 3 || !slices.Contains(ids, pulled[1]) {
		t.Errorf("images are %v, not those of pods and the pinned one, %s", ids, pulled[1])
	}
	n.await("the removal of containers that have ended", func() error {
		list, err := n.runtime.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.name": "never-" + nodeName},
		}})
		if err == nil && len(list.GetContainers()) > 0 {
			err = fmt.Errorf("pod never has %d", len(list.GetContainers()))
		}
		return err
	})
	n.survive(before)
}

func (n *node) imageIDs() ([]string, error) {
	list, err := n.images.ListImages(n.t.Context(), &cri.ListImagesRequest{})
	var ids []string
	for _, image := range list.GetImages() {
		ids = append(ids, image.GetId())
	}
	return ids, err
}

// termination takes all pods away, and looks how they went.
func termination(t *testing.T, n *node) {
	if there := strings.Join(networkLeft(t), "\n"); !strings.Contains(there, ": veth") || !strings.Contains(there, "18080") {
		t.Errorf("pods have no links or rules of hostPorts: %s", there)
	}
	leases, err := filepath.Glob(n.path("ipam/*/10.*"))
	check(t, err)
	if len(leases) == 0 {
		t.Error("pods have no addresses of IPAM")
	}
	manifests, err := filepath.Glob(n.path("manifests/*"))
	check(t, err)
	for _, file := range manifests {
		check(t, os.Remove(file))
	}
	// The kubelet removes by itself what is left of pods.
	n.await("the removal of all pods", func() error {
		list, err := n.runtime.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
		if err == nil && len(list.GetItems()) > 0 {
			err = fmt.Errorf("%d are left", len(list.GetItems()))
		}
		return err
	})
	for file, want := range map[string]string{
		"order":    "first\nsidecar\nsecond\nmain\nmain ends\nsidecar ends",
		"hooks":    "started\nstopping\nterm",
		"polite":   "asked\ngone",
		"stubborn": "asked",
	} {
		if got := n.read("trail/" + file); got != want {
			t.Errorf("%s is %q, want %q", file, strings.ReplaceAll(got, "\n", ", "), strings.ReplaceAll(want, "\n", ", "))
		}
	}
	same(t, "what preStop has asked for", n.nextAsked(), "/stopping")
	// The hooks of the containers begin together, and one sleeps for two seconds.
	if slept := n.uptime("trail/slept") - n.uptime("trail/stopping"); slept < 1 || slept > 10 {
		t.Errorf("sleepy was asked to end %.2f s after its hook", slept)
	}
	// It has a grace period of three seconds, in whole seconds of its own clock.
	if grace := n.seconds("trail/stubborn-lives") - n.seconds("trail/stubborn-asked"); grace < 2 || grace > 10 {
		t.Errorf("stubborn lived for %d s after it was asked", grace)
	}
}

// uptime is the time since the machine's start that a container has copied, in seconds.
func (n *node) uptime(file string) (seconds float64) {
	n.t.Helper()
	if _, err := fmt.Sscan(n.read(file), &seconds); err != nil {
		n.t.Errorf("%s: %v", file, err)
	}
	return seconds
}

func (n *node) seconds(file string) int {
	n.t.Helper()
	seconds, err := strconv.Atoi(n.read(file))
	if err != nil {
		n.t.Errorf("%s: %v", file, err)
	}
	return seconds
}

// nothingLeft looks for what pods could have left on the node.
func nothingLeft(t *testing.T, n *node) {
	n.kubelet.stop(t)
	n.await("a node without pods", func() error {
		var left []string
		groups, err := ownCgroups()
		if err != nil {
			return err
		}
		for _, dir := range groups {
			// These are the kubelet's, and the daemon's.
			if name := filepath.Base(dir); !slices.Contains([]string{"kubepods", "burstable", "besteffort", "monitors"}, name) {
				left = append(left, dir)
			}
		}
		for line := range strings.Lines(readFile(t, "/proc/self/mountinfo")) {
			// The graph driver mounts its own directories, of images and of containers' layers.
			path := strings.Fields(line)[4]
			if strings.HasPrefix(path, n.dir+"/") && filepath.Base(path) != "overlay" {
				left = append(left, path)
			}
		}
		for _, pattern := range []string{"state/*/*", "run/pods/*", "run/containers/*", "storage/crio-layers/*/overlay/" + strings.Repeat("?", 64), "cni-cache/results/*", "ipam/*/10.*"} {
			found, err := filepath.Glob(n.path(pattern))
			if err != nil {
				return err
			}
			left = append(left, found...)
		}
		left = append(left, networkLeft(t)...)
		if len(left) > 0 {
			return fmt.Errorf("left are %v", left)
		}
		return nil
	})
	n.crio.stop(t)
}

// networkLeft are the links and packet filter rules of pods. The bridge stays, as do the
// chains that all hostPorts begin with.
func networkLeft(t *testing.T) (left []string) {
	t.Helper()
	for command, ofPods := range map[string]string{
		"ip -o link":            `: veth`,
		"iptables -w -t nat -S": `CNI-(DN-)?[0-9a-f]{10,}|--dport 18080\b`,
	} {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if regexp.MustCompile(ofPods).MatchString(line) {
				left = append(left, strings.TrimSpace(line))
			}
		}
	}
	return left
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	return string(text)
}
