package image

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/crio-minimal/crio/test/fixture"
)

// gate is a proxy that holds requests for an image's layer until it is opened.
type gate struct {
	*proxy
	img     *fixture.Image
	ref     string
	options Options
	arrived chan struct{} // one value per held request
	gone    chan struct{} // one value per held request that its client gave up
	open    chan struct{}
}

func newGate(t *testing.T) *gate {
	t.Helper()
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	g := &gate{img: small(t, t.Name()), arrived: make(chan struct{}, 99), gone: make(chan struct{}, 99), open: make(chan struct{})}
	r.Push(t, "a", "v1", g.img)
	g.proxy, g.options = startProxy(t, r, func(_ http.ResponseWriter, req *http.Request, _ int) bool {
		if strings.HasSuffix(req.URL.Path, g.blob()) {
			g.arrived <- struct{}{}
			select {
			case <-g.open:
			case <-req.Context().Done():
				g.gone <- struct{}{}
			}
		}
		return false
	})
	g.ref = g.host + "/a:v1"
	return g
}

func (g *gate) blob() string { return digest.FromBytes(g.img.Layers[0]).String() }

func TestSamePullIsMadeOnce(t *testing.T) {
	g := newGate(t)
	s := open(t, g.options)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			id, err := s.Pull(t.Context(), g.ref, Credential{}, Platform{})
			if err != nil || id != g.img.ID {
				t.Errorf("id %s, err %v", id, err)
			}
		})
	}
	within(t, 20*time.Second, "the download begins", g.arrived)
	for s.waiters() < 8 {
		time.Sleep(time.Millisecond)
	}
	close(g.open)
	wg.Wait()
	if n := g.requests(g.blob()); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	if n := s.waiters(); n != 0 {
		t.Errorf("%d waiters are left", n)
	}
}

func (s *Store) waiters() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pulls {
		n += p.waiters
	}
	return n
}

func TestOtherCredentialIsAnotherPull(t *testing.T) {
	g := newGate(t)
	s := open(t, g.options)
	var wg sync.WaitGroup
	for _, user := range []string{"a", "b"} {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), g.ref, Credential{Username: user, Password: "x"}, Platform{}); err != nil {
				t.Error(err)
			}
		})
	}
	within(t, 20*time.Second, "the first manifest", g.arrived)
	for s.waiters() < 2 {
		time.Sleep(time.Millisecond)
	}
	close(g.open)
	wg.Wait()
	if n := g.requests("/manifests/v1"); n != 2 {
		t.Errorf("%d requests for the manifest, want one per credential", n)
	}
}

func TestWaiterLeavesAndThePullGoesOn(t *testing.T) {
	g := newGate(t)
	s := open(t, g.options)
	first, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		if _, err := s.Pull(first, g.ref, Credential{}, Platform{}); !errors.Is(err, context.Canceled) {
			t.Errorf("the one who left got %v", err)
		}
	}()
	within(t, 20*time.Second, "the download begins", g.arrived)
	got := make(chan struct{})
	go func() {
		defer close(got)
		if id, err := s.Pull(t.Context(), g.ref, Credential{}, Platform{}); err != nil || id != g.img.ID {
			t.Errorf("the one who stayed: id %s, err %v", id, err)
		}
	}()
	for s.waiters() < 2 {
		time.Sleep(time.Millisecond)
	}
	leave()
	within(t, 5*time.Second, "leaving", left)
	close(g.open)
	within(t, 20*time.Second, "the pull", got)
	if n := g.requests(g.blob()); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
}

func TestPullNobodyWaitsForIsCancelled(t *testing.T) {
	g := newGate(t)
	s := open(t, g.options)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-g.arrived
		leave()
	}()
	if _, err := s.Pull(ctx, g.ref, Credential{}, Platform{}); !isCtx(err) {
		t.Errorf("error %v", err)
	}
	within(t, 10*time.Second, "the registry sees the client go", g.gone)
	// The next caller starts anew and succeeds.
	close(g.open)
	pullOK(t, s, g.ref, g.img)
}

func TestCloseEndsPulls(t *testing.T) {
	g := newGate(t)
	s, err := Open(g.options)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := s.Pull(t.Context(), g.ref, Credential{}, Platform{}); err == nil {
			t.Error("the pull succeeded")
		}
	}()
	within(t, 20*time.Second, "the download begins", g.arrived)
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	within(t, 10*time.Second, "the pull ends", ended)
	if _, err := s.Pull(t.Context(), g.ref, Credential{}, Platform{}); err == nil {
		t.Error("a closed store pulls")
	}
}
