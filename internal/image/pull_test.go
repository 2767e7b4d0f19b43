package image

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

func TestPullResultsOfPlainAndTLSRegistries(t *testing.T) {
	const password = "s3cret-password"
	img := fixture.BusyboxImage(t, "true")
	plain := fixture.StartRegistry(t, fixture.RegistryOptions{})
	secured := fixture.StartRegistry(t, fixture.RegistryOptions{TLS: true, Username: "user", Password: password})
	plainRef, securedRef := plain.Push(t, "a/b", "v1", img), secured.Push(t, "a/b", "v1", img)
	good := Credential{Username: "user", Password: password}
	elsewhere := good
	elsewhere.ServerAddress = "https://registry.example/v2/"
	here := good
	here.ServerAddress = "https://" + secured.Host + "/v1/"

	for _, c := range []struct {
		name string
		r    *fixture.Registry
		ref  string
		cred Credential
		want error
	}{
		{"plain", plain, plainRef, Credential{}, nil},
		{"with transport", plain, "docker://" + plainRef, Credential{}, nil},
		{"by digest", plain, plain.Host + "/a/b@" + img.Digest, Credential{}, nil},
		{"by tag and digest", plain, plainRef + "@" + img.Digest, Credential{}, nil},
		{"TLS and password", secured, securedRef, good, nil},
		{"TLS and password for this server", secured, securedRef, here, nil},
		{"password for another server", secured, securedRef, elsewhere, ErrUnauthorized},
		{"wrong password", secured, securedRef, Credential{Username: "user", Password: "wrong-" + password}, ErrUnauthorized},
		{"no password", secured, securedRef, Credential{}, ErrUnauthorized},
		{"unknown tag", plain, plain.Host + "/a/b:v2", Credential{}, ErrNotFound},
		{"unknown repository", plain, plain.Host + "/nothing:v1", Credential{}, ErrNotFound},
		{"malformed", plain, "UPPER/case:tag:tag", Credential{}, ErrInvalid},
		{"another transport", plain, "oci:///tmp", Credential{}, ErrInvalid},
		{"short name without search registries", plain, "busybox", Credential{}, ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, options(t, c.r))
			id, err := s.Pull(t.Context(), c.ref, c.cred, Platform{})
			if c.want != nil {
				if !errors.Is(err, c.want) {
					t.Fatalf("error %v, want %v", err, c.want)
				}
				if strings.Contains(err.Error(), password) {
					t.Errorf("the error tells the password: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if id != img.ID || wantImage(t, s, c.ref, true).ID != id {
				t.Errorf("id %s, Status %s, want %s", id, wantImage(t, s, c.ref, true).ID, img.ID)
			}
			left, err := os.ReadDir(s.journalDir())
			if err != nil || len(left) != 0 {
				t.Errorf("notes of the pull stay behind: %v, %v", left, err)
			}
		})
	}
}

// The self-test serves its image this way, and the node's owner has configured nothing.
func TestPullFromLoopbackWithoutTLSNeedsNoConfiguration(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "content")
	ref := r.Push(t, "a/b", "v1", img)
	o := options(t, r)
	o.RegistriesConf = filepath.Join(t.TempDir(), "registries.conf")
	write := func(text string) {
		if err := os.WriteFile(o.RegistriesConf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	pullOK(t, open(t, o), ref, img)

	o.Root, o.RunRoot = o.Root+"2", o.RunRoot+"2"
	write(fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = false\n", r.Host))
	if _, err := open(t, o).Pull(t.Context(), ref, Credential{}, Platform{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("pull from a registry configured as secure: %v, want %v", err, ErrUnavailable)
	}
}

func TestPullOfRegistryThatIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	_ = l.Close()
	s := open(t, options(t, nil))
	if _, err := s.Pull(t.Context(), host+"/a:v1", Credential{}, Platform{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v, want %v", err, ErrUnavailable)
	}
}

func TestPolicyRejects(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	ref := r.Push(t, "a", "v1", small(t, "x"))
	o := options(t, r)
	o.SignaturePolicy = filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(o.SignaturePolicy, []byte(`{"default": [{"type": "reject"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, o).Pull(t.Context(), ref, Credential{}, Platform{}); !errors.Is(err, ErrPolicy) {
		t.Errorf("error %v, want %v", err, ErrPolicy)
	}
}

func TestMirrorIsAsked(t *testing.T) {
	img := small(t, "x")
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	r.Push(t, "lib/a", "v1", img)
	o := options(t, r)
	o.RegistriesConf = filepath.Join(t.TempDir(), "registries.conf")
	conf := fmt.Sprintf("unqualified-search-registries = [\"registry.invalid\"]\nshort-name-mode = \"permissive\"\n[[registry]]\nlocation = \"registry.invalid\"\n[[registry.mirror]]\nlocation = \"%s/lib\"\ninsecure = true\n", r.Host)
	if err := os.WriteFile(o.RegistriesConf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, o)
	pullOK(t, s, "a:v1", img) // a short name, through the mirror
	got := wantImage(t, s, "a:v1", true)
	if len(got.RepoTags) != 1 || got.RepoTags[0] != "registry.invalid/a:v1" {
		t.Errorf("tags %v: an image keeps its logical name, not the mirror's", got.RepoTags)
	}
}

func TestManifestsThatAreRefused(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "x")
	r.Push(t, "a", "v1", img)
	var ambiguous []byte
	ambiguous = append(ambiguous, `{"manifests":[],`...)
	ambiguous = append(ambiguous, img.Manifest[1:]...)
	huge := append([]byte(nil), img.Manifest[:len(img.Manifest)-1]...)
	huge = append(huge, `,"annotations":{"a":"`+strings.Repeat("x", maxDocument)+`"}}`...)
	for name, manifest := range map[string][]byte{"both manifests and layers": ambiguous, "huge": huge} {
		t.Run(name, func(t *testing.T) {
			p, o := startProxy(t, r, func(w http.ResponseWriter, req *http.Request, _ int) bool {
				if !strings.Contains(req.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", imgspec.MediaTypeImageManifest)
				_, _ = w.Write(manifest)
				return true
			})
			if id, err := open(t, o).Pull(t.Context(), p.host+"/a:v1", Credential{}, Platform{}); err == nil {
				t.Errorf("pulled as %s", id)
			}
		})
	}
}

func TestIndexOfPlatformsIsResolved(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := fixture.BusyboxImage(t, "true")
	r.Push(t, "multi", "one", img)
	other := digest.FromBytes(img.Manifest)
	list := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}},{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"arm64"}}]}`,
		imgspec.MediaTypeImageIndex, imgspec.MediaTypeImageManifest, other, len(img.Manifest), imgspec.MediaTypeImageManifest, other, len(img.Manifest))
	r.PushManifest(t, "multi", "all", imgspec.MediaTypeImageIndex, []byte(list))
	s := open(t, options(t, r))
	pullOK(t, s, r.Host+"/multi:all", img)
	for _, d := range []string{img.Digest, digest.FromString(list).String()} {
		wantImage(t, s, r.Host+"/multi@"+d, true)
	}
}

func TestTransientErrorsAreRetriedOthersNot(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "x")
	r.Push(t, "a", "v1", img)
	for _, c := range []struct {
		name     string
		status   int
		failures int
		tries    int
		want     error
	}{
		{"twice 503", http.StatusServiceUnavailable, 2, 3, nil},
		{"always 500", http.StatusInternalServerError, 99, 3, ErrUnavailable},
		{"once too many requests", http.StatusTooManyRequests, 1, 2, nil},
		{"not found", http.StatusNotFound, 99, 1, ErrNotFound},
		{"forbidden", http.StatusForbidden, 99, 1, ErrUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, o := startProxy(t, r, func(w http.ResponseWriter, req *http.Request, n int) bool {
				if !strings.Contains(req.URL.Path, "/manifests/") || n > c.failures {
					return false
				}
				http.Error(w, "no", c.status)
				return true
			})
			_, err := open(t, o).Pull(t.Context(), p.host+"/a:v1", Credential{}, Platform{})
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if n := p.requests("/manifests/v1"); n != c.tries {
				t.Errorf("%d tries, want %d: %v", n, c.tries, err)
			}
		})
	}
}

// cut sends the first bytes of a blob and then ends or holds the connection.
func cut(t *testing.T, w http.ResponseWriter, blob []byte, bytes int, hold <-chan struct{}) {
	t.Helper()
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
	_, _ = w.Write(blob[:bytes])
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	if hold != nil {
		<-hold
	}
	panic(http.ErrAbortHandler)
}

func TestCutDownloadIsResumed(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{{{Path: "big", Data: noise(6<<20, 1)}}}})
	r.Push(t, "a", "v1", img)
	blob := digest.FromBytes(img.Layers[0]).String()
	p, o := startProxy(t, r, func(w http.ResponseWriter, req *http.Request, n int) bool {
		if !strings.HasSuffix(req.URL.Path, blob) || n > 1 {
			return false
		}
		cut(t, w, img.Layers[0], 3<<20, nil)
		return true
	})
	pullOK(t, open(t, o), p.host+"/a:v1", img)
	if p.requests(blob+" bytes=") != 1 {
		t.Errorf("no request for the rest only: %v", p.seen)
	}
}

// A registry that stops in the middle of a blob, or does not even begin to answer.
func TestStalledDownloadEnds(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{{{Path: "big", Data: noise(1<<20, 2)}}}})
	r.Push(t, "a", "v1", img)
	blob := digest.FromBytes(img.Layers[0]).String()
	for name, stall := range map[string]struct {
		of  string
		how func(http.ResponseWriter, <-chan struct{})
	}{
		"in a blob":             {blob, func(w http.ResponseWriter, end <-chan struct{}) { cut(t, w, img.Layers[0], 1000, end) }},
		"before a blob":         {blob, func(_ http.ResponseWriter, end <-chan struct{}) { <-end }},
		"before the manifest":   {"/manifests/v1", func(_ http.ResponseWriter, end <-chan struct{}) { <-end }},
		"before the first word": {"/v2/", func(_ http.ResponseWriter, end <-chan struct{}) { <-end }},
	} {
		t.Run(name, func(t *testing.T) {
			p, o := startProxy(t, r, func(w http.ResponseWriter, req *http.Request, _ int) bool {
				if !strings.HasSuffix(req.URL.Path, stall.of) {
					return false
				}
				stall.how(w, req.Context().Done())
				return true
			})
			o.StallTimeout = 700 * time.Millisecond
			s := open(t, o)
			begun := time.Now()
			_, err := s.Pull(t.Context(), p.host+"/a:v1", Credential{}, Platform{})
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no byte moved") {
				t.Errorf("error %v", err)
			}
			if took := time.Since(begun); took < o.StallTimeout || took > 20*o.StallTimeout {
				t.Errorf("ended after %s with a limit of %s", took, o.StallTimeout)
			}
		})
	}
}

// A registry sends its clients to signed URLs, which are as good as a password for a while.
func TestSignedURLIsNotTold(t *testing.T) {
	const canary = "canary-of-the-signature"
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "x")
	r.Push(t, "a", "v1", img)
	p, o := startProxy(t, r, func(w http.ResponseWriter, req *http.Request, _ int) bool {
		switch {
		case strings.Contains(req.URL.Path, "/blobs/"):
			http.Redirect(w, req, "/signed?X-Amz-Signature="+canary, http.StatusTemporaryRedirect)
		case req.URL.Path == "/signed":
			panic(http.ErrAbortHandler)
		default:
			return false
		}
		return true
	})
	var log logBuffer
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	_, err := open(t, o).Pull(t.Context(), p.host+"/a:v1", Credential{}, Platform{})
	if p.requests("/signed") == 0 || err == nil || !strings.Contains(err.Error(), "/signed") {
		t.Fatalf("it did not fail at the URL: %v", err)
	}
	if strings.Contains(err.Error(), canary) || log.count(canary) > 0 || log.count("/signed") == 0 {
		t.Errorf("the log has the signature %d times, and the error is %v", log.count(canary), err)
	}
}

// A registry that is slow, but never stops, must not be taken for a stalled one.
func TestSlowDownloadIsNotStalled(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{{{Path: "big", Data: noise(200<<10, 3)}}}})
	r.Push(t, "a", "v1", img)
	blob := digest.FromBytes(img.Layers[0]).String()
	p, o := startProxy(t, r, func(w http.ResponseWriter, req *http.Request, _ int) bool {
		if !strings.HasSuffix(req.URL.Path, blob) {
			return false
		}
		data := img.Layers[0]
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		for len(data) > 0 {
			n := min(10<<10, len(data))
			_, _ = w.Write(data[:n])
			w.(http.Flusher).Flush()
			data = data[n:]
			time.Sleep(200 * time.Millisecond) // the slowness under test
		}
		return true
	})
	o.StallTimeout = 3 * time.Second // a busy machine stops us for a second, too
	begun := time.Now()
	pullOK(t, open(t, o), p.host+"/a:v1", img)
	if time.Since(begun) < o.StallTimeout {
		t.Errorf("pulled within the limit of %s: the test proves nothing", o.StallTimeout)
	}
}
