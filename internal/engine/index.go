package engine

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
)

// index finds objects by ID and by key. Its lock is the only RWMutex of the engine
// and held for map operations alone.
//
// A key points to the newest object that claims it: one that is being removed does
// not keep its key from a new one.
type index struct {
	mu             sync.RWMutex
	sandboxByID    map[string]*sandbox
	sandboxByKey   map[pod.SandboxKey]*sandbox
	containerByID  map[string]*container
	containerByKey map[pod.ContainerKey]*container
}

func (x *index) init() {
	x.sandboxByID = map[string]*sandbox{}
	x.sandboxByKey = map[pod.SandboxKey]*sandbox{}
	x.containerByID = map[string]*container{}
	x.containerByKey = map[pod.ContainerKey]*container{}
}

func (x *index) addSandbox(s *sandbox, recovered bool) {
	v := s.snapshot()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sandboxByID[v.ID] = s
	// What an earlier daemon left half-made is to go, and must not take the key of another.
	if v.Phase != pod.SandboxRemoving && !(recovered && v.Phase == pod.SandboxCreating) {
		x.sandboxByKey[pod.KeyOfSandbox(v.Config.GetMetadata())] = s
	}
}

// addContainer refuses a container whose sandbox is not, or no longer, ready. The
// check and the insertion are one step: whoever stops or removes a sandbox first
// changes its phase and then lists its containers, and so misses none.
func (x *index) addContainer(c *container, recovered bool) error {
	v := c.snapshot()
	x.mu.Lock()
	defer x.mu.Unlock()
	s, ok := x.sandboxByID[v.SandboxID]
	switch {
	case recovered:
	case !ok:
		return fault.New(fault.NotFound, "sandbox %s does not exist", v.SandboxID)
	case s.snapshot().Phase != pod.SandboxReady:
		return fault.New(fault.FailedPrecondition, "sandbox %s is not ready", v.SandboxID)
	}
	x.containerByID[v.ID] = c
	if v.Phase != pod.ContainerRemoving && !(recovered && v.Phase == pod.ContainerCreating) {
		x.containerByKey[pod.KeyOfContainer(v.SandboxID, v.Config.GetMetadata())] = c
	}
	return nil
}

func (x *index) dropSandbox(s *sandbox) {
	v := s.snapshot()
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.sandboxByID, v.ID)
	if key := pod.KeyOfSandbox(v.Config.GetMetadata()); x.sandboxByKey[key] == s {
		delete(x.sandboxByKey, key)
	}
}

func (x *index) dropContainer(c *container) {
	v := c.snapshot()
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.containerByID, v.ID)
	if key := pod.KeyOfContainer(v.SandboxID, v.Config.GetMetadata()); x.containerByKey[key] == c {
		delete(x.containerByKey, key)
	}
}

func (x *index) sandboxes() []*sandbox {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Values(x.sandboxByID))
}

func (x *index) containers() []*container {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Values(x.containerByID))
}

func (x *index) containersOf(sandboxID string) []*container {
	return slices.DeleteFunc(x.containers(), func(c *container) bool { return c.value.Load().SandboxID != sandboxID })
}

func (x *index) sandboxWithKey(key pod.SandboxKey) (*sandbox, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s, ok := x.sandboxByKey[key]
	return s, ok
}

func (x *index) containerWithKey(key pod.ContainerKey) (*container, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	c, ok := x.containerByKey[key]
	return c, ok
}

// sandbox finds by ID or by a prefix of it that no other ID shares.
func (x *index) sandbox(id string) (*sandbox, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.sandboxByID, "sandbox", id)
}

// container is the same for containers.
func (x *index) container(id string) (*container, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.containerByID, "container", id)
}

func find[T any](byID map[string]T, kind, id string) (found T, err error) {
	if id == "" {
		return found, fault.New(fault.InvalidArgument, "%s id is empty", kind)
	}
	if exact, ok := byID[id]; ok {
		return exact, nil
	}
	n := 0
	for candidate, object := range byID {
		if strings.HasPrefix(candidate, id) {
			found = object
			n++
		}
	}
	switch n {
	case 0:
		return found, fault.New(fault.NotFound, "%s %s does not exist", kind, id)
	case 1:
		return found, nil
	}
	return found, fault.New(fault.InvalidArgument, "%s id %s is the beginning of %d ids", kind, id, n)
}
