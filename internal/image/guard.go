package image

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	"go.podman.io/storage/drivers"
	"golang.org/x/sys/unix"
)

// guarded is a storage.Store of which the calls that the daemon makes, itself or through
// containers/image, fail where the library panics: it does when it cannot open a lock
// file, on a disk that is read-only or gone, or without descriptors. The disk may still
// break between the look and the call; that ends the daemon, and containers go on.
// CreateContainer has no look of its own, for it comes right after Container.
type guarded struct {
	storage.Store
	// list is a file that is beside the lock files once there is an image. They cannot be
	// tried themselves: who closes one gives the whole process's locks on it back (fcntl(2)).
	list string
}

func guard(s storage.Store) *guarded {
	return &guarded{s, filepath.Join(s.GraphRoot(), s.GraphDriverName()+"-images/images.json")}
}

func (g *guarded) usable() error {
	fd, err := unix.Open(g.list, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("image store: open %s: %w", g.list, err)
	}
	return unix.Close(fd)
}

func guardedCall[T any](g *guarded, call func() (T, error)) (out T, err error) {
	if err := g.usable(); err != nil {
		return out, err
	}
	return call()
}

func (g *guarded) do(call func() error) error {
	if err := g.usable(); err != nil {
		return err
	}
	return call()
}

func (g *guarded) GraphDriver() (graphdriver.Driver, error) {
	return guardedCall(g, g.Store.GraphDriver)
}

func (g *guarded) Container(id string) (*storage.Container, error) {
	return guardedCall(g, func() (*storage.Container, error) { return g.Store.Container(id) })
}

func (g *guarded) DeleteContainer(id string) error {
	return g.do(func() error { return g.Store.DeleteContainer(id) })
}

func (g *guarded) Layer(id string) (*storage.Layer, error) {
	return guardedCall(g, func() (*storage.Layer, error) { return g.Store.Layer(id) })
}

func (g *guarded) LayersByUncompressedDigest(d digest.Digest) ([]storage.Layer, error) {
	return guardedCall(g, func() ([]storage.Layer, error) { return g.Store.LayersByUncompressedDigest(d) })
}

func (g *guarded) PutLayer(id, parent string, names []string, label string, writable bool, o *storage.LayerOptions, diff io.Reader) (*storage.Layer, int64, error) {
	if err := g.usable(); err != nil {
		return nil, 0, err
	}
	return g.Store.PutLayer(id, parent, names, label, writable, o, diff)
}

func (g *guarded) DeleteLayer(id string) error {
	return g.do(func() error { return g.Store.DeleteLayer(id) })
}

func (g *guarded) Mount(id, label string) (string, error) {
	return guardedCall(g, func() (string, error) { return g.Store.Mount(id, label) })
}

func (g *guarded) Mounted(id string) (int, error) {
	return guardedCall(g, func() (int, error) { return g.Store.Mounted(id) })
}

func (g *guarded) Unmount(id string, force bool) (bool, error) {
	return guardedCall(g, func() (bool, error) { return g.Store.Unmount(id, force) })
}

func (g *guarded) MultiList(o storage.MultiListOptions) (storage.MultiListResult, error) {
	return guardedCall(g, func() (storage.MultiListResult, error) { return g.Store.MultiList(o) })
}

func (g *guarded) Image(id string) (*storage.Image, error) {
	return guardedCall(g, func() (*storage.Image, error) { return g.Store.Image(id) })
}

func (g *guarded) CreateImage(id string, names []string, layer, metadata string, o *storage.ImageOptions) (*storage.Image, error) {
	return guardedCall(g, func() (*storage.Image, error) { return g.Store.CreateImage(id, names, layer, metadata, o) })
}

func (g *guarded) DeleteImage(id string, commit bool) ([]string, error) {
	return guardedCall(g, func() ([]string, error) { return g.Store.DeleteImage(id, commit) })
}

func (g *guarded) ImageBigData(id, key string) ([]byte, error) {
	return guardedCall(g, func() ([]byte, error) { return g.Store.ImageBigData(id, key) })
}

func (g *guarded) SetImageBigData(id, key string, data []byte, manifest func([]byte) (digest.Digest, error)) error {
	return g.do(func() error { return g.Store.SetImageBigData(id, key, data, manifest) })
}

func (g *guarded) AddNames(id string, names []string) error {
	return g.do(func() error { return g.Store.AddNames(id, names) })
}

func (g *guarded) Shutdown(force bool) ([]string, error) {
	return guardedCall(g, func() ([]string, error) { return g.Store.Shutdown(force) })
}
