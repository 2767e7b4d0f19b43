package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.podman.io/storage/pkg/lockfile"
)

// A list waited up to two seconds for the store's lock, which a pull of our own held.
func TestOwnPullsHoldUpNoList(t *testing.T) {
	g := newGate(t)
	s := open(t, g.options)
	pulled := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), g.ref, Credential{}, Platform{})
		pulled <- err
	}()
	within(t, 20*time.Second, "the download begins", g.arrived)
	ops := s.Operations()
	if len(ops) != 1 || ops[0].Kind != "pull image" || ops[0].Object != g.ref || ops[0].Stage != "copy" {
		t.Errorf("operations %+v", ops)
	}
	release := hold(t, s)
	begun := time.Now()
	for range 100 {
		if all, err := s.List(t.Context(), ""); err != nil || len(all) != 0 {
			t.Errorf("%v, %v", all, err)
		}
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("100 lists took %s", took)
	}
	release()
	close(g.open)
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("pulled, and listed are %v, %v", all, err)
	}
	if ops := s.Operations(); len(ops) != 0 {
		t.Errorf("at the end: %+v", ops)
	}
	// A removal waits for the lock, and is told.
	release = hold(t, s)
	removed := make(chan error, 1)
	go func() { removed <- s.Remove(t.Context(), g.img.ID, nothingHeld) }()
	for len(s.Operations()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if op := s.Operations()[0]; op.Kind != "remove image" || op.Object != g.img.ID || op.Stage != "delete" {
		t.Errorf("operation %+v", op)
	}
	if all, err := s.List(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("while it is removed: %v, %v", all, err)
	}
	release()
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if all, err := s.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("removed, and listed are %v, %v", all, err)
	}
}

// lock takes the store's locks.
func lock(t *testing.T, s *Store) (release func()) {
	t.Helper()
	var locks []*lockfile.LockFile
	for _, name := range []string{"overlay-layers/layers.lock", "overlay-images/images.lock"} {
		l, err := lockfile.GetLockFile(filepath.Join(s.options.Root, name))
		if err != nil {
			t.Fatal(err)
		}
		l.Lock()
		locks = append(locks, l)
	}
	return func() {
		for _, l := range locks {
			l.Unlock()
		}
	}
}

// hold takes them as a writer that has just changed a list.
func hold(t *testing.T, s *Store) (release func()) {
	t.Helper()
	release = lock(t, s)
	path := filepath.Join(s.options.Root, "overlay-images/images.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = []byte("[]"), nil
	}
	if err = errors.Join(err, os.WriteFile(path, append(data, '\n'), 0o600)); err != nil {
		t.Fatal(err)
	}
	return release
}
