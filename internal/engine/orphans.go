package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crio-minimal/crio/internal/netns"
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

// sweepOrphans removes what has a name of ours but no record: processes, directories,
// layers and network attachments. One whose record is in quarantine is left alone: it
// may run.
func (e *Engine) sweepOrphans(ctx context.Context) {
	layers, err := e.Layers.List(ctx)
	if err != nil {
		e.Log.Warn("sweep of layers", "err", err)
	}
	orphans := map[string][]string{} // layers by the container they belong to
	for _, id := range e.directories(e.Layout.ContainerDirs()) {
		orphans[id] = nil
	}
	for _, layer := range layers {
		id := pod.LayerOwner(layer)
		orphans[id] = append(orphans[id], layer)
	}
	boxes := e.directories(e.Layout.SandboxDirs())
	attached, err := e.Networks.Attached()
	if err != nil {
		e.Log.Warn("sweep of networks", "err", err)
	}
	// After the listing: an object that is made meanwhile is in the index before it
	// has a directory, a layer or a network, and so cannot look like an orphan.
	known := e.knownIDs()
	for id, layers := range orphans {
		if known[id] {
			continue
		}
		e.Log.Warn("sweep: a container without a record", "id", id)
		err := e.tearDownContainer(ctx, idleOperation(), e.orphan(id))
		for _, layer := range layers {
			err = errors.Join(err, e.Layers.Remove(ctx, layer))
		}
		e.unwanted(err, id)
	}
	for _, a := range attached {
		// Others may attach their own through the same cache: the namespace tells whose it is.
		if known[a.ID] || a.Netns != e.Layout.Namespace(a.ID, "net") {
			continue
		}
		e.Log.Warn("sweep: a pod without a record has an address", "id", a.ID)
		if !netns.Pinned(a.Netns) {
			a.Netns = ""
		}
		del, cancel := context.WithTimeout(ctx, networkBudget)
		e.unwanted(e.Networks.Detach(del, a), a.ID)
		cancel()
	}
	for _, id := range boxes {
		if known[id] {
			continue
		}
		e.Log.Warn("sweep: a sandbox without a record", "id", id)
		e.unwanted(errors.Join(netns.Remove(ctx, e.Layout.NamespaceDir(id)), e.tearDownSandbox(pod.Sandbox{ID: id})), id)
	}
}

// orphan is a container without a record as far as others tell of it: its bundle names
// its cgroup, and the runtime that made it has a directory of it.
func (e *Engine) orphan(id string) pod.Container {
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
