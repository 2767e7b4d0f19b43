// Package rootfs gives each container its root filesystem: a read-write layer
// of containers/storage on top of an image.
package rootfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"

	"go.podman.io/storage"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// ErrNotFound: there is no such container layer, or no such image. Test with errors.Is.
var ErrNotFound = errors.New("not found")

// ErrForeign: the id is taken by a container of another tool, or on another image.
var ErrForeign = errors.New("belongs to another")

// Options of one container's layer.
type Options struct {
	// MountLabel is the SELinux label of the mount, "" for none.
	MountLabel string
	// Metadata is kept with the layer and has no meaning here.
	Metadata string
	// Users of the container: the image's files belong to them when it is mounted, and
	// so do the files that they write. The zero value are the node's.
	Users pod.Users
	// Namespace is the path of a user namespace with the mappings of private Users.
	Namespace string
}

// Store creates, mounts and removes container layers. Methods may be called
// concurrently; calls for one id run one after the other. The storage library
// can't be interrupted, so ctx bounds the wait for one's turn, not the work.
type Store struct {
	open     func() (storage.Store, error)
	instance string

	mu    sync.Mutex // guards the fields below
	turns map[string]*turn
	store storage.Store // set once it is open, and read after that
}

// turn serialises the calls for one id; it is dropped when nobody uses it.
type turn struct {
	token chan struct{}
	users int
}

// marker is the metadata by which a layer is known as ours.
type marker struct {
	Instance string `json:"crio_instance"`
	Metadata string `json:"metadata,omitempty"`
}

// New works on a store that the caller owns and closes. open returns it, or why it is not
// open yet: until then each call fails with that. instance (the daemon's state directory)
// tells this daemon's layers from those of podman, buildah or another crio on the same store.
func New(open func() (storage.Store, error), instance string) *Store {
	return &Store{open: open, instance: instance, turns: make(map[string]*turn)}
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
// idempotent: a layer that this daemon made for the same id and image is kept.
// The layer is volatile: it is not synced, and not meant to outlive a power cut.
func (s *Store) Create(ctx context.Context, id, imageID string, opts Options) error {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return fmt.Errorf("create layer %s: %w", id, err)
	}
	defer leave()
	if err := s.create(id, imageID, opts); err != nil {
		return fmt.Errorf("create layer %s on image %s: %w", id, imageID, err)
	}
	sys.Failpoint("layer", "made")
	return nil
}

func (s *Store) create(id, imageID string, opts Options) error {
	c, err := s.store.Container(id)
	if err == nil {
		if !s.owns(c) || c.ImageID != imageID {
			return fmt.Errorf("container: %w", ErrForeign)
		}
		return nil
	}
	if !errors.Is(err, storage.ErrContainerUnknown) {
		return err
	}
	metadata, err := json.Marshal(marker{Instance: s.instance, Metadata: opts.Metadata})
	if err != nil {
		return err
	}
	co := &storage.ContainerOptions{Volatile: true, LabelOpts: []string{"disable"}}
	if opts.MountLabel != "" {
		// The library wants both or none, and only stores the first.
		co.Flags = map[string]any{"ProcessLabel": opts.MountLabel, "MountLabel": opts.MountLabel}
	}
	_, err = s.store.CreateContainer(id, nil, imageID, id, string(metadata), co)
	if errors.Is(err, storage.ErrDuplicateID) {
		// A crash came between the layer and its record.
		if err := s.dropOrphan(id); err != nil {
			return err
		}
		_, err = s.store.CreateContainer(id, nil, imageID, id, string(metadata), co)
	}
	if errors.Is(err, storage.ErrImageUnknown) {
		return fmt.Errorf("image: %w: %w", ErrNotFound, err)
	}
	return err
}

// dropOrphan deletes a layer that no container record names.
func (s *Store) dropOrphan(id string) error {
	if _, err := s.store.Layer(id); errors.Is(err, storage.ErrLayerUnknown) {
		return s.dropDirectory(id)
	}
	if err := s.unmount(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := s.store.DeleteLayer(id)
	if errors.Is(err, storage.ErrLayerUnknown) || errors.Is(err, storage.ErrNotALayer) {
		return nil
	}
	return err
}

// dropDirectory deletes the directory of a layer that the library's list has lost: the
// graph driver still finds it by its ID.
func (s *Store) dropDirectory(layer string) error {
	driver, err := s.store.GraphDriver()
	if err != nil || !driver.Exists(layer) {
		return err
	}
	dirs, err := s.dirs(layer)
	if err != nil {
		return err
	}
	if err := errors.Join(unmountMapped(dirs.mapped()), sys.Unmount(dirs.merged)); err != nil {
		return err
	}
	return driver.Remove(layer)
}

func (s *Store) owns(c *storage.Container) bool {
	var m marker
	return json.Unmarshal([]byte(c.Metadata), &m) == nil && m.Instance == s.instance
}

// Mount mounts the layer and returns the path of the root filesystem. It does
// not count: however often it is called, one Unmount undoes it. After a crash of
// the daemon it finds what is mounted already. The options are those of Create.
func (s *Store) Mount(ctx context.Context, id string, opts Options) (string, error) {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	defer leave()
	c, err := s.own(id)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	var path string
	if opts.Users.Private() {
		path, err = s.mountMapped(c.LayerID, opts)
	} else {
		path, err = s.store.Mount(id, "")
	}
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	sys.Failpoint("layer", "mounted")
	return path, nil
}

// own returns the container if this daemon made it.
func (s *Store) own(id string) (*storage.Container, error) {
	c, err := s.store.Container(id)
	switch {
	case errors.Is(err, storage.ErrContainerUnknown):
		return nil, fmt.Errorf("container: %w", ErrNotFound)
	case err != nil:
		return nil, err
	// Names and prefixes resolve as well; only the id itself is ours to use.
	case c.ID != id:
		return nil, fmt.Errorf("container: %w", ErrNotFound)
	case !s.owns(c):
		return nil, fmt.Errorf("container: %w", ErrForeign)
	}
	return c, nil
}

// Unmount undoes Mount; nil when it is not mounted or not there.
func (s *Store) Unmount(ctx context.Context, id string) error {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return fmt.Errorf("unmount layer %s: %w", id, err)
	}
	defer leave()
	c, err := s.own(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		err = s.unmount(c.LayerID)
	}
	if err != nil {
		return fmt.Errorf("unmount layer %s: %w", id, err)
	}
	return nil
}

// unmount makes sure that the layer is not mounted, whatever the library's
// counts say: they are in the run directory and in the memory of processes, and
// either may have been lost.
func (s *Store) unmount(layer string) error {
	dirs, err := s.dirs(layer)
	if err != nil {
		return err
	}
	if err := unmountMapped(dirs.mapped()); err != nil {
		return err
	}
	merged := dirs.merged
	count, err := s.store.Mounted(layer)
	if err != nil {
		return err
	}
	mounted, err := sys.IsMountpoint(merged)
	if err != nil {
		return err
	}
	if count == 0 && !mounted {
		return nil
	}
	if _, err := s.store.Unmount(layer, true); err != nil && !errors.Is(err, storage.ErrLayerNotMounted) {
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
	c, err := s.own(id)
	if errors.Is(err, ErrNotFound) {
		return s.dropOrphan(id)
	}
	if err != nil {
		return err
	}
	// A layer whose directory is gone can't be unmounted, but has to be deleted.
	err = s.unmount(c.LayerID)
	if errors.Is(err, storage.ErrLayerUnknown) {
		err = s.dropDirectory(c.LayerID)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sys.Failpoint("layer", "unmounted")
	err = s.store.DeleteContainer(id)
	if errors.Is(err, storage.ErrNotAContainer) || errors.Is(err, storage.ErrContainerUnknown) {
		return nil
	}
	return err
}

// List returns the ids of the layers that this daemon (instance) made. It waits for the
// storage's lock.
func (s *Store) List() ([]string, error) {
	if err := s.opened(); err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	all, err := s.store.MultiList(storage.MultiListOptions{Containers: true})
	if err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	var ids []string
	for i := range all.Containers {
		if s.owns(&all.Containers[i]) {
			ids = append(ids, all.Containers[i].ID)
		}
	}
	return ids, nil
}

// Usage measures the container's own layer, what it wrote: allocated bytes and
// inodes (stat(2)), a file with several hard links once. It walks the layer
// without any lock, and stops when ctx ends.
func (s *Store) Usage(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	if err := s.opened(); err != nil {
		return 0, 0, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	c, err := s.own(id)
	if err != nil {
		return 0, 0, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	dirs, err := s.dirs(c.LayerID)
	if err != nil {
		return 0, 0, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	seen := make(map[uint64]bool)
	err = filepath.WalkDir(dirs.upper, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil // the container removes files meanwhile
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || seen[st.Ino] {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			seen[st.Ino] = true
		}
		bytes += uint64(st.Blocks) * 512
		inodes++
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	return bytes, inodes, nil
}
