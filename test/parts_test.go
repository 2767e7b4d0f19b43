package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// faultyScript stands for a program, and does for a verb what the file of its name says.
// It notes each call in "calls", for a CNI plugin with the pod.
const faultyScript = `#!/bin/sh
%[2]s
echo "$verb $CNI_CONTAINERID" >>%[1]s/calls
case $(cat %[1]s/$verb 2>/dev/null) in
fails) echo "no luck in $verb" >&2; exit 1 ;;
refuses) echo '{"cniVersion":"1.0.0","code":99,"msg":"no luck in '$verb'"}'; exit 1 ;;
babbles) cat >/dev/null; echo '{"cniVersion":"1.0.0","ips":[{"address":'; exit 0 ;;
babbles-late) %[3]s >/dev/null; echo 'no luck'; exit 0 ;;
dies) kill -9 $$ ;;
hangs) while [ -e %[1]s/$verb ]; do sleep 0.05; done ;;
esac
exec %[3]s
`

// faulty writes the script, and returns the directory of the files that command it.
func faulty(t *testing.T, path, verb, program string) (orders string) {
	t.Helper()
	orders = t.TempDir()
	if err := os.WriteFile(path, fmt.Appendf(nil, faultyScript, orders, verb, program), 0o755); err != nil {
		t.Fatal(err)
	}
	return orders
}

func (n *node) order(path, fault string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(fault), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) endOrder(path string) {
	n.t.Helper()
	if err := os.Remove(path); err != nil {
		n.t.Fatal(err)
	}
}

// hangs makes a call that has half a second, and wants it cut off in one of the stages,
// which is told, while everybody else is answered.
func (n *node) hangs(call func(context.Context) error, stages ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx(), 500*time.Millisecond)
	defer cancel()
	if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
		n.t.Errorf("%v, want it to hang in %q", err, stages)
	}
	n.answersInTime()
	for _, op := range n.status().Operations {
		if slices.Contains(stages, strings.TrimSpace(op.Stage+" "+op.On)) {
			return
		}
	}
	n.t.Errorf("crio status does not tell of a stage of %q: %+v", stages, n.status().Operations)
}

// blocked waits for the one object that cannot be removed, and its reason.
func (n *node) blocked(reason string) {
	n.t.Helper()
	n.await("what is blocked, with its reason", func() error {
		if b := n.status().Blocked; len(b) != 1 || !strings.Contains(b[0].Reason, reason) {
			return fmt.Errorf("blocked: %+v, want %q", b, reason)
		}
		return nil
	})
	n.answersInTime()
}

// unblocked waits until everything that could not be removed has gone.
func (n *node) unblocked() {
	n.t.Helper()
	n.await("the removal", func() error {
		if b := n.status().Blocked; len(b) > 0 {
			return fmt.Errorf("blocked: %+v", b)
		}
		return nil
	})
}

// A CNI plugin that fails, dies, talks nonsense or hangs in ADD: the pod is refused with
// the stage and the plugin's words, and its network is given back.
func TestFaultyPluginInADD(t *testing.T) {
	n, _, orders := pluginNode(t, options{})
	add := filepath.Join(orders, "ADD")
	for fault, reason := range map[string]string{"fails": "no luck", "refuses": "no luck in ADD", "dies": "killed", "babbles": "", "babbles-late": ""} {
		pod := n.podConfig()
		n.order(add, fault)
		_, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod})
		if err == nil || !strings.Contains(err.Error(), "cni add") || !strings.Contains(err.Error(), reason) {
			t.Errorf("a plugin that %s: %v", fault, err)
		}
		n.answersInTime()
		n.compare(n.before)
		n.endOrder(add)
		n.runPod(pod)
		n.removeAll()
	}
	n.order(add, "hangs")
	pod := n.podConfig()
	n.hangs(func(ctx context.Context) error {
		return second(n.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod}))
	}, "cni add")
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(n.ctx(), 500*time.Millisecond)
			defer cancel()
			if err := second(n.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("one of many, while the plugin hangs: %v", err)
			}
		})
	}
	callers.Wait()
	n.endOrder(add)
	box := n.runPod(pod)
	list, err := n.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 1 || list.GetItems()[0].GetId() != box {
		t.Errorf("the pod is %s, the list %v, %v", box, list.GetItems(), err)
	}
	calls, err := os.ReadFile(filepath.Join(orders, "calls"))
	if count := strings.Count(string(calls), "ADD "+box+"\n"); err != nil || count != 1 {
		t.Errorf("CNI ADD was called %d times for the pod that hung, %v", count, err)
	}
}

// The same in DEL: the pod stays until the plugin does its work, it is told why, and is
// removed when it can be, without being asked again.
func TestFaultyPluginInDEL(t *testing.T) {
	n, _, orders := pluginNode(t, options{})
	del := filepath.Join(orders, "DEL")
	for fault, reason := range map[string]string{"fails": "no luck", "refuses": "no luck in DEL", "dies": "killed"} {
		box := n.runPod(n.podConfig())
		n.order(del, fault)
		for _, call := range []func() error{
			func() error { return second(n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box})) },
			func() error {
				return second(n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}))
			},
		} {
			if err := call(); err == nil || !strings.Contains(err.Error(), "cni del") || !strings.Contains(err.Error(), reason) {
				t.Errorf("a plugin that %s: %v", fault, err)
			}
		}
		n.blocked(reason)
		n.endOrder(del)
		n.compare(n.before) // by the retry
	}
	// What a plugin says in DEL is nobody's business: CNI gives it no result.
	n.order(del, "babbles-late")
	n.runPod(n.podConfig())
	n.removeAll()
	n.endOrder(del)
	n.compare(n.before)
	box := n.runPod(n.podConfig())
	n.order(del, "hangs")
	n.hangs(func(ctx context.Context) error {
		return second(n.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: box}))
	}, "cni del")
	n.endOrder(del)
	n.compare(n.before) // by the call that nobody waits for any more
}

// A pod whose stop failed was told as ready although nothing of it ran any more, and
// nobody tried again: the kubelet removes only what could be stopped.
func TestFailedStopIsTriedAgain(t *testing.T) {
	n, _, orders := pluginNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	del := filepath.Join(orders, "DEL")
	n.order(del, "fails")
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}); err == nil || !strings.Contains(err.Error(), "cni del") {
		t.Errorf("stop: %v", err)
	}
	told := func(daemon string) {
		t.Helper()
		n.blocked("no luck")
		if s := n.sandbox(box); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("%s tells of a pod that was stopped: %v", daemon, s.GetState())
		}
		if _, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod}); status.Code(err) != codes.AlreadyExists {
			t.Errorf("%s runs the pod that was stopped: %v", daemon, err)
		}
	}
	told("the daemon")
	n.kill()
	n.start()
	told("the daemon after it")
	n.endOrder(del)
	n.await("the end of the stop", func() error {
		addresses, err := filepath.Glob(n.path("ipam/*/10.*"))
		if report := n.status(); len(report.Blocked) > 0 || len(report.Operations) > 0 || len(addresses) > 0 {
			return fmt.Errorf("blocked %+v, operations %+v, addresses %q", report.Blocked, report.Operations, addresses)
		}
		return err
	})
	if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Errorf("remove: %v", err)
	}
	n.before = nil // of another daemon
}

// pluginNode is a node whose bridge plugin obeys orders.
func pluginNode(t *testing.T, o options) (n *node, image, orders string) {
	n, image = readyNode(t, o)
	orders = faulty(t, n.path("bridge-or-not"), "verb=$CNI_COMMAND", "/usr/lib/cni/bridge")
	n.reconfigure(`plugin_dirs = [`, fmt.Sprintf(`plugin_dirs = [%q, `, n.dir))
	n.write("cni/10-bridge.conflist", strings.Replace(n.conflist(), `"type":"bridge"`, `"type":"bridge-or-not"`, 1))
	n.stop()
	n.start()
	n.runPod(n.podConfig())
	n.removeAll()
	n.before = n.settled()
	return n, image, orders
}

// runtimeVerb finds what a runtime is called for.
const runtimeVerb = `for word; do case $word in create|start|kill|delete) verb=$word; break ;; esac; done`

// A part that hangs for good: what waits for it ends by its own budget, with the stage and
// the object in its error, and is blocked or undone. Those of the runtime's create and of
// CNI, of 30 and 90 s, are made shorter but in the long form.
func TestHangsEndByTheirBudgets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runtime")
	orders := faulty(t, path, runtimeVerb, `runc "$@"`)
	n, image, plugin := pluginNode(t, options{
		conf:       fmt.Sprintf("[crio.runtime.runtimes.runc]\nruntime_path = %q\ncontainer_create_timeout = 30\n", path),
		failpoints: true,
	})
	if os.Getenv("CRIO_TORTURE") == "" {
		n.env = append(n.env, "CRIO_BUDGET=4s")
		n.kill()
		n.start()
		n.before = n.settled()
	}
	failed := func(err error, words ...string) {
		t.Helper()
		for _, word := range append(words, "deadline") {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("no %q in: %v", word, err)
			}
		}
	}
	stop := func(box string) error {
		return second(n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}))
	}
	remove, create := filepath.Join(orders, "delete"), filepath.Join(orders, "create")
	add, del := filepath.Join(plugin, "ADD"), filepath.Join(plugin, "DEL")

	pod := n.podConfig()
	sharing(pod)
	box := n.runPod(pod)
	n.order(remove, "hangs")
	failed(stop(box), "stop pause "+box, "runtime delete "+box)
	n.blocked("runtime delete " + box)
	n.endOrder(remove)
	n.unblocked()
	pod = n.podConfig()
	id := n.create(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	n.order(create, "hangs")
	failed(second(n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})), "start "+id, "runtime create and start")
	n.endOrder(create)
	n.removeAll()
	n.compare(n.before)
	n.order(add, "hangs")
	failed(second(n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()})), "cni add")
	n.compare(n.before)
	n.endOrder(add)
	box = n.runPod(n.podConfig())
	n.order(del, "hangs")
	failed(stop(box), "cni del "+box)
	n.blocked("cni del " + box)
	n.endOrder(del)
}

// An OCI runtime that fails, dies or hangs: the container is told why it does not run, can
// be removed, and holds up nobody. The kill of a runtime is called for the handlers alone
// that have sandboxes of their own: TestFaultyKillInASandbox.
func TestFaultyRuntime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runtime")
	orders := faulty(t, path, runtimeVerb, `runc "$@"`)
	n, image := readyNode(t, options{conf: fmt.Sprintf("[crio.runtime.runtimes.runc]\nruntime_path = %q\n", path)})
	pod := n.podConfig()
	box := n.runPod(pod)
	rest := n.settled()
	start := func(id string) func(context.Context) error {
		return func(ctx context.Context) error {
			return second(n.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}))
		}
	}
	remove := func(id string) func(context.Context) error {
		return func(ctx context.Context) error {
			return second(n.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id}))
		}
	}
	for _, verb := range []string{"create", "start"} {
		order := filepath.Join(orders, verb)
		for fault, reason := range map[string]string{"fails": "no luck in " + verb, "dies": "signal 9"} {
			id := n.create(box, pod, n.containerConfig(image, "sleep", "99"))
			n.order(order, fault)
			if err := start(id)(n.ctx()); err == nil || !strings.Contains(err.Error(), reason) {
				t.Errorf("%s that %s: %v", verb, fault, err)
			}
			if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), reason) {
				t.Errorf("%s that %s: the container is %v", verb, fault, s)
			}
			n.endOrder(order)
			if err := remove(id)(n.ctx()); err != nil {
				t.Error(err)
			}
			n.compare(rest)
		}
		id := n.create(box, pod, n.containerConfig(image, "sleep", "99"))
		n.order(order, "hangs")
		n.hangs(start(id), "monitor, runtime create and start")
		n.endOrder(order)
		n.startContainer(id) // joins the one that hung
		if err := remove(id)(n.ctx()); err != nil {
			t.Error(err)
		}
	}
	order := filepath.Join(orders, "delete")
	for _, fault := range []string{"fails", "dies"} {
		id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
		n.order(order, fault)
		if err := remove(id)(n.ctx()); err == nil || !strings.Contains(err.Error(), "runtime delete") {
			t.Errorf("delete that %s: %v", fault, err)
		}
		n.blocked("runtime delete")
		n.endOrder(order)
		n.compare(rest)
	}
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	n.order(order, "hangs")
	n.hangs(remove(id), "kill", "its turn") // its own, or that of the exit's clean-up
	n.endOrder(order)
	n.compare(rest)
}

// silentMount is a file system that does not answer until end is called, and then fails.
func (n *node) silentMount(dir string) (end func()) {
	n.t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = unix.Mount("silent", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	}
	if err != nil {
		n.t.Fatalf("a file system that does not answer: %v", err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return func() { unix.Close(fd) }
}

// A volume on a file system that never answers, before the container is made or before it
// is started, costs its own container alone; once it fails for good the reason is told, and
// once it is there the container can be made.
func TestVolumeThatNeverAnswers(t *testing.T) {
	n, image := readyNode(t, options{})
	dir := n.path("silent")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	config.Mounts = []*cri.Mount{{ContainerPath: "/volume", HostPath: dir}}
	early := n.create(box, pod, config)
	end := n.silentMount(dir)
	n.hangs(func(ctx context.Context) error {
		return second(n.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: early}))
	}, "monitor, runtime create and start")
	config = n.containerConfig(image, "sleep", "99")
	config.Mounts = []*cri.Mount{{ContainerPath: "/volume", HostPath: dir}}
	create := func(ctx context.Context) error {
		return second(n.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod}))
	}
	n.hangs(create, "inputs "+dir)
	other := n.podConfig()
	n.exec(n.runContainer(n.runPod(other), other, n.containerConfig(image, "sleep", "99")), "true")
	end()
	n.await("the reason", func() error {
		switch err := create(n.ctx()); {
		case err == nil:
			return errors.New("it could be made")
		case !strings.Contains(err.Error(), dir):
			return fmt.Errorf("%w does not name the path", err)
		}
		return nil
	})
	if s := n.exited(early); s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), dir) {
		t.Errorf("the container whose volume has failed at its start is %v", s)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	n.startContainer(n.create(box, pod, config))
}

// A container in a sleep that nothing interrupts cannot be ended: that is told with the
// state of its process, holds up nobody, and ends when the sleep does.
func TestContainerInAnUninterruptibleSleep(t *testing.T) {
	n, image := readyNode(t, options{env: []string{"CONTAINER_CTR_STOP_TIMEOUT=1"}})
	dir := n.ext4("frozen", 16)
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, shell("echo ready; while true; do echo x > /volume/file; done")...)
	config.Mounts = []*cri.Mount{{ContainerPath: "/volume", HostPath: dir}}
	id := n.runContainer(box, pod, config)
	n.awaitLog(logOf(pod, config), "ready")
	n.freeze(dir, fifreeze)
	thawed := false
	defer func() {
		if !thawed {
			n.freeze(dir, fithaw)
		}
	}()
	_, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "in state D") {
		t.Errorf("stop: %v", err)
	}
	n.answersInTime()
	if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("its process is there, and it is told as %v", s)
	}
	n.freeze(dir, fithaw)
	thawed = true
	if s := n.exited(id); s.GetExitCode() != 137 {
		t.Errorf("%v", s)
	}
	n.removeAll()
}
