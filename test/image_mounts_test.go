package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// imageNode has the data image beside busybox; it is gone at the end.
func imageNode(t *testing.T) (n *node, busybox, data, ref string) {
	t.Helper()
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, busybox = readyNode(t, options{registry: r})
	ref = r.Push(t, "data", "v1", n.dataImage(""))
	data = n.pull(ref)
	n.before = n.settled()
	return n, busybox, data, ref
}

// A mounted image stays, whatever the container does and whoever asks, until the
// container is removed.
func TestMountedImageIsNotRemoved(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, busybox := readyNode(t, options{registry: r})
	ref := r.Push(t, "data", "v1", n.dataImage(""))
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
	found, _ := filepath.Glob(filepath.Join(n.layers(), "*"+part+"*"))
	if len(found) == 0 {
		return fmt.Errorf("there is no layer %s", part)
	}
	return nil
}
