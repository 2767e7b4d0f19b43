package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crio-minimal/crio/test/fixture"
)

func TestMain(m *testing.M) {
	if Reexec() {
		return
	}
	// Children unpack layers; with the race detector each would wait for a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

// options are those of a store of its own below the test's directory.
func options(t *testing.T, r *fixture.Registry) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{Root: dir + "/root", RunRoot: dir + "/run", Driver: "overlay", TmpDir: dir, RegistriesConfDir: dir + "/none", GlobalAuthFile: dir + "/auth.json"}
	if r != nil {
		o.RegistriesConf, o.SignaturePolicy, o.CertsDir = r.RegistriesConf, r.PolicyJSON, r.CertsDir
	}
	return o
}

func open(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// pullOK pulls and checks that the ID is the image's.
func pullOK(t *testing.T, s *Store, ref string, img *fixture.Image) {
	t.Helper()
	id, err := s.Pull(t.Context(), ref, Credential{}, Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if id != img.ID {
		t.Fatalf("id of %s is %s, want %s", ref, id, img.ID)
	}
}

func wantImage(t *testing.T, s *Store, ref string, present bool) Image {
	t.Helper()
	img, ok, err := s.Status(t.Context(), ref)
	if err != nil || ok != present {
		t.Fatalf("Status(%s): present %t, err %v; want present %t", ref, ok, err, present)
	}
	return img
}

// small is an image of one layer with a file of the given content.
func small(t *testing.T, content string) *fixture.Image {
	t.Helper()
	return fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{{{Path: "file", Data: []byte(content)}}}})
}

// noise is data that does not compress, the same for the same seed.
func noise(size int, seed uint64) []byte {
	out := make([]byte, size)
	for i := range out {
		seed = seed*6364136223846793005 + 1442695040888963407
		out[i] = byte(seed >> 56)
	}
	return out
}

// proxy stands between the store and a registry and lets a test interfere.
type proxy struct {
	host string
	mu   sync.Mutex
	seen []string // "METHOD path range"
	// interfere answers a request itself and returns true; n counts requests of the same path from 1.
	interfere func(w http.ResponseWriter, r *http.Request, n int) bool
}

// startProxy returns the proxy and options for a store that pulls through it.
func startProxy(t *testing.T, r *fixture.Registry, interfere func(http.ResponseWriter, *http.Request, int) bool) (*proxy, Options) {
	t.Helper()
	p := &proxy{interfere: interfere}
	forward := httputil.NewSingleHostReverseProxy(r.URL)
	forward.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		line := strings.TrimSpace(req.Method + " " + req.URL.Path)
		p.mu.Lock()
		p.seen = append(p.seen, strings.TrimSpace(line+" "+req.Header.Get("Range")))
		n := 0
		for _, s := range p.seen {
			if strings.HasPrefix(s, line) {
				n++
			}
		}
		p.mu.Unlock()
		if p.interfere == nil || !p.interfere(w, req, n) {
			forward.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(server.Close)
	p.host = strings.TrimPrefix(server.URL, "http://")
	o := options(t, r)
	o.RegistriesConf = filepath.Join(t.TempDir(), "registries.conf")
	conf := fmt.Sprintf("unqualified-search-registries = []\n[[registry]]\nlocation = %q\ninsecure = true\n", p.host)
	if err := os.WriteFile(o.RegistriesConf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return p, o
}

// requests counts those whose path contains part.
func (p *proxy) requests(part string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, s := range p.seen {
		if strings.HasPrefix(s, "GET") && strings.Contains(s, part) {
			n++
		}
	}
	return n
}

// logBuffer is a log that tests read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), part)
}

func isCtx(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func within(t *testing.T, d time.Duration, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: not within %s", what, d)
	}
}

// nothingHeld is the release of who has no containers.
func nothingHeld(context.Context, string) error { return nil }
