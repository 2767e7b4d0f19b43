package image

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/lockfile"

	"github.com/crio-minimal/crio/internal/sys"
)

// Damage is a list of containers/storage that could not be read. The daemon works with
// what could be saved of it; the file as it was is kept.
type Damage struct {
	// Path is where the damaged file is kept, until somebody deletes it.
	Path string
	// List is the list's name, as in "layers.json".
	List string
}

// damageDir is in the store's root.
const damageDir = "crio-damaged"

// Damaged returns the lists that were found damaged when the store was opened, or at an
// earlier start.
func (s *Store) Damaged() []Damage {
	if s.ready() != nil {
		return nil
	}
	return s.damaged
}

// list is a file of containers/storage: a JSON array, with an object for each record.
type list struct {
	path, lock string
	// record tells whether the library would take the object.
	record func(data []byte) bool
}

func lists(root, runRoot, driver string) []list {
	driver = cmp.Or(driver, overlayDriver)
	images, layers, containers := filepath.Join(root, driver+"-images"), filepath.Join(root, driver+"-layers"), filepath.Join(root, driver+"-containers")
	mounts := filepath.Join(runRoot, driver+"-layers")
	return []list{
		{images + "/images.json", images + "/images.lock", readsImage},
		{layers + "/layers.json", layers + "/layers.lock", readsLayer},
		{layers + "/volatile-layers.json", layers + "/layers.lock", readsLayer},
		{containers + "/containers.json", containers + "/containers.lock", readsContainer},
		{containers + "/volatile-containers.json", containers + "/containers.lock", readsContainer},
		{mounts + "/mountpoints.json", mounts + "/mountpoints.lock", readsMount},
	}
}

func readsImage(data []byte) bool {
	var image storage.Image
	if json.Unmarshal(data, &image) != nil || image.ID == "" {
		return false
	}
	// One that is none keeps the library from loading all images.
	return areDigests(append(slices.Collect(maps.Values(image.BigDataDigests)), image.Digest))
}

// areDigests takes absent ones for right.
func areDigests(digests []digest.Digest) bool {
	return !slices.ContainsFunc(digests, func(d digest.Digest) bool { return d != "" && d.Validate() != nil })
}

func readsLayer(data []byte) bool {
	var layer storage.Layer
	return json.Unmarshal(data, &layer) == nil && layer.ID != "" &&
		areDigests([]digest.Digest{layer.CompressedDigest, layer.UncompressedDigest, layer.TOCDigest})
}

func readsContainer(data []byte) bool {
	var container storage.Container
	return json.Unmarshal(data, &container) == nil && container.ID != ""
}

func readsMount(data []byte) bool {
	var mount struct {
		ID    string `json:"id"`
		Path  string `json:"path"`
		Count int    `json:"count"`
	}
	return json.Unmarshal(data, &mount) == nil && mount.ID != ""
}

// mendLists makes the store's lists readable, since containers/storage refuses a store
// with one that is not: each keeps the records that can be read, and the file as it was is
// kept beside the store. An image that lost a record is absent, and can be pulled again;
// its layers stay. It returns what was kept, now and earlier.
func mendLists(root, runRoot, driver string, log *slog.Logger) ([]Damage, error) {
	keep := filepath.Join(root, damageDir)
	for _, l := range lists(root, runRoot, driver) {
		if err := l.mend(keep, log); err != nil {
			return nil, fmt.Errorf("mend %s: %w", l.path, err)
		}
	}
	entries, err := os.ReadDir(keep)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Damage
	for _, entry := range entries {
		name, _, _ := strings.Cut(entry.Name(), ".")
		all = append(all, Damage{Path: filepath.Join(keep, entry.Name()), List: name + ".json"})
	}
	return all, nil
}

func (l list) mend(keep string, log *slog.Logger) error {
	if _, err := os.Stat(l.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockfile.GetLockFile(l.lock)
	if err != nil {
		return err
	}
	lock.Lock()
	defer lock.Unlock()
	data, err := os.ReadFile(l.path)
	if err != nil || l.readable(data) {
		return err
	}
	if err := os.MkdirAll(keep, 0o700); err != nil {
		return err
	}
	kept := filepath.Join(keep, filepath.Base(l.path)+"."+time.Now().UTC().Format("20060102T150405.000000"))
	if err := sys.WriteFileSync(kept, data, 0o600); err != nil {
		return err
	}
	records := l.salvage(data)
	whole, err := json.Marshal(records)
	if err != nil {
		return err
	}
	if err := sys.WriteFileSync(l.path, whole, 0o600); err != nil {
		return err
	}
	log.Error("a list of the image store is damaged; what can be read of it is used, and the file is kept",
		"list", l.path, "kept", kept, "records", len(records))
	_, err = lock.RecordWrite()
	return err
}

func (l list) readable(data []byte) bool {
	if len(data) == 0 {
		return true // as the library has it
	}
	var records []json.RawMessage
	return json.Unmarshal(data, &records) == nil && !slices.ContainsFunc(records, func(r json.RawMessage) bool { return !l.record(r) })
}

// salvage finds the records in what is left of a list. The library writes "id" first.
func (l list) salvage(data []byte) []json.RawMessage {
	records := []json.RawMessage{}
	for {
		at := bytes.Index(data, []byte(`{"id":`))
		if at < 0 {
			return records
		}
		data = data[at:]
		var record json.RawMessage
		decoder := json.NewDecoder(bytes.NewReader(data))
		if decoder.Decode(&record) != nil || !l.record(record) {
			data = data[1:]
			continue
		}
		records = append(records, record)
		data = data[decoder.InputOffset():]
	}
}
