package test

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// A list of the store that is cut at a random byte: the daemon starts and tells it, what
// runs goes on, what is missing can be pulled again, and all can be removed.
func TestStoreCutAtARandomByte(t *testing.T) {
	registry := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, _ := readyNode(t, options{registry: registry})
	ref := registry.Push(t, "busybox", "v1", fixture.BusyboxImage(t, "sleep", "3600"))
	other := registry.Push(t, "other", "v1", summed(t, "other", 2))
	n.pull(other)
	n.before = n.settled()
	seed := uint64(time.Now().UnixNano())
	t.Logf("luck: %d", seed)
	luck := rand.New(rand.NewPCG(seed, 0))
	for _, list := range []string{"images/images", "layers/layers", "layers/volatile-layers", "containers/volatile-containers"} {
		pod := n.podConfig()
		box := n.runPod(pod)
		running := n.runContainer(box, pod, n.containerConfig(ref, "sleep", "999"))
		created := n.create(box, pod, n.containerConfig(other, "sleep", "999"))
		n.kill()
		path := n.path("storage/overlay-" + list + ".json")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		at := 1 + luck.Int64N(info.Size()-1)
		t.Logf("%s has %d of %d bytes", list, at, info.Size())
		if err := os.Truncate(path, at); err != nil {
			t.Fatal(err)
		}
		n.start()
		if out := n.exec(running, "echo", "here").GetStdout(); string(out) != "here\n" {
			t.Errorf("exec: %q", out)
		}
		report := n.status()
		if len(report.Quarantined) != 1 || !strings.Contains(report.Quarantined[0].Reason, "of the image store was damaged") {
			t.Fatalf("set aside: %+v", report.Quarantined)
		}
		wantWords(t, n.statusCommand(), report.Quarantined[0].Path, "can be pulled again")
		for _, image := range []string{ref, other} {
			n.pull(image)
			n.wantWorking(n.podConfig(), image)
		}
		// Its layer may be lost, or the record of it.
		_, err = n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: created})
		t.Logf("start of a container that was created before: %v", err)
		n.removeAll()
		if err := os.Remove(report.Quarantined[0].Path); err != nil {
			t.Fatal(err)
		}
		n.compare(n.before)
		if t.Failed() {
			t.Fatalf("after %s", list)
		}
	}
}
