// Package rootfs gives each container its root filesystem: a read-write layer of the
// storage library's graph driver on top of an image.
//
// The layers are in a directory of their own, below that of the store, and in no list of
// the store: it writes all of its lists anew for each layer that is made, mounted or
// removed, and whatever else uses the store can unmount what is in its own directory. The
// images are the store's, which has to know only that they are used (holds.go).
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// ErrNotFound: there is no such container layer, or no such image. Test with errors.Is.
var ErrNotFound = errors.New("not found")

// ErrInUse: a layer stands on the image. Test with errors.Is.
var ErrInUse = errors.New("a container uses it")

// Options of one container's layer.
type Options struct {
	// MountLabel is the SELinux label of the mount, "" for none.
	MountLabel string
	// Users of the container: the image's files belong to them when it is mounted, and
	// so do the files that they write. The zero value are the node's.
	Users pod.Users
	// Namespace is the path of a user namespace with the mappings of private Users.
	Namespace string
}

// Store creates, mounts and removes container layers. Methods may be called
// concurrently; calls for one id run one after the other. Neither the library nor the
// disk can be interrupted, so ctx bounds the wait for one's turn, not the work.
type Store struct {
	open     func() (storage.Store, error)
	instance string

	mu    sync.Mutex // guards the fields below
	turns map[string]*turn
	store storage.Store // set once it is open, and read after that

	opening sync.Mutex // guards graph
	graph   graphdriver.Driver

	all allUsage
}

// turn serialises the calls for one id; it is dropped when nobody uses it.
type turn struct {
	token chan struct{}
	users int
}

// New works on a store that the caller owns and closes. open returns it, or why it is not
// open yet: until then each call fails with that. instance (the daemon's state directory)
// tells this daemon's layers from those of another crio on the same store.
func New(open func() (storage.Store, error), instance string) *Store {
	return &Store{open: open, instance: instance, turns: make(map[string]*turn), all: allUsage{turn: make(chan struct{}, 1)}}
}

// opened comes before each use of the store.
func (s *Store) opened() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store != nil {
		return nil
	}
	store, err := s.open()
	if err == nil {
		s.store = store
	}
	return err
}

// enter waits for the turn of id; leave gives it back.
func (s *Store) enter(ctx context.Context, id string) (leave func(), err error) {
	if err := s.opened(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	t := s.turns[id]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		s.turns[id] = t
	}
	t.users++
	s.mu.Unlock()
	drop := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(s.turns, id)
		}
	}
	select {
	case t.token <- struct{}{}:
		return func() { <-t.token; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, ctx.Err()
	}
}

// Create makes the read-write layer of container id on an image. It is
// idempotent: a layer that was made for the same id and image is kept.
// Nothing of it is synced, and it is not meant to outlive a power cut.
func (s *Store) Create(ctx context.Context, id, imageID string) error {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	defer leave()
	// The image's turn, too: it is not released between the hold on it and the layer.
	leaveImage, err := s.enter(ctx, imageID)
	if err != nil {
		return fmt.Errorf("create layer %s on image %s: %w", id, imageID, err)
	}
	defer leaveImage()
	if err := s.create(id, imageID); err != nil {
		return fmt.Errorf("create layer %s on image %s: %w", id, imageID, err)
	}
	sys.Failpoint("layer", "made")
	return nil
}

func (s *Store) create(id, imageID string) error {
	driver, err := s.driver()
	if err != nil {
		return err
	}
	top, err := s.hold(imageID)
	if err != nil {
		return err
	}
	if dir, err := s.dir(id); err == nil {
		if on, err := imageOf(dir); err != nil || on == imageID {
			return err
		}
		// A crash came in between, and it is not whole.
		if err := s.remove(id); err != nil {
			return err
		}
	}
	sys.Failpoint("layer", "image held")
	if err := driver.CreateReadWrite(id, top, nil); err != nil {
		return errors.Join(err, s.dropShortName(id)) // it removes the directory alone
	}
	sys.Failpoint("layer", "made, without a note of its image")
	return os.WriteFile(filepath.Join(s.home(), id, onImage), []byte(imageID), 0o600)
}

// Mount mounts the layer and returns the path of the root filesystem. It does
// not count: however often it is called, one Unmount undoes it. After a crash of
// the daemon it finds what is mounted already.
func (s *Store) Mount(ctx context.Context, id string, opts Options) (string, error) {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	defer leave()
	path, err := s.mount(ctx, id, opts)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	sys.Failpoint("layer", "mounted")
	return path, nil
}

// driverGet is the name of the turn for the driver's Get, which finds out what the kernel
// can without a lock.
const driverGet = "get"

func (s *Store) mount(ctx context.Context, id string, opts Options) (string, error) {
	dir, err := s.dir(id)
	if err != nil {
		return "", err
	}
	driver, err := s.driver()
	if err != nil {
		return "", err
	}
	merged, mounted, err := mountpoint(dir)
	switch {
	case err != nil || mounted:
		return merged, err
	case opts.Users.Private():
		return merged, s.mountMapped(id, dir, opts)
	}
	leave, err := s.enter(ctx, driverGet)
	if err != nil {
		return "", err
	}
	defer leave()
	return driver.Get(id, graphdriver.MountOpts{MountLabel: opts.MountLabel, Volatile: true})
}

// Unmount undoes Mount; nil when it is not mounted or not there.
func (s *Store) Unmount(ctx context.Context, id string) error {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return fmt.Errorf("unmount layer %s: %w", id, err)
	}
	defer leave()
	dir, err := s.dir(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		err = s.unmount(id, dir)
	}
	if err != nil {
		return fmt.Errorf("unmount layer %s: %w", id, err)
	}
	return nil
}

// unmount makes sure that the layer is not mounted, whatever the driver's count says: it
// is in the memory of a process.
func (s *Store) unmount(id, dir string) error {
	if err := unmountMapped(mapped(dir)); err != nil {
		return err
	}
	merged, mounted, err := mountpoint(dir)
	if err != nil || !mounted {
		return err
	}
	driver, err := s.driver()
	if err != nil {
		return err
	}
	if err := driver.Put(id); err != nil {
		return err
	}
	return sys.Unmount(merged)
}

// Remove unmounts and deletes the layer; nil when it is not there.
func (s *Store) Remove(ctx context.Context, id string) error {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	defer leave()
	if err := s.remove(id); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	sys.Failpoint("layer", "removed")
	return nil
}

func (s *Store) remove(id string) error {
	dir, err := s.dir(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.unmount(id, dir); err != nil {
		return err
	}
	sys.Failpoint("layer", "unmounted")
	driver, err := s.driver()
	if err != nil {
		return err
	}
	if err := s.dropShortName(id); err != nil {
		return err
	}
	return driver.Remove(id)
}

// List returns the ids of the layers that this daemon (instance) made.
func (s *Store) List() ([]string, error) {
	if err := s.opened(); err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	driver, err := s.driver()
	if err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	names, err := driver.ListLayers()
	if err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	// The driver has directories of its own there while it tries the kernel.
	return slices.DeleteFunc(names, func(name string) bool { return !pod.ValidID(pod.LayerOwner(name)) }), nil
}
