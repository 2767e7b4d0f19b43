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
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/singleflight"

	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/record"
)

// judge tells of the records that cannot be read, and returns those that a person has to
// look at. A file without content is what a power cut leaves of a record that was not on
// the disk yet: it is dropped where nothing can run. What the object had on the disk is
// the sweep's.
func (e *Engine) judge(broken []record.Broken) (kept []record.Broken) {
	for _, b := range broken {
		if errors.Is(b.Err, record.ErrEmpty) && e.isDead(b.ID) {
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

// isDead: nothing of the object is on tmpfs, and so nothing can run.
func (e *Engine) isDead(id string) bool {
	for _, dir := range []string{e.Layout.SandboxDir(id), e.Layout.ContainerDir(id)} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
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

// findOrphans passes over those whose record is in quarantine: they may run. With an
// error it is not all of them.
func (e *Engine) findOrphans(l *lister) ([]*orphan, error) {
	// Before the listing: what is removed meanwhile is no orphan.
	known := e.knownIDs()
	found := map[string]*orphan{}
	of := func(id string) *orphan {
		if found[id] == nil {
			found[id] = &orphan{id: id}
		}
		return found[id]
	}
	l.op.stage("list containers")
	containers, failed := list(l, "containers", func() ([]string, error) { return directories(e.Layout.ContainerDirs()) })
	for _, id := range containers {
		of(id).container = true
	}
	l.op.stage("list layers")
	layers, err := list(l, "layers", e.Layers.List)
	failed = errors.Join(failed, err)
	for _, layer := range layers {
		of(pod.LayerOwner(layer)).container = true
	}
	l.op.stage("list sandboxes")
	sandboxes, err := list(l, "sandboxes", func() ([]string, error) { return directories(e.Layout.SandboxDirs()) })
	failed = errors.Join(failed, err)
	for _, id := range sandboxes {
		of(id).sandbox = true
	}
	l.op.stage("list networks")
	attached, err := list(l, "networks", e.Networks.Attached)
	failed = errors.Join(failed, err)
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
	maps.DeleteFunc(found, func(id string, _ *orphan) bool { return known[id] })
	for id := range found {
		if _, ok := e.orphans.Load(id); ok {
			// Found by the lists before, which may have had less of it to tell.
			failed = errors.Join(failed, fmt.Errorf("orphan %s has to go first", id))
			delete(found, id)
			continue
		}
		e.Log.Warn("sweep: what has no record is removed", "id", id)
	}
	return slices.Collect(maps.Values(found)), failed
}

// listBudget bounds the wait for one list.
const listBudget = 10 * time.Second

// lister asks for lists, each of which may never come. One that is late is waited for when
// it is asked for again, lest each try leaves a goroutine behind.
type lister struct {
	ctx   context.Context
	op    *operation
	calls singleflight.Group
}

// list is the list of one kind, or an error that tells what is to be done about it.
func list[T any](l *lister, kind string, read func() ([]T, error)) (all []T, err error) {
	ctx, cancel := context.WithTimeout(l.ctx, listBudget)
	defer cancel()
	select {
	case r := <-l.calls.DoChan(kind, func() (any, error) { return read() }):
		all, _ = r.Val.([]T)
		err = r.Err
	case <-ctx.Done():
		err = fmt.Errorf("no answer: %w", ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w: those without a record stay until it can be read: mend its file system, and it is read again", kind, err)
	}
	return all, nil
}

// removeOrphan tries until it succeeds; it returns after the first try, or when ctx ends.
func (e *Engine) removeOrphan(ctx context.Context, o *orphan) {
	_, err := e.run(ctx, opKey{"remove orphan", o.id}, removeBudget, func(ctx context.Context, op *operation) (string, error) {
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
	layers, err := e.Layers.List()
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

// directories are those of objects in path.
func directories(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, entry := range entries {
		if pod.ValidID(entry.Name()) {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}
