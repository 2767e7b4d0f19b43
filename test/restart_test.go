package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// kill -9 of the daemon changes nothing for a pod: not what is told of it, not its
// processes, not its log.
func TestRestartChangesNothing(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	counter := n.containerConfig(image, shell("i=0; while true; do i=$((i+1)); echo line $i; sleep 0.002; done")...)
	running := n.runContainer(box, pod, counter)
	exited := n.runContainer(box, pod, n.containerConfig(image, shell("exit 42")...))
	n.exited(exited)
	created := n.create(box, pod, n.containerConfig(image, shell("exit 5")...))
	ending := n.containerConfig(image, shell("echo up; while [ ! -e /end ]; do sleep 0.01; done; exit 17")...)
	endsMeanwhile := n.runContainer(box, pod, ending)
	n.awaitLog(logOf(pod, ending), "up")
	sharing := n.podConfig()
	sharing.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	sharingBox := n.runPod(sharing)

	before := map[string]proto.Message{}
	take := func(into map[string]proto.Message) {
		for _, id := range []string{running, exited, created} {
			into[id] = n.container(id)
		}
		into[box], into[sharingBox] = n.sandbox(box), n.sandbox(sharingBox)
	}
	take(before)
	n.kill()
	if err := os.WriteFile(mergedPath(t, n, endsMeanwhile)+"/end", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	awaitExitRecord(t, n, endsMeanwhile)
	n.start()
	after := map[string]proto.Message{}
	take(after)
	for id := range before {
		if !proto.Equal(before[id], after[id]) {
			t.Errorf("before %v\nafter  %v", before[id], after[id])
		}
	}
	if s := n.container(endsMeanwhile); s.GetExitCode() != 17 || s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetFinishedAt() < s.GetStartedAt() {
		t.Errorf("a container that ended meanwhile: %v", s)
	}
	// Everything works on what an earlier daemon made.
	if got := n.exec(running, "echo", "hello"); string(got.GetStdout()) != "hello\n" {
		t.Errorf("exec: %v", got)
	}
	n.startContainer(created)
	if s := n.exited(created); s.GetExitCode() != 5 {
		t.Errorf("a container that was created before: %v", s)
	}
	path := logOf(pod, counter)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ReopenContainerLog(n.ctx(), &cri.ReopenContainerLogRequest{ContainerId: running}); err != nil {
		t.Errorf("reopen: %v", err)
	}
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: running}); err != nil {
		t.Errorf("stop: %v", err)
	}
	next := 1
	for _, r := range append(n.log(path+".1"), n.log(path)...) {
		if r.text != fmt.Sprintf("line %d", next) {
			t.Fatalf("the log has %q instead of line %d", r.text, next)
		}
		next++
	}
	if next < 20 {
		t.Errorf("only %d lines", next)
	}
}

// mergedPath is the container's root as the node sees it.
func mergedPath(t *testing.T, n *node, id string) string {
	t.Helper()
	data, err := os.ReadFile(n.path("run/containers/" + id + "/config.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), `"root":{"path":"`)
	path, _, ok := strings.Cut(rest, `"`)
	if !ok {
		t.Fatalf("no root in %s", data)
	}
	return path
}

func awaitExitRecord(t *testing.T, n *node, id string) {
	t.Helper()
	for end := time.Now().Add(waitTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(n.path("run/containers/" + id + "/exit")); err == nil {
			return
		}
	}
	t.Fatal("the monitor wrote no exit record")
}

// 1,000 containers, 20 at once, the daemon killed at random meanwhile: every code is right.
func TestExitCodesAreRightWhateverHappensToTheDaemon(t *testing.T) {
	const total, parallel, kills = 1000, 20, 5
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	codesOf := []int32{0, 1, 42}
	var done atomic.Int32
	var left atomic.Int32
	left.Store(total)
	var wait sync.WaitGroup
	for range parallel {
		wait.Go(func() {
			for i := left.Add(-1); i >= 0; i = left.Add(-1) {
				n.oneExit(box, pod, image, codesOf[int(i)%len(codesOf)])
				done.Add(1)
			}
		})
	}
	for k := range kills {
		at := int32(total/(kills+1)*k + rand.IntN(total/(kills+1)))
		for done.Load() < at {
			time.Sleep(time.Millisecond)
		}
		n.kill()
		n.start()
	}
	wait.Wait()
	if done.Load() != total {
		t.Errorf("%d of %d ended", done.Load(), total)
	}
}

// oneExit takes a container from creation to removal, repeating what a dead daemon
// did not answer, as the kubelet does.
func (n *node) oneExit(box string, pod *cri.PodSandboxConfig, image string, code int32) {
	config := n.containerConfig(image, shell("exit "+strconv.Itoa(int(code)))...)
	var id string
	n.again("create", func() error {
		a, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		id = a.GetContainerId()
		return err
	})
	n.again("start", func() error {
		_, err := n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
		return err
	})
	n.again("end", func() error {
		a, err := n.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id})
		switch s := a.GetStatus(); {
		case err != nil:
			return err
		case s.GetState() != cri.ContainerState_CONTAINER_EXITED:
			return status.Error(codes.Unavailable, "it runs")
		case s.GetExitCode() != code:
			n.t.Errorf("exit code %d (%s %s) instead of %d", s.GetExitCode(), s.GetReason(), s.GetMessage(), code)
		}
		return nil
	})
	n.again("remove", func() error {
		_, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id})
		return err
	})
}

// again repeats a call that found no daemon.
func (n *node) again(what string, call func() error) {
	var err error
	for end := time.Now().Add(3 * waitTime); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = call(); err == nil || status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
			break
		}
	}
	if err != nil {
		n.t.Errorf("%s: %v", what, err)
	}
}

// A daemon that is killed while it makes and unmakes pods leaves nothing that the
// next one does not take away.
func TestKilledAtRandomNothingIsLeft(t *testing.T) {
	n, image := readyNode(t, options{})
	n.killedAtRandom(func() { n.churn(image) })
}

// Clients pull and remove images that share a layer while the daemon is killed: each image
// that is listed works, each can be pulled again, and no layer is left.
func TestKilledAmongPullsAndRemovals(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, image := readyNode(t, options{registry: r})
	var refs []string
	for _, name := range []string{"one", "two", "three", "four"} {
		refs = append(refs, r.Push(t, name, "v1", summed(t, name, 2)))
	}
	rounds := 2
	if os.Getenv("CRIO_TORTURE") != "" {
		rounds = 100
	}
	for range rounds {
		var wait sync.WaitGroup
		var killed atomic.Bool
		var removed atomic.Int32 // after they were pulled
		for range 8 {
			wait.Go(func() {
				for !killed.Load() {
					ref := &cri.ImageSpec{Image: refs[rand.IntN(len(refs))]}
					pull := second(n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: ref}))
					if err := second(n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: ref})); pull == nil && err == nil {
						removed.Add(1)
					}
				}
			})
		}
		n.await("a pull and a removal before the kill", func() error {
			if removed.Load() == 0 {
				return errors.New("none has succeeded")
			}
			return nil
		})
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		n.kill()
		killed.Store(true)
		wait.Wait()
		n.start()
		list, err := n.images.ListImages(n.ctx(), &cri.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list.GetImages() {
			n.wantWorking(n.podConfig(), i.GetId())
		}
		n.removeAll()
	}
	for _, ref := range refs {
		id := n.pull(ref)
		n.wantWorking(n.podConfig(), id)
		n.removeAll()
		n.dropImages(id)
	}
	n.wantWorking(n.podConfig(), image)
}

// killedAtRandom kills the daemon while four clients work, eight times, and wants nothing
// to be left after the next daemon has removed what there is.
func (n *node) killedAtRandom(work func()) {
	n.t.Helper()
	for round := range 8 {
		var wait sync.WaitGroup
		for range 4 {
			wait.Go(work)
		}
		time.Sleep(time.Duration(20+rand.IntN(250)) * time.Millisecond)
		n.kill()
		wait.Wait()
		n.start()
		n.removeAll()
		if n.t.Failed() {
			n.t.Fatalf("round %d", round)
		}
	}
	n.compare(n.before)
}

// churn makes a pod and takes it away; its calls may fail, since the daemon is killed.
func (n *node) churn(image string) {
	n.churnOf(image, func(*cri.PodSandboxConfig) {}, func(*cri.ContainerConfig) {})
}

// churnOf is churn with a pod and containers that have been changed.
func (n *node) churnOf(image string, changePod func(*cri.PodSandboxConfig), change func(*cri.ContainerConfig)) {
	pod := n.podConfig()
	changePod(pod)
	a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return
	}
	for range 3 {
		config := n.containerConfig(image, "sleep", "99")
		change(config)
		c, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{
			PodSandboxId: a.GetPodSandboxId(), Config: config, SandboxConfig: pod,
		})
		if err != nil {
			return
		}
		if _, err := n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
			return
		}
		if _, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
			return
		}
	}
	_, _ = n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: a.GetPodSandboxId()})
}

// The monitor is the only witness: without it the container is ended, and that is told.
func TestLostMonitorIsTold(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	for name, restart := range map[string]bool{"while the daemon runs": false, "while it is down": true} {
		id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
		if restart {
			n.kill()
		}
		killMonitor(t, id)
		if restart {
			n.start()
		}
		n.answersInTime()
		if s := n.exited(id); s.GetExitCode() != 255 || s.GetReason() != "MonitorLost" {
			t.Errorf("%s: %v", name, s)
		}
	}
}

func killMonitor(t *testing.T, id string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		cmdline, readErr := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		if err != nil || readErr != nil || !strings.Contains(string(cmdline), "--id\x00"+id) {
			continue
		}
		process, err := os.FindProcess(pid)
		if err == nil {
			err = process.Kill()
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no monitor of %s", id)
}

// A record that cannot be read is set aside and told; the others load, and what it
// stood for runs on.
func TestBrokenRecordIsSetAside(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	hurt := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
	whole := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
	n.kill()
	path := n.path("state/containers/" + hurt)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, slices.Concat(good[:len(good)-9], []byte("garbled\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	if s := n.container(whole); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container: %v", s)
	}
	report := n.status()
	if len(report.Quarantined) != 1 || report.Quarantined[0].ID != hurt {
		t.Errorf("set aside: %+v", report.Quarantined)
	}
	if _, err := os.Stat(n.path("run/containers/" + hurt + "/ctl")); err != nil {
		t.Errorf("its monitor is gone: %v", err)
	}
	// Put back by hand, it is whole again.
	n.kill()
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(report.Quarantined[0].Path); err != nil {
		t.Fatal(err)
	}
	n.start()
	if s := n.container(hurt); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after it was put back: %v", s)
	}
}

// The monitors of daemons until 1111e64 had a group in each hierarchy of cgroup v1. Those
// after it knew of fewer, and left the others when the container was removed.
func TestGroupsOfAnOlderDaemonsMonitorAreRemoved(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	group := testParent() + "monitors/crio-conmon-" + id
	monitors, err := os.ReadFile("/sys/fs/cgroup/pids" + group + "/tasks")
	if err != nil {
		t.Skipf("not cgroup v1: %v", err)
	}
	n.kill()
	made := 0
	for _, hierarchy := range []string{"blkio", "devices", "freezer", "net_cls", "perf_event"} {
		dir := "/sys/fs/cgroup/" + hierarchy
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		made++
		if err := os.MkdirAll(dir+group, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir + testParent() + "monitors") }) // as the unit of the monitors would be
		for _, pid := range strings.Fields(string(monitors)) {
			if err := os.WriteFile(dir+group+"/tasks", []byte(pid), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if made == 0 {
		t.Skip("no hierarchy that monitors are not in")
	}
	n.start()
	if _, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if left := glob("/sys/fs/cgroup/*" + group); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// The store forgot that a container's image is used, and deleted it beneath the container.
func TestImageThatTheStoreForgotIsUsedIsNotRemoved(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "999"))
	n.kill()
	list := n.path("storage/overlay-containers/volatile-containers.json")
	if err := os.WriteFile(list, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	_, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "in use") {
		t.Errorf("remove image: %v", err)
	}
	n.exec(id, "cat", "/etc/passwd")
	n.await("the hold on the image", func() error {
		if data, err := os.ReadFile(list); err != nil || !strings.Contains(string(data), "-holds-"+n.container(id).GetImageId()) {
			return fmt.Errorf("%s, %v", data, err)
		}
		return nil
	})
}
