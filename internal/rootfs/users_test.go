package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/pod"
)

func usersFrom(host uint32) pod.Users {
	r := pod.IDRange{Host: host, Length: 1 << 16}
	return pod.Users{UIDs: r, GIDs: r}
}

func wantOwner(t *testing.T, path string, want uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != want || st.Gid != want {
		t.Errorf("%s belongs to %d:%d, want %d", path, st.Uid, st.Gid, want)
	}
}

// userNamespace is the path of one with the mappings of usersFrom. It lasts as long as the test.
func userNamespace(t *testing.T, host uint32) string {
	t.Helper()
	r := []syscall.SysProcIDMap{{HostID: int(host), Size: 1 << 16}}
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: r, GidMappings: r}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid)
}

// Two layers with other users on one image: its files are theirs, and no copies.
func TestUsersOwnTheirLayers(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	ctx := t.Context()
	namespaces := make(map[string]string)
	for id, host := range map[string]uint32{idA: 1 << 20, idB: 1 << 21} {
		namespaces[id] = userNamespace(t, host)
	}
	users, err := os.Open(namespaces[idA])
	if err != nil {
		t.Fatal(err)
	}
	defer users.Close()
	if err := ServesUsers("overlay", n.GraphRoot(), users); err != nil {
		t.Fatal(err)
	}
	layers, err := n.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for id, host := range map[string]uint32{idA: 1 << 20, idB: 1 << 21} {
		opts := Options{Users: usersFrom(host), Namespace: namespaces[id]}
		if err := s.Create(ctx, id, n.image); err != nil {
			t.Fatal(err)
		}
		path := n.mount(t, s, id, opts)
		if again := n.mount(t, s, id, opts); again != path {
			t.Errorf("mounted at %s and at %s", path, again)
		}
		wantOwner(t, path, host)
		wantOwner(t, path+"/etc/hello", host)
	}
	if now, err := n.Layers(); err != nil || len(now) != len(layers)+1 {
		t.Errorf("%d layers after %d, want the hold on the image and no copy: %v", len(now), len(layers), err)
	}
	if got := layerMounts(t, s); got != 2 {
		t.Errorf("%d mounts, want 2", got)
	}
	for _, id := range []string{idA, idB} {
		if err := s.Remove(ctx, id); err != nil {
			t.Error(err)
		}
	}
}

// All options of a mount have to be in one page: more layers than docker would make.
func TestUsersOfAnImageOfManyLayers(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	img, err := n.Image(n.image)
	if err != nil {
		t.Fatal(err)
	}
	top := img.TopLayer
	for range 130 {
		layer, err := n.CreateLayer("", top, nil, "", false, nil)
		if err != nil {
			t.Fatal(err)
		}
		top = layer.ID
	}
	high, err := n.CreateImage("", nil, top, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Users: usersFrom(1 << 20), Namespace: userNamespace(t, 1<<20)}
	if err := s.Create(t.Context(), idA, high.ID); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, n.mount(t, s, idA, opts)+"/etc/hello", 1<<20)
	if got := layerMounts(t, s); got != 1 {
		t.Errorf("%d mounts, want 1", got)
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
}

// A daemon that is killed while it mounts a layer leaves the image's layers
// mounted inside of it. Who removes the layer must not remove the image.
func TestRemoveLeavesTheImageThatIsMountedInside(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	if err := s.Create(t.Context(), idA, n.image); err != nil {
		t.Fatal(err)
	}
	img, err := n.Image(n.image)
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(n.options.GraphRoot, "overlay")
	left := filepath.Join(s.home(), idA, "mapped/0")
	if err := errors.Join(os.MkdirAll(left, 0o700), unix.Mount(filepath.Join(overlay, img.TopLayer), left, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(overlay, img.TopLayer, "diff/etc/hello")); err != nil || string(data) != "hello" {
		t.Errorf("the image's file: %q, %v", data, err)
	}
	if got := layerMounts(t, s); got != 0 {
		t.Errorf("%d mounts are left", got)
	}
}
