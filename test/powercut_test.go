package test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	records "github.com/crio-minimal/crio/internal/record"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/test/fixture"
)

// cutNode is a node whose store and records are on a disk that remembers its flushes.
type cutNode struct {
	*node
	disk   *fixture.Disk
	device string // what is mounted; "" is nothing
	marks  []cutMark
	luck   *rand.Rand
}

// cutMark is what holds from a flush on.
type cutMark struct {
	flush int
	what  string
	// there are images that a power cut after it must not take.
	there []string
}

func newCutNode(t *testing.T, registry *fixture.Registry) *cutNode {
	t.Helper()
	n, _ := readyNode(t, options{registry: registry})
	c := &cutNode{node: n, disk: fixture.NewDisk(t, 96<<20)}
	seed := uint64(time.Now().UnixNano())
	t.Logf("luck: %d", seed)
	c.luck = rand.New(rand.NewPCG(seed, 0))
	n.stop()
	if err := os.Mkdir(n.path("disk"), 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.device != "" {
			c.powerOff()
		}
	})
	c.mount(c.disk.Device)
	for key, name := range map[string]string{"root": "storage", "state_dir": "state", "cache_dir": "cni-cache"} {
		n.reconfigure(fmt.Sprintf("%s = %q", key, n.path(name)), fmt.Sprintf("%s = %q", key, n.path("disk/"+name)))
	}
	n.write("cni/10-bridge.conflist", strings.Replace(n.conflist(), n.path("ipam"), n.path("disk/ipam"), 1))
	n.start()
	n.before = nil // of another store
	return c
}

func (c *cutNode) mount(device string) {
	c.t.Helper()
	// Without what ext4 does for programs that forget an fsync, and other file systems do not.
	if err := unix.Mount(device, c.path("disk"), "ext4", 0, "noauto_da_alloc"); err != nil {
		c.t.Fatalf("mount %s: %v", device, err)
	}
	c.device = device
}

// mountFile mounts what Cut wrote. The device is there until release.
func (c *cutNode) mountFile(path string) (release func()) {
	c.t.Helper()
	device, err := fixture.Loop(path)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mount(device.Name())
	return func() { _ = device.Close() }
}

// powerOff unmounts the disk, too.
func (c *cutNode) powerOff() {
	c.t.Helper()
	c.node.powerOff()
	c.device = ""
}

func glob(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}

// mark notes that what has returned, and so the images that have to be there.
func (c *cutNode) mark(what string, there ...string) {
	c.marks = append(c.marks, cutMark{c.disk.Flushes(), what, there})
}

// at is the last mark before a power cut after n flushes.
func (c *cutNode) at(n int) (last cutMark) {
	for _, m := range c.marks {
		if m.flush <= n {
			last = m
		}
	}
	return last
}

// summed is an image that can tell whether all of it is there.
func summed(t *testing.T, name string, layers int) *fixture.Image {
	t.Helper()
	spec := fixture.ImageSpec{Layers: [][]fixture.File{fixture.Busybox(t)}}
	spec.Config.Env = []string{"PATH=/bin"}
	var sums strings.Builder
	for i := range layers {
		var files []fixture.File
		for j := range 4 {
			file := fixture.File{Path: fmt.Sprintf("%s-%d-%d", name, i, j), Data: []byte(strings.Repeat(fmt.Sprintf("%s %d %d\n", name, i, j), 3000*j+1))}
			files = append(files, file)
			fmt.Fprintf(&sums, "%x  /%s\n", sha256.Sum256(file.Data), file.Path)
		}
		spec.Layers = append(spec.Layers, files)
	}
	for _, file := range spec.Layers[0] {
		if file.Data != nil {
			fmt.Fprintf(&sums, "%x  /%s\n", sha256.Sum256(file.Data), file.Path)
		}
	}
	spec.Layers = append(spec.Layers, []fixture.File{{Path: "sums", Data: []byte(sums.String())}})
	return fixture.BuildImage(t, spec)
}

// refusing serves what the registry does, but not the blob, which there is only once refused
// is closed, and not when it is asked for first.
func refusing(t *testing.T, r *fixture.Registry, blob []byte) (host string, refused chan struct{}) {
	t.Helper()
	forward := httputil.NewSingleHostReverseProxy(r.URL)
	forward.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	refused = make(chan struct{})
	var asked atomic.Bool
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, fmt.Sprintf("/blobs/sha256:%x", sha256.Sum256(blob))) && !asked.Swap(true) {
			select {
			case <-refused:
			case <-req.Context().Done():
			}
			http.NotFound(w, req)
			return
		}
		forward.ServeHTTP(w, req)
	}))
	t.Cleanup(proxy.Close)
	return strings.TrimPrefix(proxy.URL, "http://"), refused
}

// pullHalf has a pull fail when all layers but the last are in the store, and then has the
// file system commit that, as any fsync does: the data of files that nobody synced is not
// on the disk by it.
func (c *cutNode) pullHalf(ref string, layers int, refused chan struct{}) {
	c.t.Helper()
	done := func() int {
		list := c.text(c.path("disk/storage/overlay-layers/layers.json"))
		return strings.Count(list, `"id":`) - strings.Count(list, `"incomplete":true`)
	}
	before := done()
	var pull sync.WaitGroup
	pull.Go(func() { c.pullFails(ref, "404") })
	c.await("the layers", func() error {
		if n := done() - before; n < layers {
			return fmt.Errorf("there are %d of %d", n, layers)
		}
		return nil
	})
	close(refused)
	pull.Wait()
	if err := sys.WriteFileSync(c.path("disk/other"), nil, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// whole has the image check itself.
func (c *cutNode) whole(ref string) {
	c.t.Helper()
	pod := c.podConfig()
	pod.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	config := c.containerConfig(ref, "busybox", "sha256sum", "-c", "/sums")
	box := c.runPod(pod)
	id := c.runContainer(box, pod, config)
	if s := c.exited(id); s.GetExitCode() != 0 {
		log, _ := os.ReadFile(logOf(pod, config))
		c.t.Errorf("image %s is damaged: %v\n%s", ref, s, log)
	}
}

// removeImages has the daemon give up its holds, too.
func (c *cutNode) removeImages() {
	c.t.Helper()
	list, err := c.images.ListImages(c.ctx(), &cri.ListImagesRequest{})
	for _, image := range list.GetImages() {
		_, removed := c.images.RemoveImage(c.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image.GetId()}})
		err = errors.Join(err, removed)
	}
	if err != nil {
		c.t.Error(err)
	}
}

// nothingLeft wants nothing of any pod, container or image on the disk.
func (c *cutNode) nothingLeft() {
	c.t.Helper()
	// Not what the store has for itself, and not the files that its library wrote when the power was cut.
	own := regexp.MustCompile(`/(l|tmp|tempdirs|backingFsBlockDev|\.has-mount-program|[a-z-]+\.(json|lock)|\.tmp-[^/]*)$`)
	for _, kind := range []string{"state/*/*", "ipam/*/10.*", "cni-cache/results/*", "storage/crio-pulls/*", "storage/overlay-*/*",
		"storage/overlay-layers/tmp/*", "storage/overlay/tempdirs/*", "storage/overlay/*", "storage/overlay/l/*", "storage/crio-layers/*/overlay/*", "storage/crio-layers/*/overlay/l/*"} {
		for _, left := range glob(c.path("disk/" + kind)) {
			// host-local syncs nothing: an empty file does not tell whose it was.
			data, err := os.ReadFile(left)
			forgotten := err == nil && len(data) == 0 && strings.HasPrefix(kind, "ipam")
			if forgotten || own.MatchString(left) {
				continue
			}
			c.t.Errorf("left: %s", left)
		}
	}
}

// look mounts what a power cut after n flushes left, starts the daemon on it, and wants
// each image of refs to work or to be absent, and then to be pulled. Those that the last
// mark names have to be there.
func (c *cutNode) look(n int, refs []string) {
	c.t.Helper()
	at := c.at(n)
	path := filepath.Join(c.t.TempDir(), "cut")
	c.disk.Cut(c.t, n, c.luck, path)
	defer c.mountFile(path)()
	c.start()
	for _, ref := range refs {
		present := c.imageStatus(ref) != nil
		if !present && slices.Contains(at.there, ref) {
			c.t.Errorf("%s is gone", ref)
		}
		if !present {
			c.pull(ref)
		}
		c.whole(ref)
	}
	report := c.status()
	if len(report.Blocked)+len(report.Quarantined) > 0 {
		c.t.Errorf("status: %+v", report)
	}
	c.removeAll()
	list, err := c.ListContainers(c.ctx(), &cri.ListContainersRequest{}) // of pods that are gone
	for _, container := range list.GetContainers() {
		_, removed := c.RemoveContainer(c.ctx(), &cri.RemoveContainerRequest{ContainerId: container.GetId()})
		err = errors.Join(err, removed)
	}
	if err != nil {
		c.t.Error(err)
	}
	c.removeImages()
	c.nothingLeft()
	if c.t.Failed() {
		c.t.Fatalf("after %d of %d flushes, after %q", n, c.disk.Flushes(), at.what)
	}
	c.powerOff()
}

// A power cut at any flush of pulls, creations and removals: each image works or is
// absent, one that was pulled before is there, no address is lost, and the daemon starts.
func TestPowerCuts(t *testing.T) {
	registry := fixture.StartRegistry(t, fixture.RegistryOptions{})
	var refs []string
	for _, name := range []string{"before", "shared", "removed"} {
		refs = append(refs, registry.Push(t, name, "v1", summed(t, name, 2)))
	}
	before, shared, removed := refs[0], refs[1], refs[2]
	image := summed(t, "half", 2)
	registry.Push(t, "half", "v1", image)
	host, refused := refusing(t, registry, image.Layers[len(image.Layers)-1])
	half := host + "/half:v1"
	refs = append(refs, half)
	c := newCutNode(t, registry)
	c.pull(before)
	c.disk.Record(t)
	c.mark("the start", before)
	c.pullHalf(half, len(image.Layers)-2, refused) // the first is that of all images
	c.mark("half a pull", before)
	afterHalf := c.disk.Flushes()
	c.pull(half)
	c.mark("the other half", before, half)
	c.pull(removed)
	c.mark("pull", before, half, removed)
	pod := c.podConfig()
	box := c.runPod(pod)
	c.mark("run pod", before, half, removed)
	id := c.runContainer(box, pod, c.containerConfig(removed, "sleep", "99"))
	c.mark("create container", before, half, removed)
	c.pull(shared)
	c.mark("second pull", before, half, removed, shared)
	c.mark("removals begin", before, half, shared)
	if _, err := c.RemoveContainer(c.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	c.removeAll()
	if _, err := c.images.RemoveImage(c.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: removed}}); err != nil {
		t.Fatal(err)
	}
	c.mark("remove image", before, half, shared)
	c.runContainer(c.runPod(pod), pod, c.containerConfig(shared, "sleep", "99"))
	unix.Sync()
	c.mark("another pod", before, half, shared)
	c.powerOff()
	points := c.disk.Flushes()
	looks := c.luck.Perm(points)
	if os.Getenv("CRIO_TORTURE") == "" {
		looks = append([]int{afterHalf}, looks[:5]...)
	}
	t.Logf("%d flushes, looked at %d", points, len(looks))
	for _, m := range c.marks {
		t.Logf("flush %d: %s", m.flush, m.what)
	}
	for _, n := range looks {
		c.look(n, refs)
	}
	c.start()
}

// Before the plugins are called, the pod's record is on the disk, with the network that it
// will have to be taken from: else a power cut would lose whose address it is.
func TestRecordIsOnTheDiskBeforeTheNetwork(t *testing.T) {
	c := newCutNode(t, fixture.StartRegistry(t, fixture.RegistryOptions{}))
	script := fmt.Sprintf("#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\ntouch %[1]s/begun\nwhile [ ! -e %[1]s/go ]; do sleep 0.01; done\nexit 1\n", c.dir)
	if err := os.WriteFile(c.path("waiting"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c.stop()
	c.reconfigure(`plugin_dirs = [`, fmt.Sprintf(`plugin_dirs = [%q, `, c.dir))
	c.write("cni/10-bridge.conflist", strings.Replace(c.conflist(), `"plugins":[`, `"plugins":[{"type":"waiting"},`, 1))
	c.start()
	c.disk.Record(t)
	failed := make(chan error, 1)
	go func() {
		_, err := c.RunPodSandbox(c.ctx(), &cri.RunPodSandboxRequest{Config: c.podConfig()})
		failed <- err
	}()
	c.await("the plugin", func() error { return second(os.Stat(c.path("begun"))) })
	flushes := c.disk.Flushes()
	c.write("go", "")
	if err := <-failed; err == nil {
		t.Error("a pod without a network")
	}
	c.powerOff()
	path := filepath.Join(t.TempDir(), "cut")
	c.disk.Cut(t, flushes, nil, path)
	defer c.mountFile(path)()
	found := glob(c.path("disk/state/pods/*"))
	if len(found) != 1 {
		t.Fatalf("records: %v", found)
	}
	data, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if body, err := records.Decode(data); err != nil || !strings.Contains(string(body), `"type":"waiting"`) {
		t.Errorf("%q, %v", body, err)
	}
	c.powerOff()
	c.mount(c.disk.Device)
	c.start()
}
