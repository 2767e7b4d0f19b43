package rootfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.podman.io/storage"

	"github.com/crio-minimal/crio/internal/sys"
)

// A hold is a container of the store without any process: by it every tool knows that
// the image is used, and none deletes it. There is one for each image that layers stand
// on, however many. It stays when the last of them is removed, since another is likely,
// until Release or HoldOnly.

// holdID is the container's ID and its layer's. People see it: podman names it to
// whoever wants to remove the image.
func (s *Store) holdID(imageID string) string {
	return fmt.Sprintf("crio-%s-holds-%s", s.shortInstance(), imageID)
}

// hold makes sure that there is one, and returns the image's topmost layer, "" for none.
func (s *Store) hold(imageID string) (top string, err error) {
	img, err := s.store.Image(imageID)
	if errors.Is(err, storage.ErrImageUnknown) {
		return "", fmt.Errorf("image: %w: %w", ErrNotFound, err)
	}
	if err != nil {
		return "", err
	}
	id := s.holdID(imageID)
	if _, err = s.store.Container(id); !errors.Is(err, storage.ErrContainerUnknown) {
		return img.TopLayer, err
	}
	create := func() error {
		_, err := s.store.CreateContainer(id, nil, img.ID, id, "", &storage.ContainerOptions{Volatile: true, LabelOpts: []string{"disable"}})
		return err
	}
	sys.Failpoint("hold", "begin")
	err = create()
	if errors.Is(err, storage.ErrDuplicateID) {
		if err := s.dropHalf(id); err != nil {
			return "", err
		}
		err = create()
	}
	if errors.Is(err, storage.ErrImageUnknown) || errors.Is(err, storage.ErrLayerUnknown) {
		return "", fmt.Errorf("image: %w: %w", ErrNotFound, err)
	}
	sys.Failpoint("hold", "made")
	return img.TopLayer, err
}

// Release gives an image up that somebody wants to remove: ErrInUse if a layer stands on it.
func (s *Store) Release(ctx context.Context, imageID string) error {
	leave, err := s.enter(ctx, imageID)
	if err != nil {
		return fmt.Errorf("release image %s: %w", imageID, err)
	}
	defer leave()
	if err := s.release(imageID); err != nil {
		return fmt.Errorf("release image %s: %w", imageID, err)
	}
	sys.Failpoint("hold", "released")
	return nil
}

// release is for who has the image's turn. That there is no hold says nothing: it may have
// been lost, all of it or its record alone.
func (s *Store) release(imageID string) error {
	used, err := s.layerOn(imageID)
	if err != nil {
		return err
	}
	if used != "" {
		return fmt.Errorf("layer %s: %w", used, ErrInUse)
	}
	id := s.holdID(imageID)
	err = s.store.DeleteContainer(id)
	if errors.Is(err, storage.ErrNotAContainer) || errors.Is(err, storage.ErrContainerUnknown) {
		return s.dropHalf(id)
	}
	return err
}

// dropHalf removes what a hold has without its record, which a crash came before, or
// which was lost: a layer in the store's list, or only the directory of one. The image's
// own could not be removed else.
func (s *Store) dropHalf(id string) error {
	err := s.store.DeleteLayer(id)
	if err == nil || !errors.Is(err, storage.ErrNotALayer) && !errors.Is(err, storage.ErrLayerUnknown) {
		return err
	}
	driver, err := s.store.GraphDriver()
	if err != nil || !driver.Exists(id) {
		return err
	}
	return driver.Remove(id)
}

// layerOn finds a layer on the image, "" if there is none.
func (s *Store) layerOn(imageID string) (string, error) {
	ids, err := s.List()
	if err != nil {
		return "", err
	}
	for _, id := range ids {
		dir, err := s.dir(id)
		if err != nil {
			continue // removed meanwhile
		}
		switch on, err := imageOf(dir); {
		case err != nil:
			return "", err
		case on == imageID: // one that is not whole is never mounted
			return id, nil
		}
	}
	return "", nil
}

// HoldOnly makes the holds on the given images anew that somebody has lost, and drops
// those on others, unless a layer stands on them. It does all that it can, whatever fails.
func (s *Store) HoldOnly(ctx context.Context, imageIDs []string) error {
	held, err := s.held()
	if err != nil {
		return fmt.Errorf("list holds on images: %w", err)
	}
	for _, imageID := range held {
		if !slices.Contains(imageIDs, imageID) {
			if releaseErr := s.Release(ctx, imageID); !errors.Is(releaseErr, ErrInUse) {
				err = errors.Join(err, releaseErr)
			}
		}
	}
	for _, imageID := range imageIDs {
		err = errors.Join(err, s.holdAgain(ctx, imageID))
	}
	return err
}

// held are the images of all holds, and of what is left of some.
func (s *Store) held() ([]string, error) {
	if err := s.opened(); err != nil {
		return nil, err
	}
	all, err := s.store.MultiList(storage.MultiListOptions{Containers: true, Layers: true})
	if err != nil {
		return nil, err
	}
	driver, err := s.store.GraphDriver()
	if err != nil {
		return nil, err
	}
	names, err := driver.ListLayers()
	if err != nil {
		return nil, err
	}
	for _, c := range all.Containers {
		names = append(names, c.ID)
	}
	for _, l := range all.Layers {
		names = append(names, l.ID)
	}
	var images []string
	for _, name := range names {
		if image, ok := strings.CutPrefix(name, s.holdID("")); ok {
			images = append(images, image)
		}
	}
	slices.Sort(images)
	return slices.Compact(images), nil
}

// holdAgain passes over an image that is not there any more, not all of it.
func (s *Store) holdAgain(ctx context.Context, imageID string) error {
	leave, err := s.enter(ctx, imageID)
	if err != nil {
		return fmt.Errorf("hold image %s: %w", imageID, err)
	}
	defer leave()
	if _, err := s.hold(imageID); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("hold image %s: %w", imageID, err)
	}
	return nil
}
