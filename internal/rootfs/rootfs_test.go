package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

var (
	idA = strings.Repeat("a", 64)
	idB = strings.Repeat("b", 64)
)

type node struct {
	storage.Store
	options storage.StoreOptions
	image   string
}

// newNode is a store with one image that holds /etc/hello.
func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{options: storage.StoreOptions{GraphRoot: dir + "/root", RunRoot: dir + "/run", GraphDriverName: "overlay"}}
	n.open(t)
	layer, err := n.CreateLayer("", "", nil, "", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.options.GraphRoot, "overlay", layer.ID, "diff/etc/hello")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("hello"), 0o644)); err != nil {
		t.Fatal(err)
	}
	img, err := n.CreateImage("", nil, layer.ID, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	n.image = img.ID
	t.Cleanup(func() {
		if _, err := n.Shutdown(true); err != nil && !errors.Is(err, storage.ErrLayerUsedByContainer) {
			t.Error(err)
		}
		if _, err := n.Shutdown(true); err != nil {
			t.Error(err)
		}
		n.Free()
		if left := mounts(t, dir); len(left) != 0 {
			t.Errorf("mounts are left: %v", left)
		}
	})
	return n
}

func (n *node) open(t *testing.T) {
	t.Helper()
	st, err := storage.GetStore(n.options)
	if err != nil {
		t.Fatal(err)
	}
	n.Store = st
}

func mounts(t *testing.T, below string) (out []string) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], below) {
			out = append(out, f[4])
		}
	}
	return out
}

// layers opens them as a daemon with that instance does, which closes them at its end.
func (n *node) layers(t *testing.T, instance string) *Store {
	s := New(func() (storage.Store, error) { return n, nil }, instance)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// layerMounts leaves out the driver's own bind mount of its directory.
func layerMounts(t *testing.T, s *Store) int {
	t.Helper()
	return len(mounts(t, s.home()+"/"))
}

func (n *node) mount(t *testing.T, s *Store, id string, opts Options) string {
	t.Helper()
	path, err := s.Mount(t.Context(), id, opts)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(path, "etc/hello")); err != nil || string(data) != "hello" {
		t.Fatalf("content %q, %v", data, err)
	}
	return path
}

func TestLifeOfALayerIsIdempotent(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	ctx := t.Context()
	for range 2 {
		if err := s.Create(ctx, idA, n.image); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := s.List(); err != nil || len(ids) != 1 || ids[0] != idA {
		t.Errorf("list %v, %v", ids, err)
	}
	path := n.mount(t, s, idA, Options{})
	for range 3 {
		if again := n.mount(t, s, idA, Options{}); again != path {
			t.Errorf("mounted at %s, then at %s", path, again)
		}
	}
	if got := layerMounts(t, s); got != 1 {
		t.Errorf("%d mounts, want 1", got)
	}
	if err := os.WriteFile(filepath.Join(path, "written"), make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if bytes, inodes, err := s.Usage(ctx, idA); err != nil || bytes < 10_000 || bytes > 40_000 || inodes != 2 {
		t.Errorf("usage %d bytes, %d inodes, %v", bytes, inodes, err)
	}
	if bytes, inodes, err := s.AllUsage(ctx); err != nil || bytes < 10_000 || bytes > 40_000 || inodes != 2 {
		t.Errorf("usage of all layers: %d bytes, %d inodes, %v", bytes, inodes, err)
	}
	for range 2 {
		if err := s.Unmount(ctx, idA); err != nil {
			t.Fatal(err)
		}
		if got := layerMounts(t, s); got != 0 {
			t.Errorf("%d mounts after one Unmount", got)
		}
	}
	n.mount(t, s, idA, Options{})
	for range 2 {
		if err := s.Remove(ctx, idA); err != nil {
			t.Fatal(err)
		}
	}
	if got := layerMounts(t, s); got != 0 {
		t.Errorf("%d mounts after Remove", got)
	}
	if ids, err := s.List(); err != nil || len(ids) != 0 {
		t.Errorf("list %v, %v", ids, err)
	}
	if err := s.Unmount(ctx, idA); err != nil {
		t.Errorf("unmounting what is not there: %v", err)
	}
	if left, err := filepath.Glob(s.home() + "/l/*"); err != nil || len(left) != 0 {
		t.Errorf("short names of nothing: %v, %v", left, err)
	}
}

func TestMountAfterCrash(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(t *testing.T, n *node)
	}{
		{"with the run directory", func(*testing.T, *node) {}},
		{"without the run directory", func(t *testing.T, n *node) {
			if err := os.RemoveAll(filepath.Join(n.options.RunRoot, "overlay")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			s := n.layers(t, "/state")
			if err := s.Create(t.Context(), idA, n.image); err != nil {
				t.Fatal(err)
			}
			path := n.mount(t, s, idA, Options{})
			n.Free()
			c.lose(t, n)
			n.open(t)
			s = n.layers(t, "/state")
			if again := n.mount(t, s, idA, Options{}); again != path {
				t.Errorf("mounted at %s, want %s", again, path)
			}
			if got := layerMounts(t, s); got != 1 {
				t.Errorf("%d mounts, want 1", got)
			}
			if err := s.Remove(t.Context(), idA); err != nil {
				t.Fatal(err)
			}
			if got := layerMounts(t, s); got != 0 {
				t.Errorf("%d mounts after Remove", got)
			}
		})
	}
}

// What a reboot does to a layer that was mounted.
func TestMountAfterReboot(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	if err := s.Create(t.Context(), idA, n.image); err != nil {
		t.Fatal(err)
	}
	path := n.mount(t, s, idA, Options{})
	if err := s.Unmount(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	n.Free()
	if err := os.RemoveAll(n.options.RunRoot); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	s = n.layers(t, "/state")
	if again := n.mount(t, s, idA, Options{}); again != path {
		t.Errorf("mounted at %s, want %s", again, path)
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Error(err)
	}
}

// Two daemons on one store have layers of their own, even of one ID.
func TestOthersLayersAreLeftAlone(t *testing.T) {
	n := newNode(t)
	ours, theirs := n.layers(t, "/state"), n.layers(t, "/other")
	if err := theirs.Create(t.Context(), idA, n.image); err != nil {
		t.Fatal(err)
	}
	if ids, err := ours.List(); err != nil || len(ids) != 0 {
		t.Errorf("list %v, %v", ids, err)
	}
	if err := ours.Remove(t.Context(), idA); err != nil {
		t.Error(err)
	}
	if _, err := ours.Mount(t.Context(), idA, Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Mount: %v, want %v", err, ErrNotFound)
	}
	n.mount(t, theirs, idA, Options{})
	if err := theirs.Remove(t.Context(), idA); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	if err := s.Create(t.Context(), idA, strings.Repeat("0", 64)); !errors.Is(err, ErrNotFound) {
		t.Errorf("Create: %v", err)
	}
	if _, err := s.Mount(t.Context(), idA, Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Mount: %v", err)
	}
	if _, _, err := s.Usage(t.Context(), idA); !errors.Is(err, ErrNotFound) {
		t.Errorf("Usage: %v", err)
	}
}

// A crash in the middle of Create or Remove leaves some part of a layer.
func TestHalfALayerIsReplacedOrRemoved(t *testing.T) {
	for what, lose := range map[string][]string{
		"all but its directory":   {"diff", "work", "merged", "link", "lower", "lower-layers", "crio-image"},
		"the note of its link":    {"link"},
		"the notes":               {"lower-layers", "crio-image"},
		"what the driver mounts":  {"diff", "merged", "work"},
		"what its link's name is": {},
	} {
		n := newNode(t)
		s := n.layers(t, "/state")
		half := func() {
			t.Helper()
			if err := s.Create(t.Context(), idA, n.image); err != nil {
				t.Fatal(err)
			}
			for _, name := range lose {
				if err := os.RemoveAll(filepath.Join(s.home(), idA, name)); err != nil {
					t.Fatal(err)
				}
			}
			if len(lose) == 0 {
				if err := os.Truncate(filepath.Join(s.home(), idA, noted), 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		half()
		if slices.Contains(lose, onImage) { // else a removal was cut
			if err := s.Create(t.Context(), idA, n.image); err != nil {
				t.Fatal(err)
			}
			n.mount(t, s, idA, Options{})
			if err := s.Remove(t.Context(), idA); err != nil {
				t.Fatal(err)
			}
			half()
		}
		if err := s.Remove(t.Context(), idA); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if left, err := filepath.Glob(s.home() + "/l/*"); err != nil || len(left) != 0 {
			t.Errorf("%s: short names of nothing: %v, %v", what, left, err)
		}
		if ids, err := s.List(); err != nil || len(ids) != 0 {
			t.Errorf("%s: list %v, %v", what, ids, err)
		}
	}
}

// The driver leaves the link of a layer that it cannot make: one for each try.
func TestLayerThatCannotBeMadeLeavesNoLink(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	if err := s.Create(t.Context(), idB, n.image); err != nil {
		t.Fatal(err)
	}
	img, err := n.Image(n.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.options.GraphRoot, "overlay", img.TopLayer, noted)); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), idA, n.image); err == nil {
		t.Error("a layer was made on one that is not whole")
	}
	if left, err := filepath.Glob(s.home() + "/l/*"); err != nil || len(left) != 1 {
		t.Errorf("links: %v, %v", left, err)
	}
	if err := s.Remove(t.Context(), idB); err != nil {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Create(t.Context(), idA, n.image); err != nil {
				t.Error(err)
			}
			if _, err := s.Mount(t.Context(), idA, Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := layerMounts(t, s); got != 1 {
		t.Errorf("%d mounts, want 1", got)
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Error(err)
	}
	if len(s.turns) != 0 {
		t.Errorf("%d turns are left", len(s.turns))
	}
}
