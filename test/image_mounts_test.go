package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/crio-minimal/crio/test/fixture"
)

// dataImage has no program: two layers, the upper hiding a file of the lower, and links
// that would lead out if the node followed them.
func dataImage(t *testing.T) *fixture.Image {
	t.Helper()
	return fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{
		{
			{Path: "models", Dir: true}, {Path: "models/weights", Data: []byte("v1")}, {Path: "top", Data: []byte("top")},
			{Path: "bin", Dir: true}, {Path: "bin/tool", Mode: 0o4755, Data: []byte("#!/bin/sh\necho ran\n")},
		},
		{
			{Path: "models/weights", Data: []byte("v2")}, {Path: "latest", Link: "/models"},
			{Path: "out", Link: "../../../../../../../../etc"}, {Path: "host", Link: "/etc/hostname"},
		},
	}})
}

// imageNode has the data image beside busybox; it is gone at the end.
func imageNode(t *testing.T) (n *node, busybox, data, ref string) {
	t.Helper()
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, busybox = readyNode(t, options{registry: r})
	ref = r.Push(t, "data", "v1", dataImage(t))
	data = n.pull(ref)
	n.before = n.settled()
	return n, busybox, data, ref
}

func imageMount(image, target, subPath string) *cri.Mount {
	return &cri.Mount{ContainerPath: target, Readonly: true, Image: &cri.ImageSpec{Image: image}, ImageSubPath: subPath}
}

// sh runs a script in the container, which has to print want.
func (n *node) sh(id, script, want string) {
	n.t.Helper()
	a := n.exec(id, shell(script)...)
	if got := strings.TrimSpace(string(a.GetStdout())); got != want {
		n.t.Errorf("%s: %q, want %q (%d: %s)", script, got, want, a.GetExitCode(), a.GetStderr())
	}
}

func TestImageMount(t *testing.T) {
	n, busybox, data, ref := imageNode(t)
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(busybox, "sleep", "99")
	asked := imageMount(data, "/by-id", "")
	asked.Image.UserSpecifiedImage = ref
	noexec := imageMount(ref, "/noexec", "bin")
	noexec.MountOptions = []string{"noexec", "nodev"}
	config.Mounts = []*cri.Mount{
		{ContainerPath: "/host", HostPath: n.dir}, asked, imageMount(ref, "/dir", "models"), imageMount(ref, "/file", "models/weights"),
		imageMount(ref, "/linked/weights", "latest/weights"), noexec,
	}
	id := n.runContainer(box, pod, config)
	n.sh(id, "cat /by-id/models/weights /by-id/top /dir/weights /file /linked/weights", "v2topv2v2v2")
	n.sh(id, "touch /by-id/x /dir/x /file 2>&1 | grep -c 'Read-only'", "3")
	n.sh(id, "sh /by-id/bin/tool; /by-id/bin/tool; /noexec/tool 2>&1 | grep -o denied", "ran\nran\ndenied")
	n.sh(id, "grep -c ' /by-id ro[^ ]*nosuid[^ ]*nodev' /proc/self/mountinfo; grep ' /noexec ' /proc/self/mountinfo | grep -c noexec", "1\n1")
	img, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	digest := img.GetImage().GetRepoDigests()[0]
	told := n.container(id).GetMounts()
	for i, m := range config.Mounts {
		if i > 0 && told[i].GetImage().GetImageRef() != digest {
			t.Errorf("image_ref of %s is %q, want %s", m.GetContainerPath(), told[i].GetImage().GetImageRef(), digest)
		}
		if told[i].GetImageSubPath() != m.GetImageSubPath() || told[i].GetImage().GetImage() != m.GetImage().GetImage() {
			t.Errorf("mount %d is told as %v", i, told[i])
		}
	}
	n.kill()
	n.start()
	n.sh(id, "cat /file", "v2")
	if got := n.container(id).GetMounts()[1].GetImage().GetImageRef(); got != digest {
		t.Errorf("image_ref after a restart: %q", got)
	}
}

// An image volume of a container whose root is read-only, and of one that runs as nobody.
func TestImageMountOfUnprivilegedContainer(t *testing.T) {
	n, busybox, data, _ := imageNode(t)
	pod := n.podConfig()
	config := n.containerConfig(busybox, "sleep", "99")
	config.Linux.SecurityContext.ReadonlyRootfs = true
	config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	config.Mounts = []*cri.Mount{imageMount(data, "/made/for/it", "")}
	n.sh(n.runContainer(n.runPod(pod), pod, config), "cat /made/for/it/models/weights", "v2")
}

func TestImageMountIsRefused(t *testing.T) {
	n, busybox, data, ref := imageNode(t)
	pod := n.podConfig()
	box := n.runPod(pod)
	with := func(change func(*cri.Mount)) *cri.Mount {
		m := imageMount(data, "/vol", "")
		change(m)
		return m
	}
	for _, c := range []struct {
		name  string
		mount *cri.Mount
		code  codes.Code
		says  string
	}{
		{"host path", with(func(m *cri.Mount) { m.HostPath = n.dir }), codes.InvalidArgument, "host_path"},
		{"writable", with(func(m *cri.Mount) { m.Readonly = false }), codes.InvalidArgument, "readonly"},
		{"bidirectional", with(func(m *cri.Mount) { m.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL }), codes.InvalidArgument, "propagation"},
		{"no image", &cri.Mount{ContainerPath: "/vol", HostPath: n.dir, ImageSubPath: "a"}, codes.InvalidArgument, "image_sub_path"},
		{"image without a name", with(func(m *cri.Mount) { m.Image = &cri.ImageSpec{} }), codes.InvalidArgument, "names none"},
		{"absent", imageMount("localhost/absent:v1", "/vol", ""), codes.NotFound, "pull it first"},
		{"malformed", imageMount("UPPER", "/vol", ""), codes.InvalidArgument, "UPPER"},
		{"unknown handler", with(func(m *cri.Mount) { m.Image.RuntimeHandler = "absent" }), codes.InvalidArgument, "runtime_handler"},
		{"option", with(func(m *cri.Mount) { m.MountOptions = []string{"suid"} }), codes.InvalidArgument, "mount_options"},
		{"missing sub path", imageMount(ref, "/vol", "no/such"), codes.InvalidArgument, crierrors.ErrImageVolumeMountFailed.Error()},
		{"link to the node's directory", imageMount(ref, "/vol", "out"), codes.InvalidArgument, crierrors.ErrImageVolumeMountFailed.Error()},
		{"link to the node's file", imageMount(ref, "/vol", "host"), codes.InvalidArgument, crierrors.ErrImageVolumeMountFailed.Error()},
		{"climbing sub path", imageMount(ref, "/vol", "../../etc"), codes.InvalidArgument, "image_sub_path"},
		{"absolute sub path", imageMount(ref, "/vol", "/etc"), codes.InvalidArgument, "image_sub_path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := n.containerConfig(busybox, "true")
			config.Mounts = []*cri.Mount{c.mount}
			_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %s that says %q", err, c.code, c.says)
			}
			if c.says == crierrors.ErrImageVolumeMountFailed.Error() && !strings.HasPrefix(status.Convert(err).Message(), c.says) {
				t.Errorf("the kubelet looks for %s at the beginning: %v", c.says, err)
			}
		})
	}
}

// A mounted image stays, whatever the container does and whoever asks, until the
// container is removed.
func TestMountedImageIsNotRemoved(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, busybox := readyNode(t, options{registry: r})
	ref := r.Push(t, "data", "v1", dataImage(t))
	data := n.pull(ref)
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(busybox, "sleep", "99")
	config.Mounts = []*cri.Mount{imageMount(data, "/vol", "models")}
	id := n.create(box, pod, config)
	kept := func(when string) {
		t.Helper()
		for _, name := range []string{data, ref} {
			_, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), id) {
				t.Errorf("%s: removal of %s: %v", when, name, err)
			}
		}
	}
	kept("created")
	n.kill()
	n.start()
	kept("created, daemon killed")
	n.startContainer(id)
	kept("running")
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.exited(id)
	n.kill()
	n.start()
	kept("exited, daemon killed")
	if _, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: data}}); err != nil {
		t.Errorf("removal after the container's: %v", err)
	}
}

// Killed at any point of creation or removal, the daemon leaves nothing of an image mount
// behind once its successor has swept. The record may be there or not.
func TestKilledImageMountLeavesNothing(t *testing.T) {
	n, busybox, data, _ := imageNode(t)
	pod := n.podConfig()
	box := n.runPod(pod)
	config := func() *cri.ContainerConfig {
		c := n.containerConfig(busybox, "true")
		c.Mounts = []*cri.Mount{imageMount(data, "/a", ""), imageMount(data, "/b", "models"), imageMount(busybox, "/c", "bin")}
		return c
	}
	for try := range 6 {
		ctx, cancel := context.WithCancel(n.ctx())
		called := make(chan struct{})
		go func() {
			defer close(called)
			_, _ = n.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: box, Config: config(), SandboxConfig: pod})
		}()
		want := fmt.Sprintf("-image-%d", try%3)
		n.await("a layer of an image mount", func() error { return n.hasLayer(want) })
		n.kill()
		cancel()
		<-called
		n.start()
	}
	id := n.create(box, pod, config())
	n.kill()
	for _, pattern := range []string{"state/containers/" + id + "*"} {
		found, _ := filepath.Glob(n.path(pattern))
		if len(found) == 0 {
			t.Fatal("no record to lose")
		}
		for _, path := range found {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.start()
	n.await("the sweep", func() error {
		if n.hasLayer(id) == nil {
			return fmt.Errorf("a layer of %s is there", id)
		}
		return nil
	})
}

// hasLayer tells whether a layer with part in its name exists.
func (n *node) hasLayer(part string) error {
	found, _ := filepath.Glob(n.path("storage/overlay/*" + part + "*"))
	if len(found) == 0 {
		return fmt.Errorf("there is no layer %s", part)
	}
	return nil
}

// Directories that an image declares as volumes exist, with what the image has there,
// and can be written to, also where the root cannot. Nothing of them is on the node, not
// even where the image has links to it.
func TestVolumesOfImages(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, _ := readyNode(t, options{registry: r})
	outside := t.TempDir()
	files := append(fixture.Busybox(t),
		fixture.File{Path: "seeded", Dir: true, Mode: 0o750, UID: 1000}, fixture.File{Path: "seeded/file", Data: []byte("seed")},
		fixture.File{Path: "inner", Link: "/seeded"}, fixture.File{Path: "loop", Link: "../../../../../../../seeded"})
	ref := r.Push(t, "volumes", "v1", fixture.BuildImage(t, fixture.ImageSpec{
		Layers: [][]fixture.File{files},
		Config: imgspec.ImageConfig{Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{
			"/fresh/below": {}, "/seeded": {}, "/seeded/": {}, "/": {}, "/proc/sys": {}, "relative": {}, "/loop/more": {},
			"/etc/hosts": {}, "/pods/own": {},
		}},
	}))
	image := n.pull(ref)
	n.before = n.settled()
	pod := n.podConfig()
	box := n.runPod(pod)
	for _, readonly := range []bool{false, true} {
		t.Run(fmt.Sprintf("readonly root %t", readonly), func(t *testing.T) {
			config := n.containerConfig(image, "sleep", "99")
			config.Linux.SecurityContext.ReadonlyRootfs = readonly
			config.Mounts = []*cri.Mount{{ContainerPath: "/pods", HostPath: outside}}
			id := n.runContainer(box, pod, config)
			n.sh(id, "for d in /fresh/below /seeded /relative /seeded/more; do touch $d/x && test -f $d/x && echo $d; done",
				"/fresh/below\n/seeded\n/relative\n/seeded/more")
			n.sh(id, "cat /seeded/file; stat -c %u:%a /seeded; stat -c %u:%a /fresh/below", "seed1000:750\n0:755")
			n.sh(id, "touch /etc/x 2>/dev/null && echo writable", map[bool]string{false: "writable", true: ""}[readonly])
			entries, err := os.ReadDir(outside)
			if err != nil || len(entries) != 0 {
				t.Errorf("made in the pod's own mount: %v, %v", entries, err)
			}
			if _, err := os.Stat("/seeded"); err == nil {
				t.Error("/seeded was made on the node")
			}
			n.kill()
			n.start()
			if _, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
		})
	}
	if out, err := exec.Command("grep", "-c", n.path("run")+".*mounts", "/proc/self/mountinfo").Output(); err == nil {
		t.Errorf("mounts are left: %s", out)
	}
}
