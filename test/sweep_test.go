package test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
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

// swept waits until there is nothing of them on the node.
func (n *node) swept(ids ...string) {
	n.t.Helper()
	n.await("the sweep", func() error {
		for name := range n.inventory() {
			if slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(name, id) }) {
				return fmt.Errorf("%s is left", name)
			}
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

// Of many pods whose teardown hangs, those that the sweep had not begun with were told
// nowhere for as long as the others hung; and a request for one of them must not wait for
// the sweep to come to it.
func TestPodsThatWaitForTheSweepAreSeenAndDelayNoRequest(t *testing.T) {
	n, _, orders := pluginNode(t, options{})
	del := filepath.Join(orders, "DEL")
	const atOnce, pods = 16, 19
	var running errgroup.Group
	boxes := make([]string, pods)
	for i := range boxes {
		pod := n.podConfig()
		running.Go(func() error {
			a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod})
			boxes[i] = a.GetPodSandboxId()
			return err
		})
	}
	if err := running.Wait(); err != nil {
		t.Fatal(err)
	}
	n.order(del, "hangs")
	defer os.Remove(del)         // a test that has failed ends in time, too
	remove := func(box string) { // cut off by a kill, or by the end of the hang
		_, _ = n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box})
	}
	var removals sync.WaitGroup
	for _, box := range boxes {
		removals.Go(func() { remove(box) })
	}
	n.await("removals that hang", func() error { return n.inStage("remove sandbox", "cni del", pods) })
	n.kill()
	removals.Wait()
	n.start()
	n.await("the first turns", func() error { return n.inStage("remove sandbox", "cni del", atOnce) })
	if err := n.inStage("sweep", "its turn", pods-atOnce); err != nil {
		t.Error(err)
	}
	n.answersInTime()
	for _, op := range n.operations("sweep") {
		if op.Stage == "its turn" {
			removals.Go(func() { remove(op.Object) })
		}
	}
	n.await("the removals that are asked for", func() error { return n.inStage("remove sandbox", "cni del", pods) })
	n.endOrder(del)
	removals.Wait()
	n.compare(n.before)
}

// inStage wants so many operations of the kind there.
func (n *node) inStage(kind, stage string, count int) error {
	n.t.Helper()
	ops := slices.DeleteFunc(n.operations(kind), func(op engine.OperationReport) bool { return op.Stage != stage })
	if len(ops) != count {
		return fmt.Errorf("%d times %s of %s, want %d: %+v", len(ops), stage, kind, count, n.status().Operations)
	}
	return nil
}

// What a list of the sweep would have told of was left until the next start, when it could
// not be read, and nobody was told.
func TestListOfTheSweepThatFailsIsReadAgain(t *testing.T) {
	n, _, _ := pluginNode(t, options{})
	box := n.runPod(n.podConfig())
	n.kill()
	cache, aside := n.path("cni-cache/results"), n.path("cni-cache-aside")
	if err := errors.Join(os.Remove(n.path("state/pods/"+box)), os.Rename(cache, aside), os.WriteFile(cache, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.blocked("list networks")
	if b := n.status().Blocked; len(b) != 1 || b[0].Kind != "sweep" || !strings.Contains(b[0].Reason, cache) {
		t.Errorf("blocked: %+v", b)
	}
	n.await("what the other lists tell of", func() error {
		if _, err := os.Lstat(n.path("run/pods/" + box)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the sandbox's directory is left: %w", err)
		}
		return nil
	})
	if err := errors.Join(os.Remove(cache), os.Rename(aside, cache)); err != nil {
		t.Fatal(err)
	}
	n.unblocked()
	n.awaitOperations("sweep", 0)
	n.removePodCgroups() // the pods' own, which are the kubelet's
	n.startedAnew()
	n.compare(n.before)
}

// Somebody else, podman for one, holds the storage's lock for good: the sweep waited as
// long, and told of no more than that it waited.
func TestListOfTheSweepThatHangsIsNamedAndGivenUp(t *testing.T) {
	dir := t.TempDir()
	n, _ := readyNode(t, options{failpoints: true, env: []string{"CRIO_FAILPOINTS=" + dir}})
	n.kill()
	k := killNode{node: n, dir: dir}
	k.forget()
	at := killPoint{name: "sweep: hold images", nth: 1}
	k.arm(at)
	n.launch()
	writer := k.held(at)
	if err := n.inStage("sweep", "hold images", 1); err != nil {
		t.Error(err)
	}
	lock, err := os.OpenFile(n.path("storage/overlay-containers/containers.lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() // and with it the lock
	if err := unix.FcntlFlock(lock.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	k.release(writer)
	n.blocked("list holds on images: no answer")
	lock.Close()
	n.unblocked()
	n.awaitOperations("sweep", 0)
}
