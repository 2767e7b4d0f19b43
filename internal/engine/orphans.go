package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/record"
)

// judge tells of the records that cannot be read, and returns those that a person has to
// look at. A file without content is what a power cut leaves of a record that was not on
// the disk yet: it is dropped when nothing of its object is on tmpfs, and so nothing can
// run. What the object had on the disk is the sweep's.
func (e *Engine) judge(broken []record.Broken) (kept []record.Broken) {
	for _, b := range broken {
		if errors.Is(b.Err, record.ErrEmpty) && !e.hasDirectory(b.ID) {
			err := os.Remove(b.Path)
			e.Log.Warn("a power cut left a record without content; nothing runs of it, and it is dropped", "path", b.Path, "err", err)
			if err == nil {
				continue
			}
		}
		e.Log.Error("a record cannot be read and was set aside; what it stands for is left alone", "path", b.Path, "err", b.Err)
		kept = append(kept, b)
	}
	return kept
}

func (e *Engine) hasDirectory(id string) bool {
	for _, dir := range []string{e.Layout.SandboxDir(id), e.Layout.ContainerDir(id)} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// orphan is what has a name of ours but no record, of one ID: processes, directories,
// layers and network attachments.
type orphan struct {
	attempts
	id string
	// container: it has the directory or a layer of a container, or of a pod's pause.
	container bool
	networks  []network.Attached
	// sandbox: it has the directory of a sandbox.
	sandbox bool
}

// removeOrphans removes those that can be seen, and looks again until all can be: a store
// that is not open hides its layers.
func (e *Engine) removeOrphans(ctx context.Context) {
	found, err := e.findOrphans(ctx)
	if ctx.Err() != nil {
		return
	}
	e.search.note(err, func() { e.removeOrphans(e.ctx) })
	sideBySide(ctx, found, e.removeOrphan)
}

// findOrphans passes over those whose record is in quarantine, for they may run, and those
// that are being removed. An error tells what it could not see.
func (e *Engine) findOrphans(ctx context.Context) ([]*orphan, error) {
	// Before the listing: what is removed meanwhile is no orphan.
	known := e.knownIDs()
	found := map[string]*orphan{}
	of := func(id string) *orphan {
		if found[id] == nil {
			found[id] = &orphan{id: id}
		}
		return found[id]
	}
	for _, id := range e.directories(e.Layout.ContainerDirs()) {
		of(id).container = true
	}
	layers, hidden := e.Layers.List(ctx)
	for _, layer := range layers {
		of(pod.LayerOwner(layer)).container = true
	}
	for _, id := range e.directories(e.Layout.SandboxDirs()) {
		of(id).sandbox = true
	}
	attached, err := e.Networks.Attached()
	if hidden = errors.Join(hidden, err); hidden != nil {
		e.Log.Warn("sweep: not all can be seen, looking again later", "err", hidden)
	}
	for _, a := range attached {
		// Others may attach their own through the same cache: the namespace tells whose it is.
		if a.Netns == e.Layout.Namespace(a.ID, "net") {
			o := of(a.ID)
			o.networks = append(o.networks, a)
		}
	}
	// And after it: an object that is made meanwhile is in the index before it has a
	// directory, a layer or a network.
	maps.Copy(known, e.knownIDs())
	maps.DeleteFunc(found, func(id string, _ *orphan) bool {
		_, removing := e.orphans.Load(id)
		return removing || known[id]
	})
	for id := range found {
		e.Log.Warn("sweep: what has no record is removed", "id", id)
	}
	return slices.Collect(maps.Values(found)), hidden
}

// removeOrphan tries until it succeeds; it returns after the first try, or when ctx ends.
func (e *Engine) removeOrphan(ctx context.Context, o *orphan) {
	_, err := e.run(ctx, opKey{"remove orphan", o.id}, removeBudget, func(ctx context.Context, op *operation) (string, error) {
		e.orphans.Store(o.id, o)
		err := e.tearDownOrphan(ctx, op, o)
		o.note(err, func() { e.removeOrphan(e.ctx, o) })
		if err == nil {
			e.orphans.Delete(o.id)
		}
		return o.id, err
	})
	e.unwanted(err, o.id)
}

// tearDownOrphan is idempotent.
func (e *Engine) tearDownOrphan(ctx context.Context, op *operation, o *orphan) error {
	if o.container {
		if err := e.tearDownContainer(ctx, op, e.orphanContainer(o.id)); err != nil {
			return err
		}
		op.stage("layers")
		if err := e.removeLayersOf(ctx, o.id); err != nil {
			return fmt.Errorf("layers of %s: %w", o.id, err)
		}
	}
	for _, a := range o.networks {
		op.stage("cni del")
		if err := e.detach(ctx, a); err != nil {
			return fmt.Errorf("cni del %s: %w", o.id, err)
		}
	}
	if !o.sandbox {
		return nil
	}
	op.stage("namespaces")
	if err := netns.Remove(ctx, e.Layout.NamespaceDir(o.id)); err != nil {
		return fmt.Errorf("namespaces %s: %w", o.id, err)
	}
	op.stage("files")
	return e.tearDownSandbox(pod.Sandbox{ID: o.id})
}

// removeLayersOf removes those that the store has now, for it may not have been open when
// the orphan was found.
func (e *Engine) removeLayersOf(ctx context.Context, id string) error {
	layers, err := e.Layers.List(ctx)
	for _, layer := range layers {
		if pod.LayerOwner(layer) == id {
			err = errors.Join(err, e.Layers.Remove(ctx, layer))
		}
	}
	return err
}

func (e *Engine) detach(ctx context.Context, a network.Attached) error {
	if !netns.Pinned(a.Netns) {
		a.Netns = ""
	}
	ctx, cancel := context.WithTimeout(ctx, networkBudget)
	defer cancel()
	return e.Networks.Detach(ctx, a)
}

// orphanContainer is a container without a record as far as others tell of it: its bundle
// names its cgroup, and the runtime that made it has a directory of it.
func (e *Engine) orphanContainer(id string) pod.Container {
	c := pod.Container{ID: id}
	maker := "" // the default one, when no runtime knows it
	for name, h := range e.Handlers {
		if known, err := h.Runtime.Knows(id); err == nil && known {
			maker = name
		}
	}
	if h, err := e.handler(maker); err == nil {
		c.Handler = h
	}
	var spec specs.Spec
	data, err := os.ReadFile(filepath.Join(e.Layout.ContainerDir(id), "config.json"))
	if err == nil && json.Unmarshal(data, &spec) == nil && spec.Linux != nil {
		// With systemd it is "slice:crio:id".
		slice, _, systemd := strings.Cut(spec.Linux.CgroupsPath, ":")
		if c.CgroupParent = slice; !systemd {
			c.CgroupParent = filepath.Dir(spec.Linux.CgroupsPath)
		}
	}
	return c
}

// knownIDs are those of records, in the index or in the quarantine.
func (e *Engine) knownIDs() map[string]bool {
	known := map[string]bool{}
	for _, s := range e.index.sandboxes() {
		known[s.snapshot().ID] = true
	}
	for _, c := range e.index.containers() {
		known[c.snapshot().ID] = true
	}
	for _, b := range e.quarantined {
		known[b.ID] = true
	}
	return known
}

func (e *Engine) directories(path string) []string {
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.Log.Warn("sweep", "path", path, "err", err)
	}
	var ids []string
	for _, entry := range entries {
		if pod.ValidID(entry.Name()) {
			ids = append(ids, entry.Name())
		}
	}
	return ids
}
