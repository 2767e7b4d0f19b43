package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	graphdriver "go.podman.io/storage/drivers"
	"go.podman.io/storage/drivers/overlay"

	"github.com/crio-minimal/crio/internal/sys"
)

// The graph driver's own names in its directory (go.podman.io/storage/drivers/overlay).
const (
	driverName = "overlay"
	shortNames = "l"    // beside the layers: a link to each one's files
	noted      = "link" // in a layer: the name of its link
)

// onImage is our note in a layer.
const onImage = "crio-image"

// home is the graph driver's directory of this daemon's layers.
func (s *Store) home() string {
	return filepath.Join(s.store.GraphRoot(), "crio-layers", s.shortInstance(), driverName)
}

// shortInstance is the instance as part of a name.
func (s *Store) shortInstance() string {
	sum := sha256.Sum256([]byte(s.instance))
	return hex.EncodeToString(sum[:4])
}

// driver opens the graph driver with the store's own options, and with the store's images
// as those of others: it only reads them. What fails is tried again by the next call.
func (s *Store) driver() (graphdriver.Driver, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.graph != nil {
		return s.graph, nil
	}
	if name := s.store.GraphDriverName(); name != driverName {
		return nil, fmt.Errorf("storage driver %s: containers need %s (driver in storage.conf)", name, driverName)
	}
	options := append(slices.Clone(s.store.GraphOptions()), driverName+".imagestore="+s.store.GraphRoot())
	if images := s.store.ImageStore(); images != "" {
		options = append(options, driverName+".imagestore="+images)
	}
	if err := os.MkdirAll(s.home(), 0o700); err != nil {
		return nil, fmt.Errorf("open container layers: %w", err)
	}
	graph, err := overlay.Init(s.home(), graphdriver.Options{RunRoot: s.store.RunRoot(), DriverOptions: options})
	if err != nil {
		return nil, fmt.Errorf("open container layers: %w", err)
	}
	s.graph = graph
	return graph, nil
}

// Close unmounts the directory of the layers if there are none; else they stay as they are.
// It returns when ctx ends, too.
func (s *Store) Close(ctx context.Context) error {
	_, err := sys.Within(ctx, "close container layers", func() (struct{}, error) { return struct{}{}, s.close() })
	return err
}

func (s *Store) close() error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.graph == nil {
		return nil
	}
	ids, err := s.graph.ListLayers()
	if err != nil || len(ids) > 0 {
		return err
	}
	return s.graph.Cleanup()
}

// dir is the directory of a layer, ErrNotFound if it is not there. The driver itself would
// look for it among the store's images, too.
func (s *Store) dir(id string) (string, error) {
	dir := filepath.Join(s.home(), id)
	_, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("layer: %w", ErrNotFound)
	}
	return dir, err
}

// mapped is where the lower layers are mounted for other users.
func mapped(dir string) string { return filepath.Join(dir, "mapped") }

// mountpoint is where a layer is mounted, if it is.
func mountpoint(dir string) (merged string, mounted bool, err error) {
	merged = filepath.Join(dir, "merged")
	mounted, err = sys.IsMountpoint(merged)
	if errors.Is(err, fs.ErrNotExist) {
		return merged, false, nil
	}
	return merged, mounted, err
}

// imageOf is the ID of the image that a layer stands on, "" for a layer that was not made
// to its end: the note is written last.
func imageOf(dir string) (string, error) {
	id, err := os.ReadFile(filepath.Join(dir, onImage))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(id), err
}

// dropShortName removes the link to a layer that has no note of it, or an empty one: a
// crash came in between. The driver finds no link by the first, and takes the second for
// the name of the directory of all links.
func (s *Store) dropShortName(id string) error {
	note := filepath.Join(s.home(), id, noted)
	name, err := os.ReadFile(note)
	switch {
	case err == nil && len(name) > 0:
		return nil
	case err == nil:
		err = os.Remove(note)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return err
	}
	links, err := os.ReadDir(filepath.Join(s.home(), shortNames))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, link := range links {
		path := filepath.Join(s.home(), shortNames, link.Name())
		target, err := os.Readlink(path)
		if err == nil && filepath.Base(filepath.Dir(target)) == id {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
