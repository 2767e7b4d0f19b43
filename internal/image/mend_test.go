package image

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/crio-minimal/crio/test/fixture"
)

// A daemon that was killed while the storage library made a layer cost all layers
// their short names: its file was there, but empty.
func TestHalfMadeLayerTakesNoOtherLayersName(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	half, whole := small(t, "half"), small(t, "whole")
	o := options(t, r)
	first, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	pullOK(t, first, r.Push(t, "half", "v1", half), half)
	pullOK(t, first, r.Push(t, "whole", "v1", whole), whole)
	layer := wantImage(t, first, half.ID, true).TopLayer
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../0123/diff", filepath.Join(o.Root, "overlay/l/DANGLING")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(o.Root, "overlay", layer, "link"), 0); err != nil {
		t.Fatal(err)
	}

	s := open(t, o)
	if err := s.Remove(t.Context(), half.ID, nothingHeld); err != nil {
		t.Fatal(err)
	}
	links, err := os.ReadDir(filepath.Join(o.Root, "overlay/l"))
	if err != nil || len(links) != 1 {
		t.Errorf("%d links for one layer, %v", len(links), err)
	}
	name, err := os.ReadFile(filepath.Join(o.Root, "overlay", wantImage(t, s, whole.ID, true).TopLayer, "link"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(o.Root, "overlay/l", string(name))); err != nil {
		t.Errorf("the other layer has lost its name: %v", err)
	}
}
