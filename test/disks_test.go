package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// ioctl(2) of file systems: FIFREEZE and FITHAW of linux/fs.h, EXT4_IOC_SHUTDOWN of
// fs/ext4/ext4.h, after which every request fails with EIO as on a disk that is gone.
const (
	fifreeze     = 0xC0045877
	fithaw       = 0xC0045878
	ext4Shutdown = 0x8004587D
)

// ext4 mounts a new file system of so many MiB, below the node, until the test ends.
func (n *node) ext4(name string, size int) (dir string) {
	n.t.Helper()
	dir = n.path(name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.shell("truncate -s %dM %s && mkfs.ext4 -q %[2]s && mount -o loop %[2]s %s", size, dir+".img", dir)
	n.t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			n.t.Error(err)
		}
	})
	return dir
}

func (n *node) shell(format string, values ...any) {
	n.t.Helper()
	script := fmt.Sprintf(format, values...)
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

func (n *node) freeze(dir string, request uint) {
	n.t.Helper()
	d, err := os.Open(dir)
	if err == nil {
		defer d.Close()
		err = unix.IoctlSetPointerInt(int(d.Fd()), request, 0)
	}
	if err != nil {
		n.t.Fatalf("freeze or thaw %s: %v", dir, err)
	}
}

// shutDown has every request to the file system fail from now on.
func (n *node) shutDown(dir string) {
	n.t.Helper()
	d, err := os.Open(dir)
	if err == nil {
		defer d.Close()
		err = unix.IoctlSetPointerInt(int(d.Fd()), ext4Shutdown, 2) // without writing the journal
	}
	if err != nil {
		n.t.Fatalf("shut the file system down: %v", err)
	}
}

// moveTo has the daemon keep one of its directories on another disk.
func (n *node) moveTo(dir, key, name string) {
	n.t.Helper()
	n.stop()
	n.reconfigure(fmt.Sprintf("%s = %q", key, n.path(name)), fmt.Sprintf("%s = %q", key, filepath.Join(dir, name)))
	n.start()
	n.before = n.settled()
}

func (n *node) tmpfs(name, options string) string {
	n.t.Helper()
	dir := n.path(name)
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, options)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// refusedFor wants a pod refused for a reason.
func (n *node) refusedFor(reason string) {
	n.t.Helper()
	if err := second(n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()})); err == nil || !strings.Contains(err.Error(), reason) {
		n.t.Errorf("run pod: %v, want %q", err, reason)
	}
	n.answersInTime()
}

// fill writes a file until the disk is full.
func (n *node) fill(path string) {
	n.t.Helper()
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+path, "bs=4k").CombinedOutput(); err == nil {
		n.t.Fatalf("the disk is not full: %s", out)
	}
}

// readOnly makes a directory read-only until end is called.
func (n *node) readOnly(dir string) (end func()) {
	n.t.Helper()
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
		if err := unix.Mount(dir, dir, "", flags, ""); err != nil {
			n.t.Fatal(err)
		}
	}
	n.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return func() {
		// The daemon may have a file open.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			n.t.Fatal(err)
		}
	}
}

// Records that become read-only: what runs goes on and can be stopped, nothing new
// begins, and what is to be removed waits for the disk.
func TestReadOnlyStateDisk(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	writable := n.readOnly(n.path("state"))
	n.refusedFor("read-only")
	n.exec(id, "true")
	if err := second(n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id})); err != nil {
		t.Errorf("stop: %v", err)
	}
	if s := n.container(id); s.GetExitCode() != 137 {
		t.Errorf("%v", s)
	}
	n.kill()
	n.start()
	if s := n.container(id); s.GetExitCode() != 137 {
		t.Errorf("after a restart: %v", s)
	}
	n.removalFails(box, "read-only")
	n.answersInTime()
	if len(n.status().Blocked) == 0 {
		t.Error("nothing is told to be blocked")
	}
	writable()
	n.unblocked()
	n.kill()
	n.start()
	n.compare(n.before)
}

// A disk for the records that fails: the same, until it is back.
func TestFailingStateDisk(t *testing.T) {
	n, image := readyNode(t, options{})
	dir := n.ext4("failing", 32)
	n.moveTo(dir, "state_dir", "state")
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, shell("trap 'exit 7' TERM; echo ready; while true; do sleep 0.05; done")...)
	id := n.runContainer(box, pod, config)
	n.awaitLog(logOf(pod, config), "ready")
	unix.Sync()
	n.shutDown(dir)
	n.refusedFor("input/output error")
	n.exec(id, "true")
	if err := second(n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 10})); err != nil {
		t.Errorf("stop: %v", err)
	}
	want := n.container(id)
	if want.GetExitCode() != 7 {
		t.Errorf("%v", want)
	}
	n.answersInTime()
	n.kill()
	n.shell("umount %s && mount -o loop %s %s", dir, dir+".img", dir)
	n.start()
	if s := n.container(id); s.GetExitCode() != 7 || s.GetFinishedAt() != want.GetFinishedAt() {
		t.Errorf("told before %v\nand now %v", want, s)
	}
	n.removeAll()
	n.compare(n.before)
	n.stop()
}

// /run without space: nothing new begins, and all that there is can be stopped, told
// right and removed.
func TestFullRunDirectory(t *testing.T) {
	n, image := readyNode(t, options{})
	dir := n.tmpfs("small", "size=2m")
	n.moveTo(dir, "run_dir", "run")
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, shell("trap 'exit 7' TERM; while true; do sleep 0.05; done")...))
	created := n.create(box, pod, n.containerConfig(image, "sleep", "99"))
	n.fill(dir + "/fill")
	n.refusedFor("no space")
	n.createFails(box, pod, image, "no space")
	if err := second(n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: created})); err == nil {
		t.Error("a container was started without space")
	}
	if err := second(n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 10})); err != nil {
		t.Errorf("stop: %v", err)
	}
	n.kill()
	n.start()
	if s := n.container(id); s.GetExitCode() != 7 {
		t.Errorf("%v", s)
	}
	n.answersInTime()
	if err := os.Remove(dir + "/fill"); err != nil {
		t.Fatal(err)
	}
	n.removeAll()
	n.compare(n.before)
	n.stop()
}

// A pod whose record could not be written when it was stopped or removed was ready again,
// with addresses that others could have by then, for a daemon that came after its network
// was given back and before its namespaces were gone.
func TestStopOnAFullStateDiskIsKnownToTheNextDaemon(t *testing.T) {
	points := t.TempDir()
	n, _ := readyNode(t, options{failpoints: true, env: []string{"CRIO_FAILPOINTS=" + points}})
	k := &killNode{node: n, dir: points}
	dir := n.tmpfs("small", "size=1m")
	n.moveTo(dir, "state_dir", "state")
	for what, do := range map[string]func(box string) error{
		"stop": func(box string) error {
			return second(n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}))
		},
		"remove": func(box string) error {
			return second(n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}))
		},
	} {
		box := n.runPod(n.podConfig())
		n.fill(dir + "/fill")
		k.forget()
		p := killPoint{name: "network: detached", nth: 1}
		k.arm(p)
		answered := make(chan error, 1)
		go func() { answered <- do(box) }()
		writer := k.held(p)
		n.kill()
		k.release(writer)
		<-answered // cut off
		n.start()
		if s := n.sandbox(box); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY || s.GetNetwork().GetIp() != "" {
			t.Errorf("a pod that has lost its network in a %s is told as %v", what, s)
		}
		if err := do(box); err != nil {
			t.Errorf("%s again: %v", what, err)
		}
		if left := glob(n.path("run/pods/" + box + "/ns/*")); len(left) > 0 {
			t.Errorf("after the %s there is still %q", what, left)
		}
		if err := os.Remove(dir + "/fill"); err != nil {
			t.Fatal(err)
		}
		n.removeAll()
		n.compare(n.before)
	}
	n.stop()
}

// pullFails wants a pull refused for a reason, and the image not to be there.
func (n *node) pullFails(ref, reason string) {
	n.t.Helper()
	spec := &cri.ImageSpec{Image: ref}
	if err := second(n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: spec})); err == nil || !strings.Contains(err.Error(), reason) {
		n.t.Errorf("pull: %v, want %q", err, reason)
	}
	if a, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: spec}); err != nil || a.GetImage() != nil {
		n.t.Errorf("an image that could not be pulled: %v, %v", a, err)
	}
}

// createFails wants a container refused for a reason that is not its configuration.
func (n *node) createFails(box string, pod *cri.PodSandboxConfig, image, reason string) {
	n.t.Helper()
	err := second(n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: n.containerConfig(image, "true"), SandboxConfig: pod}))
	if err == nil || !strings.Contains(err.Error(), reason) || status.Code(err) == codes.InvalidArgument {
		n.t.Errorf("create: %v, want %q", err, reason)
	}
}

// removalFails wants a pod to stay for a reason.
func (n *node) removalFails(box, reason string) {
	n.t.Helper()
	if err := second(n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box})); err == nil || !strings.Contains(err.Error(), reason) {
		n.t.Errorf("remove: %v, want %q", err, reason)
	}
}

// storeShut wants a daemon whose image store cannot be opened: it says so to everybody who
// asks for images, and serves the rest.
func (n *node) storeShut(root, reason string, code codes.Code) {
	n.t.Helper()
	spec := &cri.ImageSpec{Image: "localhost/any:v1"}
	for call, err := range map[string]error{
		"list":    second(n.images.ListImages(n.ctx(), &cri.ListImagesRequest{})),
		"status":  second(n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: spec})),
		"pull":    second(n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: spec})),
		"remove":  second(n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: spec})),
		"fs info": second(n.images.ImageFsInfo(n.ctx(), &cri.ImageFsInfoRequest{})),
	} {
		if err == nil || status.Code(err) != code || !strings.Contains(err.Error(), root) || !strings.Contains(err.Error(), reason) {
			n.t.Errorf("%s: %v, want %s with %q and %q", call, err, code, root, reason)
		}
	}
	a, err := n.Status(n.ctx(), &cri.StatusRequest{})
	if c := a.GetStatus().GetConditions(); err != nil || c[0].GetType() != cri.RuntimeReady || c[0].GetStatus() || !strings.Contains(c[0].GetMessage(), reason) {
		n.t.Errorf("status: %v, %v", c, err)
	}
	wantWords(n.t, n.statusCommand(), "image store "+root, reason, "see to its disk")
	n.inTime("list of containers", listTime, func() error { return second(n.ListContainers(n.ctx(), &cri.ListContainersRequest{})) })
	n.inTime("status", statusTime, func() error { return second(n.Status(n.ctx(), &cri.StatusRequest{})) })
}

// orphanedLayer removes what tells of a container that never ran but its layer; the daemon
// does not run.
func (n *node) orphanedLayer(id string) {
	n.t.Helper()
	n.shell("rm -r %s %s", n.path("state/containers/"+id), n.path("run/containers/"+id))
}

// An image store that is read-only: a pull and a container are refused, what runs goes
// on, and what is removed goes when the disk can be written again. So it is with a daemon
// that has to start with it.
func TestReadOnlyImageStore(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, image := readyNode(t, options{registry: r})
	ref := r.Push(t, "late", "v1", n.dataImage("data"))
	pod, other := n.podConfig(), n.podConfig()
	box, otherBox := n.runPod(pod), n.runPod(other)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	running := n.runContainer(otherBox, other, n.containerConfig(image, "sleep", "99"))
	orphan := n.create(otherBox, other, n.containerConfig(image, "true"))
	writable := n.readOnly(n.path("storage"))
	n.pullFails(ref, "read-only")
	n.createFails(box, pod, image, "read-only")
	n.answersInTime()
	n.exec(id, "true")
	n.removalFails(box, "read-only")
	n.kill()
	n.orphanedLayer(orphan)
	n.start()
	n.storeShut(n.path("storage"), "read-only", codes.Unavailable)
	n.createFails(otherBox, other, image, "read-only")
	n.exec(running, "true")
	if err := second(n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: running})); err != nil {
		t.Errorf("stop: %v", err)
	}
	n.removalFails(box, "read-only")
	writable()
	n.unblocked()
	n.dropImages(n.pull(ref))
	n.removeAll()
	n.compare(n.before)
}

// An image store that fails: the same, until the disk is back.
func TestFailingImageStore(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, image := readyNode(t, options{registry: r})
	ref := r.Push(t, "late", "v1", n.dataImage("data"))
	n.stop()
	dir := n.ext4("failing", 64)
	n.shell("cp -a %s %s/storage", n.path("storage"), dir)
	n.start()
	n.moveTo(dir, "root", "storage")
	pod := n.podConfig()
	box := n.runPod(pod)
	n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	unix.Sync()
	n.shutDown(dir)
	n.pullFails(ref, "input/output error")
	n.createFails(box, pod, image, "input/output error")
	n.answersInTime()
	if err := second(n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box})); err != nil {
		t.Errorf("stop: %v", err)
	}
	n.removalFails(box, "input/output error")
	n.kill()
	n.start()
	n.storeShut(dir+"/storage", "input/output error", codes.Unavailable)
	n.shell("umount -R %[1]s && mount -o loop %[1]s.img %[1]s", dir)
	n.unblocked()
	n.compare(n.before) // by the sweep
	n.wantWorking(n.podConfig(), image)
	n.removeAll()
	n.stop()
}

// An image store without space: a pull and a container are refused and leave nothing,
// what runs goes on, and can be removed. After a reboot the store cannot even be opened
// before there is space.
func TestFullImageStore(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, image := readyNode(t, options{registry: r})
	ref := r.Push(t, "late", "v1", n.dataImage("data"))
	n.stop()
	dir := n.ext4("small", 32)
	n.shell("cp -a %s %s/storage", n.path("storage"), dir)
	n.start()
	n.moveTo(dir, "root", "storage")
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	n.fill(dir + "/fill")
	n.pullFails(ref, "no space")
	n.createFails(box, pod, image, "no space")
	n.answersInTime()
	n.exec(id, "true")
	n.kill()
	n.start()
	n.createFails(box, pod, image, "no space")
	n.exec(id, "true")
	unix.Sync()
	n.powerOff()
	n.shell("mount -o loop %[1]s.img %[1]s", dir)
	n.fill(dir + "/rest") // of what was in use at the power cut
	n.start()
	n.storeShut(dir+"/storage", "no space", codes.ResourceExhausted)
	n.shell("rm %[1]s/fill %[1]s/rest", dir)
	n.unblocked()
	n.wantWorking(n.podConfig(), image)
	n.removeAll()
	n.startedAnew()
	n.compare(n.before)
	n.stop()
}
