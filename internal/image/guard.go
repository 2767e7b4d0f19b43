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

const overlayDriver = "overlay" // the library's default, too

// guarded is a storage.Store of which the calls that the daemon makes, itself or through
// containers/image, fail where the library panics: it does when it cannot open a lock
// file, on a disk that is read-only or gone, or without descriptors. The disk may still
// break between the look and the call; that ends the daemon, and containers go on.
// TestGuardedCalls knows which calls these are.
type guarded struct {
	storage.Store
	list string // as listOf has it
}

func guard(s storage.Store) *guarded {
	return &guarded{s, listOf(s.GraphRoot(), s.GraphDriverName())}
}

// listOf is a file that is beside the lock files once there is an image. They cannot be
// tried themselves: who closes one gives the whole process's locks on it back (fcntl(2)).
func listOf(root, driver string) string {
	return filepath.Join(root, driver+"-images/images.json")
}

func writable(list string) error {
	fd, err := unix.Open(list, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("image store: open %s: %w", list, err)
	}
	return unix.Close(fd)
}

func (g *guarded) usable() error { return writable(g.list) }

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

// Exists takes what it cannot see for absent, as the library does.
func (g *guarded) Exists(id string) bool { return g.usable() == nil && g.Store.Exists(id) }

func (g *guarded) CreateContainer(id string, names []string, image, layer, metadata string, o *storage.ContainerOptions) (*storage.Container, error) {
	return guardedCall(g, func() (*storage.Container, error) {
		return g.Store.CreateContainer(id, names, image, layer, metadata, o)
	})
}

func (g *guarded) Layers() ([]storage.Layer, error) {
	return guardedCall(g, func() ([]storage.Layer, error) { return g.Store.Layers() })
}

func (g *guarded) LayersByCompressedDigest(d digest.Digest) ([]storage.Layer, error) {
	return guardedCall(g, func() ([]storage.Layer, error) { return g.Store.LayersByCompressedDigest(d) })
}

func (g *guarded) LayersByTOCDigest(d digest.Digest) ([]storage.Layer, error) {
	return guardedCall(g, func() ([]storage.Layer, error) { return g.Store.LayersByTOCDigest(d) })
}

func (g *guarded) LookupAdditionalLayer(d digest.Digest, ref string) (storage.AdditionalLayer, error) {
	return guardedCall(g, func() (storage.AdditionalLayer, error) { return g.Store.LookupAdditionalLayer(d, ref) })
}

func (g *guarded) LayerBigData(id, key string) (io.ReadCloser, error) {
	return guardedCall(g, func() (io.ReadCloser, error) { return g.Store.LayerBigData(id, key) })
}

func (g *guarded) SetLayerBigData(id, key string, data io.Reader) error {
	return g.do(func() error { return g.Store.SetLayerBigData(id, key, data) })
}

func (g *guarded) PrepareStagedLayer(o *graphdriver.ApplyDiffWithDifferOpts, d graphdriver.Differ) (*graphdriver.DriverWithDifferOutput, error) {
	return guardedCall(g, func() (*graphdriver.DriverWithDifferOutput, error) { return g.Store.PrepareStagedLayer(o, d) })
}

func (g *guarded) ApplyStagedLayer(o storage.ApplyStagedLayerOptions) (*storage.Layer, error) {
	return guardedCall(g, func() (*storage.Layer, error) { return g.Store.ApplyStagedLayer(o) })
}

func (g *guarded) CleanupStagedLayer(out *graphdriver.DriverWithDifferOutput) error {
	return g.do(func() error { return g.Store.CleanupStagedLayer(out) })
}

func (g *guarded) DifferTarget(id string) (string, error) {
	return guardedCall(g, func() (string, error) { return g.Store.DifferTarget(id) })
}

func (g *guarded) Diff(from, to string, o *storage.DiffOptions) (io.ReadCloser, error) {
	return guardedCall(g, func() (io.ReadCloser, error) { return g.Store.Diff(from, to, o) })
}

func (g *guarded) ImagesByDigest(d digest.Digest) ([]*storage.Image, error) {
	return guardedCall(g, func() ([]*storage.Image, error) { return g.Store.ImagesByDigest(d) })
}

func (g *guarded) ListImageBigData(id string) ([]string, error) {
	return guardedCall(g, func() ([]string, error) { return g.Store.ListImageBigData(id) })
}

func (g *guarded) ImageBigDataSize(id, key string) (int64, error) {
	return guardedCall(g, func() (int64, error) { return g.Store.ImageBigDataSize(id, key) })
}

func (g *guarded) SetMetadata(id, metadata string) error {
	return g.do(func() error { return g.Store.SetMetadata(id, metadata) })
}
