package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.podman.io/storage"

	"github.com/crio-minimal/crio/test/fixture"
)

// damagedStore is a store with three images and a container, that is closed.
func damagedStore(t *testing.T) (o Options, images map[string]*fixture.Image) {
	t.Helper()
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	o = options(t, r)
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	images = map[string]*fixture.Image{}
	for _, name := range []string{"a", "b", "c"} {
		img := small(t, name)
		ref := r.Push(t, name, "v1", img)
		pullOK(t, s, ref, img)
		images[ref] = img
	}
	if _, err := s.store.CreateContainer("", nil, images[r.Host+"/a:v1"].ID, "", "", &storage.ContainerOptions{Volatile: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return o, images
}

// A list of the store that was cut, or that the disk has garbled, made the daemon refuse
// to start. Now it costs the images whose records it took, and those can be pulled again.
func TestDamagedListsCostTheirRecordsAlone(t *testing.T) {
	o, images := damagedStore(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("luck: %d", seed)
	luck := rand.New(rand.NewPCG(seed, 0))
	for _, l := range lists(o.Root, o.RunRoot, "overlay") {
		if _, err := os.Stat(l.path); err != nil {
			continue // mountpoints.json: nothing is mounted
		}
		for _, harm := range []string{"cut", "garbled", "zeros", "other"} {
			t.Run(filepath.Base(l.path)+" "+harm, func(t *testing.T) { harmed(t, o, images, l, harm, luck) })
		}
	}
}

func harmed(t *testing.T, o Options, images map[string]*fixture.Image, l list, harm string, luck *rand.Rand) {
	whole, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Clone(whole)
	switch harm {
	case "cut":
		data = data[:1+luck.IntN(len(data)-1)]
	case "garbled":
		clear(data[luck.IntN(len(data)-1):][:1]) // sectors are larger, but lists are small here
	case "zeros":
		clear(data)
	case "other":
		data = []byte(`[null,{"id":5},"x",{"id":"` + fmt.Sprint(luck.Uint64()) + `"}]`)
	}
	if err := os.WriteFile(l.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	readable := l.readable(data)
	s, err := Open(o)
	if err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	defer func() {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	damaged := s.Damaged()
	if (len(damaged) == 0) != readable {
		t.Errorf("%q: damaged: %v", data, damaged)
	}
	for _, d := range damaged {
		if kept, err := os.ReadFile(d.Path); err != nil || !bytes.Equal(kept, data) || d.List != filepath.Base(l.path) {
			t.Errorf("kept as %s %s: %q, %v", d.List, d.Path, kept, err)
		}
		if err := os.Remove(d.Path); err != nil {
			t.Error(err)
		}
	}
	for ref, img := range images {
		pullOK(t, s, ref, img)
		path, err := s.store.MountImage(img.ID, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(path, "file")); err != nil || len(got) != 1 {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
		if _, err := s.store.UnmountImage(img.ID, true); err != nil {
			t.Error(err)
		}
	}
}

// What one record has lost is not lost to the others.
func TestSalvage(t *testing.T) {
	record := func(id string) string { return fmt.Sprintf(`{"id":%q,"metadata":"{\"id\":1}","flags":{"a":true}}`, id) }
	for _, c := range []struct {
		text string
		want int
	}{
		{"[" + record("a") + "," + record("b") + "," + record("c") + "]", 3},
		{"[" + record("a") + "," + record("b") + "," + record("c")[:40], 2},
		{record("a")[20:] + "," + record("b") + "," + record("c") + "]", 2},
		{"[" + record("a") + "," + record("b")[:9] + "\x00\x00" + record("b")[11:] + "," + record("c") + "]", 2},
		{"\x00\x00\x00", 0}, {"[", 0}, {`[{"id":""}]`, 0},
	} {
		l := list{record: readsLayer}
		got := l.salvage([]byte(c.text))
		if len(got) != c.want {
			t.Errorf("%q: %s", c.text, got)
		}
		again, err := json.Marshal(got)
		if err != nil || !l.readable(again) {
			t.Errorf("%q: %s, %v", c.text, again, err)
		}
	}
}
