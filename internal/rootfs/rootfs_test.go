package rootfs

import (
	"errors"
	"os"
	"path/filepath"
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

// layerMounts leaves out the driver's own bind mount of its directory.
func (n *node) layerMounts(t *testing.T) int {
	t.Helper()
	return len(mounts(t, filepath.Join(n.options.GraphRoot, "overlay")+"/"))
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
	s := New(at(n), "/state")
	ctx := t.Context()
	for range 2 {
		if err := s.Create(ctx, idA, n.image, Options{Metadata: "m"}); err != nil {
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
	if got := n.layerMounts(t); got != 1 {
		t.Errorf("%d mounts, want 1", got)
	}
	if err := os.WriteFile(filepath.Join(path, "written"), make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if bytes, inodes, err := s.Usage(ctx, idA); err != nil || bytes < 10_000 || bytes > 40_000 || inodes != 2 {
		t.Errorf("usage %d bytes, %d inodes, %v", bytes, inodes, err)
	}
	for range 2 {
		if err := s.Unmount(ctx, idA); err != nil {
			t.Fatal(err)
		}
		if got := n.layerMounts(t); got != 0 {
			t.Errorf("%d mounts after one Unmount", got)
		}
	}
	n.mount(t, s, idA, Options{})
	for range 2 {
		if err := s.Remove(ctx, idA); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.layerMounts(t); got != 0 {
		t.Errorf("%d mounts after Remove", got)
	}
	if ids, err := s.List(); err != nil || len(ids) != 0 {
		t.Errorf("list %v, %v", ids, err)
	}
	if err := s.Unmount(ctx, idA); err != nil {
		t.Errorf("unmounting what is not there: %v", err)
	}
	if n.Exists(idA) {
		t.Error("the layer is left")
	}
}

func TestMountAfterCrash(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(t *testing.T, n *node)
	}{
		{"with the run directory", func(*testing.T, *node) {}},
		{"without the run directory", func(t *testing.T, n *node) {
			if err := os.RemoveAll(filepath.Join(n.options.RunRoot, "overlay-layers")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			s := New(at(n), "/state")
			if err := s.Create(t.Context(), idA, n.image, Options{}); err != nil {
				t.Fatal(err)
			}
			path := n.mount(t, s, idA, Options{})
			n.Free()
			c.lose(t, n)
			n.open(t)
			s = New(at(n), "/state")
			if again := n.mount(t, s, idA, Options{}); again != path {
				t.Errorf("mounted at %s, want %s", again, path)
			}
			if got := n.layerMounts(t); got != 1 {
				t.Errorf("%d mounts, want 1", got)
			}
			if err := s.Remove(t.Context(), idA); err != nil {
				t.Fatal(err)
			}
			if got := n.layerMounts(t); got != 0 {
				t.Errorf("%d mounts after Remove", got)
			}
		})
	}
}

// What a reboot does to a layer that was mounted.
func TestMountAfterReboot(t *testing.T) {
	n := newNode(t)
	s := New(at(n), "/state")
	if err := s.Create(t.Context(), idA, n.image, Options{}); err != nil {
		t.Fatal(err)
	}
	path := n.mount(t, s, idA, Options{})
	if err := s.unmount(idA); err != nil {
		t.Fatal(err)
	}
	n.Free()
	if err := os.RemoveAll(n.options.RunRoot); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	s = New(at(n), "/state")
	if again := n.mount(t, s, idA, Options{}); again != path {
		t.Errorf("mounted at %s, want %s", again, path)
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Error(err)
	}
}

func TestOthersContainersAreLeftAlone(t *testing.T) {
	n := newNode(t)
	if _, err := n.CreateContainer(idB, []string{"podman"}, n.image, "", `{"image-name":"x"}`, nil); err != nil {
		t.Fatal(err)
	}
	ours, theirs := New(at(n), "/state"), New(at(n), "/other")
	if err := theirs.Create(t.Context(), idA, n.image, Options{}); err != nil {
		t.Fatal(err)
	}
	if ids, err := ours.List(); err != nil || len(ids) != 0 {
		t.Errorf("list %v, %v", ids, err)
	}
	for _, id := range []string{idA, idB} {
		if err := ours.Remove(t.Context(), id); !errors.Is(err, ErrForeign) {
			t.Errorf("Remove: %v, want %v", err, ErrForeign)
		}
		if err := ours.Create(t.Context(), id, n.image, Options{}); !errors.Is(err, ErrForeign) {
			t.Errorf("Create: %v, want %v", err, ErrForeign)
		}
		if _, err := ours.Mount(t.Context(), id, Options{}); !errors.Is(err, ErrForeign) {
			t.Errorf("Mount: %v, want %v", err, ErrForeign)
		}
		if _, err := n.Container(id); err != nil {
			t.Errorf("the container is gone: %v", err)
		}
	}
}

func TestWhatIsNotThere(t *testing.T) {
	n := newNode(t)
	s := New(at(n), "/state")
	if err := s.Create(t.Context(), idA, strings.Repeat("0", 64), Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Create: %v", err)
	}
	if _, err := s.Mount(t.Context(), idA, Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Mount: %v", err)
	}
	if _, _, err := s.Usage(t.Context(), idA); !errors.Is(err, ErrNotFound) {
		t.Errorf("Usage: %v", err)
	}
}

// A crash between the layer and its record leaves a layer without a record.
func TestOrphanLayerIsReplacedOrRemoved(t *testing.T) {
	n := newNode(t)
	s := New(at(n), "/state")
	orphan := func() {
		t.Helper()
		if _, err := n.CreateLayer(idA, "", nil, "", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	orphan()
	if err := s.Create(t.Context(), idA, n.image, Options{}); err != nil {
		t.Fatal(err)
	}
	n.mount(t, s, idA, Options{})
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	orphan()
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if n.Exists(idA) {
		t.Error("the orphan is left")
	}
}

// What is left of a layer need not be all of it: its directory or its place in the
// library's list may be lost.
func TestRemoveOfHalfALayer(t *testing.T) {
	n := newNode(t)
	s := New(at(n), "/state")
	driver, err := n.GraphDriver()
	if err != nil {
		t.Fatal(err)
	}
	loseDirectory := func() error { return driver.Remove(idA) }
	lose := map[string]func() error{
		"an orphan without its directory": func() error {
			_, err := n.CreateLayer(idA, "", nil, "", true, nil)
			return errors.Join(err, loseDirectory())
		},
		"a container without its directory": func() error {
			return errors.Join(s.Create(t.Context(), idA, n.image, Options{}), loseDirectory())
		},
		"a directory alone": func() error { return driver.CreateReadWrite(idA, "", nil) },
	}
	for what, do := range lose {
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := s.Remove(t.Context(), idA); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n.Exists(idA) || driver.Exists(idA) {
			t.Errorf("%s: something is left", what)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	s := New(at(n), "/state")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Create(t.Context(), idA, n.image, Options{}); err != nil {
				t.Error(err)
			}
			if _, err := s.Mount(t.Context(), idA, Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := n.layerMounts(t); got != 1 {
		t.Errorf("%d mounts, want 1", got)
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Error(err)
	}
	if len(s.turns) != 0 {
		t.Errorf("%d turns are left", len(s.turns))
	}
}

// at is a store that is open.
func at(s storage.Store) func() (storage.Store, error) {
	return func() (storage.Store, error) { return s, nil }
}
