package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/lockfile"
)

// maxDocument caps a manifest and a config, as registries cap manifests.
const maxDocument = 4 << 20

// An index that other tools made stale is waited for; after that the stale one is taken,
// for the store may be locked.
const (
	// readWait bounds it for a reader: a large store takes some 30 ms to load.
	readWait = 100 * time.Millisecond
	// renewWait bounds it for a removal, which finds nothing in a stale index.
	renewWait = 2 * time.Second
)

// index is one immutable view of the store.
type index struct {
	stamp  stamp
	images []*Image          // sorted by ID
	byID   map[string]*Image // images
	byName map[string]string // "name:tag" and "name@digest" to ID
	broken map[string]broken // images that are in the store but can't be used
	docs   map[docKey]document
	bytes  uint64 // of all images, each layer once
}

// broken is an image that costs only itself.
type broken struct {
	names  []string
	layers []string // damaged or missing ones
	reason error
}

// stamp tells whether the store's records changed: they are replaced by rename.
type stamp [2]struct {
	inode       uint64
	mtime, size int64
}

// docKey and document keep what was parsed: content never changes under a digest.
type docKey struct{ id, manifest string }

type document struct {
	config      imgspec.ImageConfig
	platform    Platform
	annotations map[string]string
}

func (s *Store) stamp() stamp {
	var out stamp
	driver := s.store.GraphDriverName()
	// Not the volatile layers: those are containers', and change all the time.
	for i, name := range []string{driver + "-images/images.json", driver + "-layers/layers.json"} {
		if info, err := os.Stat(filepath.Join(s.store.GraphRoot(), name)); err == nil {
			out[i].mtime, out[i].size = info.ModTime().UnixNano(), info.Size()
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				out[i].inode = st.Ino
			}
		}
	}
	return out
}

// current returns the index for a reader. The first one after another tool changed the
// store has the index renewed and waits for that, unless a tool has the store locked; the
// others take the last index meanwhile. Nobody waits while we change the store ourselves:
// what we have changed is in the index before our caller is answered.
func (s *Store) current(ctx context.Context) *index {
	if s.fresh() {
		return s.index.Load()
	}
	free := !s.working() && !s.locked()
	if done, first := s.renewal(); first && free {
		await(ctx, done, readWait)
	}
	return s.index.Load()
}

// locked tells whether loading the index would wait for a lock. It does not wait.
func (s *Store) locked() bool {
	for _, name := range []string{"-images/images.lock", "-layers/layers.lock"} {
		lock, err := lockfile.GetLockFile(filepath.Join(s.store.GraphRoot(), s.store.GraphDriverName()+name))
		if err == nil {
			err = lock.TryRLock()
		}
		if err != nil {
			return true
		}
		lock.Unlock()
	}
	return false
}

// renewed returns the index after it has been renewed, if the store has changed, or as it
// is after the wait; it is renewed beside then.
func (s *Store) renewed(ctx context.Context, wait time.Duration) *index {
	if !s.fresh() {
		done, _ := s.renewal()
		await(ctx, done, wait)
	}
	return s.index.Load()
}

func (s *Store) fresh() bool { return s.index.Load().stamp == s.stamp() }

func await(ctx context.Context, done <-chan struct{}, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// renewal begins to load the index, unless a load runs, and returns what is closed after it.
func (s *Store) renewal() (done <-chan struct{}, first bool) {
	s.flightMu.Lock()
	defer s.flightMu.Unlock()
	if s.flight != nil {
		return s.flight, false
	}
	renewed := make(chan struct{})
	s.flight = renewed
	go func() {
		if err := s.reload(); err != nil {
			s.log.Error("image index not renewed, the last one stays", "err", err)
		}
		s.flightMu.Lock()
		s.flight = nil
		s.flightMu.Unlock()
		close(renewed)
	}()
	return renewed, true
}

// reload replaces the index with one that holds everything written before the call.
func (s *Store) reload() error {
	s.loading.Lock()
	defer s.loading.Unlock()
	// Taken first: a change during the load makes the new index stale, not wrong.
	st := s.stamp()
	all, err := s.store.MultiList(storage.MultiListOptions{Images: true, Layers: true})
	if err != nil {
		return fmt.Errorf("list images: %w", nameDamage(s.store.GraphRoot(), s.store.GraphDriverName(), err))
	}
	s.index.Store(s.build(st, all, s.index.Load()))
	return nil
}

func (s *Store) build(st stamp, all storage.MultiListResult, old *index) *index {
	ix := &index{
		stamp: st, byID: make(map[string]*Image), byName: make(map[string]string),
		broken: make(map[string]broken), docs: make(map[docKey]document),
	}
	layers := make(map[string]*storage.Layer, len(all.Layers))
	for i := range all.Layers {
		layers[all.Layers[i].ID] = &all.Layers[i]
	}
	counted := make(map[string]bool)
	for i := range all.Images {
		record := &all.Images[i]
		if ix.byID[record.ID] != nil {
			continue // the same image in an additional store
		}
		img, chain, err := s.describe(record, layers, ix, old)
		if err != nil {
			damaged := s.damagedLayers(chain, layers)
			ix.broken[record.ID] = broken{names: record.Names, layers: damaged, reason: err}
			if _, known := old.broken[record.ID]; !known {
				s.log.Warn("image can't be used and is left out", "image", record.ID, "names", record.Names, "err", err)
			}
			continue
		}
		ix.add(img)
		ix.bytes += metadataSize(record)
		for _, id := range chain {
			if !counted[id] {
				counted[id] = true
				ix.bytes += layerSize(layers[id])
			}
		}
	}
	slices.SortFunc(ix.images, func(a, b *Image) int { return strings.Compare(a.ID, b.ID) })
	return ix
}

func (ix *index) add(img *Image) {
	ix.images = append(ix.images, img)
	ix.byID[img.ID] = img
	for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
		// A digest of a manifest list may belong to several images: the first one
		// that really carries the name wins, deterministically by the store's order.
		if _, taken := ix.byName[name]; !taken {
			ix.byName[name] = img.ID
		}
	}
}

// describe makes the Image of a record. chain lists its layers from the top,
// also when an error tells why the image can't be used.
func (s *Store) describe(record *storage.Image, layers map[string]*storage.Layer, ix, old *index) (*Image, []string, error) {
	chain, err := layerChain(record.TopLayer, layers)
	if err != nil {
		return nil, chain, err
	}
	if damaged := s.damagedLayers(chain, layers); len(damaged) > 0 {
		return nil, chain, fmt.Errorf("layer %s is missing on the disk or incomplete", damaged[0])
	}
	doc, err := s.document(record, ix, old)
	if err != nil {
		return nil, chain, err
	}
	img := &Image{ID: record.ID, Annotations: doc.annotations, Config: doc.config, Platform: doc.platform, TopLayer: record.TopLayer, Size: metadataSize(record)}
	for _, id := range chain {
		img.Size += layerSize(layers[id])
	}
	img.RepoTags, img.RepoDigests = repoNames(record)
	img.UID, img.Username = configUser(doc.config.User)
	img.Pinned = s.pinned(img)
	return img, chain, nil
}

func layerChain(top string, layers map[string]*storage.Layer) ([]string, error) {
	var chain []string
	for id := top; id != ""; {
		l := layers[id]
		if l == nil {
			return append(chain, id), fmt.Errorf("layer %s is not known", id)
		}
		if len(chain) > len(layers) {
			return chain, fmt.Errorf("layer %s is its own ancestor", id)
		}
		chain = append(chain, id)
		id = l.Parent
	}
	return chain, nil
}

// damagedLayers returns those of the chain that can't be mounted.
func (s *Store) damagedLayers(chain []string, layers map[string]*storage.Layer) []string {
	var out []string
	for _, id := range chain {
		l := layers[id]
		if l == nil {
			out = append(out, id)
			continue
		}
		if incomplete, _ := l.Flags["incomplete"].(bool); incomplete {
			out = append(out, id)
			continue
		}
		// Only our own store has its layers under our root.
		if s.store.GraphDriverName() == overlayDriver && !l.ReadOnly && s.store.ImageStore() == "" {
			if s.unmountable(l) {
				out = append(out, id)
			}
		}
	}
	return out
}

// unmountable tells of a layer without what the overlay driver needs of it: its content,
// its short name and, unless it is the lowest, the short names of those below.
func (s *Store) unmountable(l *storage.Layer) bool {
	dir := filepath.Join(s.store.GraphRoot(), overlayDriver, l.ID)
	if _, err := os.Lstat(filepath.Join(dir, "diff")); errors.Is(err, os.ErrNotExist) {
		return true
	}
	names := []string{"link"}
	if l.Parent != "" {
		names = append(names, "lower")
	}
	return slices.ContainsFunc(names, func(name string) bool {
		info, err := os.Lstat(filepath.Join(dir, name))
		return errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0
	})
}

// document reads the image's manifest and config, or takes them from the old index.
func (s *Store) document(record *storage.Image, ix, old *index) (document, error) {
	key := docKey{record.ID, record.BigDataDigests[storage.ImageDigestBigDataKey].String()}
	if doc, ok := old.docs[key]; ok {
		ix.docs[key] = doc
		return doc, nil
	}
	blob, err := s.bigData(record, storage.ImageDigestBigDataKey)
	if err != nil {
		return document{}, fmt.Errorf("read manifest: %w", err)
	}
	var doc document
	config, err := doc.readManifest(blob)
	if err != nil {
		return document{}, fmt.Errorf("parse manifest: %w", err)
	}
	if blob, err = s.bigData(record, config); err != nil {
		return document{}, fmt.Errorf("read config: %w", err)
	}
	if err := doc.readConfig(blob); err != nil {
		return document{}, fmt.Errorf("parse config: %w", err)
	}
	ix.docs[key] = doc
	return doc, nil
}

// readManifest takes what a manifest says, and returns the digest of the config.
func (doc *document) readManifest(blob []byte) (config string, err error) {
	parsed, err := manifest.FromBlob(blob, manifest.GuessMIMEType(blob))
	if err != nil {
		return "", err
	}
	if parsed.ConfigInfo().Digest == "" {
		return "", errors.New("it names no config (schema 1 is not served)")
	}
	var annotated struct {
		Annotations map[string]string `json:"annotations"`
	}
	err = json.Unmarshal(blob, &annotated)
	doc.annotations = annotated.Annotations
	return parsed.ConfigInfo().Digest.String(), err
}

func (doc *document) readConfig(blob []byte) error {
	var config imgspec.Image
	err := json.Unmarshal(blob, &config)
	doc.config = config.Config
	doc.platform = Platform{config.OS, config.Architecture, config.Variant}
	return err
}

func (s *Store) bigData(record *storage.Image, key string) ([]byte, error) {
	if size := record.BigDataSizes[key]; size > maxDocument {
		return nil, fmt.Errorf("%d bytes exceed the %d allowed", size, maxDocument)
	}
	data, err := s.store.ImageBigData(record.ID, key)
	if err == nil && len(data) > maxDocument {
		err = fmt.Errorf("%d bytes exceed the %d allowed", len(data), maxDocument)
	}
	return data, err
}

func layerSize(l *storage.Layer) uint64 {
	if l == nil || l.UncompressedSize < 0 {
		return 0 // unknown for some partially pulled layers
	}
	return uint64(l.UncompressedSize)
}

func metadataSize(record *storage.Image) (sum uint64) {
	for _, size := range record.BigDataSizes {
		if size > 0 {
			sum += uint64(size)
		}
	}
	return sum
}

// repoNames derives CRI's repo_tags and repo_digests. Repositories that the image
// once had a tag of keep their digests: what was pulled as name@digest stays so.
func repoNames(record *storage.Image) (tags, digests []string) {
	for i, name := range slices.Concat(record.Names, record.NamesHistory) {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		if _, ok := named.(reference.NamedTagged); ok && i < len(record.Names) {
			tags = append(tags, named.String())
		}
		if _, ok := named.(reference.Canonical); ok {
			digests = append(digests, named.String())
		}
		for _, d := range record.Digests {
			if c, err := reference.WithDigest(reference.TrimNamed(named), d); err == nil {
				digests = append(digests, c.String())
			}
		}
	}
	sort.Strings(tags)
	sort.Strings(digests)
	return slices.Compact(tags), slices.Compact(digests)
}

// configUser splits "user[:group]" of an image config (OCI image-spec, config.User).
func configUser(user string) (*int64, string) {
	user, _, _ = strings.Cut(user, ":")
	// The number above the others is nobody's: (uid_t)-1.
	if n, err := strconv.ParseUint(user, 10, 32); err == nil && n != math.MaxUint32 {
		uid := int64(n)
		return &uid, ""
	}
	return nil, user
}

func (s *Store) pinned(img *Image) bool {
	for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
		if slices.ContainsFunc(s.options.Pinned, func(p string) bool { return matchPin(p, name) }) {
			return true
		}
	}
	return false
}

// matchPin knows the three forms of pinned_images in crio.conf.
func matchPin(pattern, name string) bool {
	prefix, glob := strings.CutSuffix(pattern, "*")
	keyword, contains := strings.CutPrefix(prefix, "*")
	switch {
	case glob && contains:
		return keyword != "" && strings.Contains(name, keyword)
	case glob:
		return prefix != "" && strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

func (ix *index) list() []Image {
	out := make([]Image, len(ix.images))
	for i, img := range ix.images {
		out[i] = *img
	}
	return out
}

// byPrefix finds the one image whose ID begins with prefix.
func (ix *index) byPrefix(prefix string) (string, error) {
	i := sort.Search(len(ix.images), func(i int) bool { return ix.images[i].ID >= prefix })
	if i == len(ix.images) || !strings.HasPrefix(ix.images[i].ID, prefix) {
		return "", nil
	}
	if i+1 < len(ix.images) && strings.HasPrefix(ix.images[i+1].ID, prefix) {
		return "", fmt.Errorf("image ID prefix %q: %w: several images begin with it", prefix, ErrInvalid)
	}
	return ix.images[i].ID, nil
}

// brokenID finds an image that the index leaves out, by full ID or exact name.
func (ix *index) brokenID(ref string) string {
	name := trimTransport(ref)
	for id, b := range ix.broken {
		if id == strings.TrimPrefix(name, "sha256:") || slices.Contains(b.names, name) {
			return id
		}
	}
	return ""
}

// sharingDamage returns the broken image id and the others that are broken by the same layers.
func (ix *index) sharingDamage(id string) []string {
	out := []string{id}
	for other, b := range ix.broken {
		if other != id && slices.ContainsFunc(b.layers, func(l string) bool { return slices.Contains(ix.broken[id].layers, l) }) {
			out = append(out, other)
		}
	}
	return out
}
