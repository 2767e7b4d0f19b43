package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/engine"
)

// operations are those of one kind.
func (n *node) operations(kind string) (found []engine.OperationReport) {
	n.t.Helper()
	for _, op := range n.status().Operations {
		if op.Kind == kind {
			found = append(found, op)
		}
	}
	return found
}

// awaitOperations waits for so many of one kind, side by side.
func (n *node) awaitOperations(kind string, count int) {
	n.t.Helper()
	n.await(fmt.Sprintf("%d times %s", count, kind), func() error {
		if ops := n.operations(kind); len(ops) != count {
			return fmt.Errorf("operations: %+v", n.status().Operations)
		}
		return nil
	})
}

// stopsInTime: the drain, and little more.
func (n *node) stopsInTime() {
	n.t.Helper()
	begun := time.Now()
	n.stop()
	if took := time.Since(begun); took > 30*time.Second {
		n.t.Errorf("SIGTERM took %s", took)
	}
}

// The sweep took back what ended containers had left one after the other, 10 s for each
// whose runtime hangs; nobody saw it, and SIGTERM waited for all of them.
func TestSweepThatHangsIsSeenAndEndsInTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runtime")
	orders := faulty(t, path, runtimeVerb, `runc "$@"`)
	n, image := readyNode(t, options{conf: fmt.Sprintf("[crio.runtime.runtimes.runc]\nruntime_path = %q\n", path)})
	pod := n.podConfig()
	box := n.runPod(pod)
	order := filepath.Join(orders, "delete")
	n.order(order, "hangs")
	const ended = 6
	for range ended {
		n.exited(n.runContainer(box, pod, n.containerConfig(image, "true")))
	}
	n.kill()
	n.start()
	n.awaitOperations("clean container", ended)
	n.answersInTime()
	n.stopsInTime()
	n.endOrder(order)
	n.start()
}

// A pod whose teardown hangs kept the sweep from all others, which nobody saw.
func TestHangingPodsHoldUpNobodyInTheSweep(t *testing.T) {
	n, _, orders := pluginNode(t, options{})
	del := filepath.Join(orders, "DEL")
	const pods = 3
	var boxes []string
	for range pods {
		boxes = append(boxes, n.runPod(n.podConfig()))
	}
	n.order(del, "hangs")
	for _, box := range boxes {
		n.hangs(func(ctx context.Context) error {
			return second(n.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: box}))
		}, "cni del")
	}
	n.kill()
	n.start()
	n.awaitOperations("remove sandbox", pods)
	n.answersInTime()
	n.endOrder(del)
	n.compare(n.before)
}

// The undo of a pod that could not be made had its own 90 s, SIGTERM or not.
func TestUndoThatHangsHoldsUpNoSIGTERM(t *testing.T) {
	n, _, orders := pluginNode(t, options{})
	add, del := filepath.Join(orders, "ADD"), filepath.Join(orders, "DEL")
	n.order(add, "fails")
	n.order(del, "hangs")
	n.hangs(func(ctx context.Context) error {
		return second(n.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: n.podConfig()}))
	}, "cni del")
	n.stopsInTime()
	n.endOrder(add)
	n.endOrder(del)
	n.start()
	n.compare(n.before)
}

// What has no record, and could not be removed when the daemon started, was left until
// the next start, and told nowhere.
func TestOrphanThatCannotBeRemovedIsTriedAgain(t *testing.T) {
	n, _, orders := pluginNode(t, options{})
	del := filepath.Join(orders, "DEL")
	box := n.runPod(n.podConfig())
	n.kill()
	if err := os.Remove(n.path("state/pods/" + box)); err != nil {
		t.Fatal(err)
	}
	n.order(del, "fails")
	n.start()
	n.blocked("no luck")
	if b := n.status().Blocked; len(b) != 1 || b[0].Kind != "orphan" || b[0].ID != box {
		t.Errorf("blocked: %+v", b)
	}
	n.endOrder(del)
	n.unblocked()
	n.removePodCgroups() // the pods' own, which are the kubelet's
	n.startedAnew()
	n.compare(n.before)
}
