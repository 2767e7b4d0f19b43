package rootfs

import (
	"errors"
	"path/filepath"
	"testing"

	"go.podman.io/storage"

	"github.com/crio-minimal/crio/test/fixture"
)

// wantDeletable tells whether another tool could delete the image.
func (n *node) wantDeletable(t *testing.T, want bool) {
	t.Helper()
	_, err := n.DeleteImage(n.image, false)
	if inUse := errors.Is(err, storage.ErrImageUsedByContainer); inUse == want || err != nil && !inUse {
		t.Errorf("deletable %t, want %t: %v", err == nil, want, err)
	}
}

func TestImageIsHeldForItsLayers(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	ctx := t.Context()
	for _, id := range []string{idA, idB} {
		if err := s.Create(ctx, id, n.image); err != nil {
			t.Fatal(err)
		}
	}
	n.wantDeletable(t, false)
	if err := s.Remove(ctx, idA); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(ctx, n.image); !errors.Is(err, ErrInUse) {
		t.Errorf("release: %v, want %v", err, ErrInUse)
	}
	n.mount(t, s, idB, Options{})
	if err := s.Remove(ctx, idB); err != nil {
		t.Fatal(err)
	}
	n.wantDeletable(t, false)
	for range 2 {
		if err := s.Release(ctx, n.image); err != nil {
			t.Fatal(err)
		}
	}
	n.wantDeletable(t, true)
}

// What a start does: a hold was lost with the store's list, and another is of no use.
func TestHoldOnlyWhatIsUsed(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	ctx := t.Context()
	if err := s.Create(ctx, idA, n.image); err != nil {
		t.Fatal(err)
	}
	if err := n.DeleteContainer(s.holdID(n.image)); err != nil {
		t.Fatal(err)
	}
	if err := s.HoldOnly(ctx, []string{n.image, "removed"}); err != nil {
		t.Fatal(err)
	}
	n.wantDeletable(t, false)
	// A container that is made while the start looks is not among those that it knows.
	if err := s.HoldOnly(ctx, nil); err != nil {
		t.Fatal(err)
	}
	n.wantDeletable(t, false)
	if err := s.Remove(ctx, idA); err != nil {
		t.Fatal(err)
	}
	if err := s.HoldOnly(ctx, nil); err != nil {
		t.Fatal(err)
	}
	n.wantDeletable(t, true)
}

// Another daemon and another tool on the same store have holds of their own.
func TestOthersHoldsAreLeftAlone(t *testing.T) {
	n := newNode(t)
	ours, theirs := n.layers(t, "/state"), n.layers(t, "/other")
	if _, err := n.CreateContainer(idB, []string{"podman"}, n.image, "", `{"image-name":"x"}`, nil); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Create(t.Context(), idA, n.image); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ours.Release(t.Context(), n.image), ours.HoldOnly(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{idB, theirs.holdID(n.image)} {
		if _, err := n.Container(id); err != nil {
			t.Errorf("the container %s is gone: %v", id, err)
		}
	}
	if err := theirs.Remove(t.Context(), idA); err != nil {
		t.Error(err)
	}
}

// What a crash or a list that was lost leaves of a hold is no hold, but the image's layers
// cannot be removed with it.
func TestHalfAHoldIsReplacedOrRemoved(t *testing.T) {
	for what, lose := range map[string]func(*node, *storage.Image, string) error{
		"all but its layer": func(n *node, img *storage.Image, id string) error {
			_, err := n.CreateLayer(id, img.TopLayer, nil, "", true, nil)
			return err
		},
		"all but its directory": func(n *node, img *storage.Image, id string) error {
			driver, err := n.GraphDriver()
			return errors.Join(err, driver.CreateReadWrite(id, img.TopLayer, nil))
		},
	} {
		for then, do := range map[string]func(*Store, *node) error{
			"replaced": func(s *Store, n *node) error {
				err := s.Create(t.Context(), idA, n.image)
				n.wantDeletable(t, false)
				return errors.Join(err, s.Remove(t.Context(), idA), s.Release(t.Context(), n.image))
			},
			"released": func(s *Store, n *node) error { return s.Release(t.Context(), n.image) },
			"swept":    func(s *Store, n *node) error { return s.HoldOnly(t.Context(), nil) },
		} {
			t.Run(what+" "+then, func(t *testing.T) {
				n := newNode(t)
				s := n.layers(t, "/state")
				img, err := n.Image(n.image)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(lose(n, img, s.holdID(n.image)), do(s, n)); err != nil {
					t.Fatal(err)
				}
				n.wantDeletable(t, true)
				if left, _ := filepath.Glob(n.options.GraphRoot + "/overlay/crio-*"); len(left) != 0 {
					t.Errorf("left %v", left)
				}
				if _, err := n.Layer(s.holdID(n.image)); !errors.Is(err, storage.ErrLayerUnknown) {
					t.Errorf("the layer: %v", err)
				}
			})
		}
	}
}

// Without its hold an image was given up beneath the layers that stand on it.
func TestImageWhoseHoldIsLostIsNotReleased(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	if err := s.Create(t.Context(), idA, n.image); err != nil {
		t.Fatal(err)
	}
	if err := n.DeleteContainer(s.holdID(n.image)); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(t.Context(), n.image); !errors.Is(err, ErrInUse) {
		t.Errorf("release: %v, want %v", err, ErrInUse)
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
}

// An image of which a layer is missing cannot be held, and nothing can be made of it.
func TestHoldOnABrokenImage(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	top, err := n.CreateLayer("", "", nil, "", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	broken, err := n.CreateImage("", nil, top.ID, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.DeleteLayer(top.ID); err == nil {
		t.Fatal("the library deletes layers that are used")
	}
	lists, err := filepath.Glob(n.options.GraphRoot + "/overlay-layers/layers.json")
	if err != nil || len(lists) != 1 {
		t.Fatal(lists, err)
	}
	n.Free()
	fixture.ForgetRecord(t, lists[0], top.ID)
	n.open(t)
	if err := s.Create(t.Context(), idA, broken.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Create: %v, want %v", err, ErrNotFound)
	}
	if err := s.HoldOnly(t.Context(), []string{broken.ID}); err != nil {
		t.Errorf("HoldOnly: %v", err)
	}
}

// Two images can have the same layers: that one is used says nothing of the other.
func TestImageWithTheLayersOfAUsedOneIsReleased(t *testing.T) {
	n := newNode(t)
	s := n.layers(t, "/state")
	first, err := n.Image(n.image)
	if err != nil {
		t.Fatal(err)
	}
	twin, err := n.CreateImage("", nil, first.TopLayer, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for id, image := range map[string]string{idA: first.ID, idB: twin.ID} {
		if err := s.Create(t.Context(), id, image); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(t.Context(), first.ID); err != nil {
		t.Error(err)
	}
	n.wantDeletable(t, true)
	if err := s.Remove(t.Context(), idB); err != nil {
		t.Fatal(err)
	}
}
