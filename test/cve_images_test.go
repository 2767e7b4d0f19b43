package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// victim is a directory of the node's that no image may reach.
type victim struct {
	dir    string
	before map[string]string
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{dir: t.TempDir()}
	for _, name := range []string{"passwd", "group", "hostname", "hosts", "resolv.conf", "mtab", "null", "sub/file"} {
		path := filepath.Join(v.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("secret:x:0:0::/secret:\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v.before = v.look(t)
	return v
}

// look is everything below the directory, with modes, sizes and times.
func (v *victim) look(t *testing.T) map[string]string {
	t.Helper()
	seen := map[string]string{}
	err := filepath.WalkDir(v.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			seen[path] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

func (v *victim) unharmed(t *testing.T) {
	t.Helper()
	if after := v.look(t); !maps.Equal(v.before, after) {
		t.Errorf("the node's directory was changed:\n%v\n%v", v.before, after)
	}
}

// S5: CVE-2024-5154, CVE-2022-23648, CVE-2026-41579. Where an image has links for the
// directories that runtimes write to, nothing outside is written, nor shown.
func TestLinksOfAnImageDoNotLeadOut(t *testing.T) {
	for _, handler := range conformHandlers {
		t.Run(handler, func(t *testing.T) {
			r := fixture.StartRegistry(t, fixture.RegistryOptions{})
			o := conformOptions(t, handler)
			o.registry = r
			n, _ := readyNode(t, o)
			v := newVictim(t)
			pod := n.podConfig()
			box := n.runPod(pod)
			var images []string
			defer func() { n.removeAll(); n.dropImages(images...) }()
			for i, c := range []struct {
				link   string
				config imgspec.ImageConfig
			}{
				{"etc", imgspec.ImageConfig{}}, {"etc/mtab", imgspec.ImageConfig{}}, {"etc/hosts", imgspec.ImageConfig{}},
				{"etc/passwd", imgspec.ImageConfig{User: "secret"}}, {"etc/group", imgspec.ImageConfig{User: "root:secret"}},
				{"dev", imgspec.ImageConfig{}}, {"dev/null", imgspec.ImageConfig{}}, {"proc", imgspec.ImageConfig{}},
				{"sys", imgspec.ImageConfig{}}, {"run", imgspec.ImageConfig{}},
				{"vol", imgspec.ImageConfig{Volumes: map[string]struct{}{"/vol": {}}}},
				{"vol", imgspec.ImageConfig{Volumes: map[string]struct{}{"/vol/new": {}, "/vol/sub": {}}}},
				{"work", imgspec.ImageConfig{WorkingDir: "/work/sub/new"}},
			} {
				target := v.dir
				if i%2 == 1 {
					target = strings.Repeat("../", 20) + v.dir[1:]
				}
				if strings.Contains(c.link, "/") {
					target = filepath.Join(target, filepath.Base(c.link))
				}
				c.config.Env = []string{"PATH=/bin"}
				// The last layer takes the directory of the first away.
				files := []fixture.File{{Path: c.link, Link: target}, {Path: "mark", Data: fmt.Append(nil, i)}}
				img := fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{fixture.Busybox(t), files}, Config: c.config})
				images = append(images, n.pull(r.Push(t, "links", fmt.Sprintf("v%d", i), img)))
				for _, readonly := range []bool{false, true} {
					config := n.containerConfig(img.ID, shell("cat /etc/passwd /etc/group /vol/* /vol/sub/* /run/* /dev/null; touch /vol/x /etc/x /run/x /dev/x")...)
					config.Linux.SecurityContext.ReadonlyRootfs = readonly
					n.tryContainer(box, pod, config)
					v.unharmed(t)
					if log, err := os.ReadFile(logOf(pod, config)); err == nil && bytes.Contains(log, []byte("secret")) {
						t.Errorf("the node's file is shown: %s", log)
					}
					if t.Failed() {
						t.Fatalf("link %s to %s, %+v", c.link, target, c.config)
					}
				}
			}
		})
	}
}

// tryContainer runs a container to its end, or not at all: that is the image's affair.
func (n *node) tryContainer(box string, pod *cri.PodSandboxConfig, config *cri.ContainerConfig) {
	n.t.Helper()
	a, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	if err != nil {
		n.t.Logf("refused: %v", err)
		return
	}
	if _, err := n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: a.GetContainerId()}); err != nil {
		n.t.Logf("does not start: %v", err)
	}
	n.exited(a.GetContainerId())
}

func (n *node) dropImages(ids ...string) {
	n.t.Helper()
	for _, id := range ids {
		if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}}); err != nil {
			n.t.Errorf("remove image: %v", err)
		}
	}
}

// S14, S17: CVE-2026-53488, CVE-2026-50195. Labels, annotations and names in an image are
// its own: none becomes one of the container, of the specification, of the daemon or of
// another image.
func TestWordsOfAnImageAreNoOrders(t *testing.T) {
	const mark = "mark-of-the-image"
	words := map[string]string{"other": mark}
	for _, key := range []string{
		"io.kubernetes.pod.name", "io.kubernetes.container.name", "io.kubernetes.cri-o.ImageName", "io.kubernetes.cri-o.userns-mode",
		"io.kubernetes.cri-o.platform", "io.cri-containerd.image", "io.cri-containerd.pinned", "io.containerd.runtime.v2.logger",
		"containerd.io/restart.loguri", "crio.pinned", "run.oci.hooks.stdout", "org.systemd.property.ExecStart", "cdi.k8s.io/x",
		"org.opencontainers.image.ref.name", "io.containerd.image.name", "io.kubernetes.cri-o.annotations.checkpoint.name",
	} {
		words[key] = mark + "/busybox:v9"
	}
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, _ := readyNode(t, options{registry: r})
	ref := r.Push(t, "words", "v1", fixture.BuildImage(t, fixture.ImageSpec{
		Layers: [][]fixture.File{fixture.Busybox(t), {{Path: "manifest.json", Data: []byte(`[{"RepoTags":["` + mark + `:v1"]}]`)}}},
		Config: imgspec.ImageConfig{Env: []string{"PATH=/bin"}, Labels: words}, Annotations: words,
	}))
	image := n.pull(ref)
	defer func() { n.removeAll(); n.dropImages(image) }()
	list, err := n.images.ListImages(n.ctx(), &cri.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, i := range list.GetImages() {
		if names := fmt.Sprint(i.GetRepoTags(), i.GetRepoDigests()); strings.Contains(names, mark) || len(i.GetRepoTags()) != 1 || i.GetPinned() {
			t.Errorf("%s has the names %s, pinned %t", i.GetId(), names, i.GetPinned())
		}
	}
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	if s := n.container(id); len(s.GetLabels())+len(s.GetAnnotations()) > 0 || strings.Contains(s.String(), mark) {
		t.Errorf("the container has %v", s)
	}
	spec, err := os.ReadFile(n.path("run/containers/" + id + "/config.json"))
	if err != nil || bytes.Contains(spec, []byte(mark)) {
		t.Errorf("the specification has the image's words (%v): %s", err, spec)
	}
	record, err := filepath.Glob(n.path("state/containers/" + id + "*"))
	if err != nil || len(record) == 0 {
		t.Fatalf("no record: %v", err)
	}
	if data, err := os.ReadFile(record[0]); err != nil || bytes.Contains(data, []byte(mark)) {
		t.Errorf("the record has the image's words (%v): %s", err, data)
	}
}

// S20: CVE-2025-47290 and its ancestors. Layers whose entries go through links, or name
// places outside, are refused or unpacked inside.
func TestLayersAreUnpackedInside(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, _ := readyNode(t, options{registry: r})
	v := newVictim(t)
	up := strings.Repeat("../", 30) + v.dir[1:]
	evil := fixture.File{Path: "a/passwd", Data: []byte("evil")}
	pod := n.podConfig()
	box := n.runPod(pod)
	for name, layers := range map[string][][]fixture.File{
		"through a link":                  {{{Path: "a", Link: v.dir}, evil}},
		"through a relative link":         {{{Path: "a", Link: up}, evil}},
		"through a link of a lower layer": {{{Path: "a", Link: v.dir}}, {evil}},
		"a directory that becomes a link": {{{Path: "a", Dir: true}, {Path: "a", Link: v.dir}, evil}},
		"climbing":                        {{{Path: up + "/passwd", Data: []byte("evil")}}},
		"absolute":                        {{{Path: v.dir + "/passwd", Data: []byte("evil")}}},
		"hard link":                       {{{Path: "a", Hard: v.dir + "/passwd"}, {Path: "a", Data: []byte("evil")}}},
		"climbing hard link":              {{{Path: "a", Hard: up + "/passwd"}}},
		"hard link through a link":        {{{Path: "l", Link: v.dir}, {Path: "a", Hard: "l/passwd"}}},
		"whiteout through a link":         {{{Path: "a", Link: v.dir}}, {{Path: "a/.wh.passwd"}, {Path: "a/.wh..wh..opq"}}},
		"climbing whiteout":               {{{Path: up + "/.wh.passwd"}}},
	} {
		t.Run(name, func(t *testing.T) {
			layers = append([][]fixture.File{fixture.Busybox(t), {{Path: "name", Data: []byte(name)}}}, layers...)
			img := fixture.BuildImage(t, fixture.ImageSpec{Layers: layers, Config: imgspec.ImageConfig{Env: []string{"PATH=/bin"}}})
			ref := r.Push(t, "layers", strings.ReplaceAll(name, " ", "-"), img)
			_, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			v.unharmed(t)
			if err != nil {
				t.Logf("refused: %v", err)
				if i, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil || i.GetImage() != nil {
					t.Errorf("it is there nonetheless: %v, %v", i, err)
				}
				return
			}
			config := n.containerConfig(img.ID, shell("cat /a /a/* /l/*")...)
			n.tryContainer(box, pod, config)
			v.unharmed(t)
			if log, err := os.ReadFile(logOf(pod, config)); err == nil && bytes.Contains(log, []byte("secret")) {
				t.Errorf("the node's file is shown: %s", log)
			}
		})
	}
	// Layers that were unpacked before a later one was refused stay for the next try.
	n.before = nil
}

// S21, S23: CVE-2023-25153, GHSA-5j5w-g665-5m35. Documents that do not end are not read to
// the end, and one that is an index as well as a manifest is neither.
func TestDocumentsOfARegistryAreBounded(t *testing.T) {
	const endless = 1 << 30
	n := newNode(t, options{bare: true})
	config := digest.FromString("config")
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`,
		imgspec.MediaTypeImageManifest, imgspec.MediaTypeImageConfig, config, endless)
	for _, c := range []struct {
		name, contentType, document string
	}{
		{"manifest", imgspec.MediaTypeImageManifest, ""},
		{"index", imgspec.MediaTypeImageIndex, ""},
		{"docker list", "application/vnd.docker.distribution.manifest.list.v2+json", ""},
		{"config", imgspec.MediaTypeImageManifest, manifest},
		{"manifests and layers", imgspec.MediaTypeImageManifest, `{"manifests":[],` + manifest[1:]},
		{"manifests and layers, as an index", imgspec.MediaTypeImageIndex, `{"manifests":[],` + manifest[1:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sent atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.Contains(r.URL.Path, "/manifests/"):
					w.Header().Set("Content-Type", c.contentType)
					if c.document != "" {
						_, _ = w.Write([]byte(c.document))
						return
					}
				case !strings.Contains(r.URL.Path, "/blobs/"):
					return
				}
				spaces := bytes.Repeat([]byte(" "), 1<<20)
				for range endless / len(spaces) {
					if _, err := w.Write(spaces); err != nil {
						return
					}
					sent.Add(int64(len(spaces)))
				}
			}))
			defer server.Close()
			ref := strings.TrimPrefix(server.URL, "http://") + "/big:v1"
			a, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			if status.Code(err) != codes.Internal {
				t.Errorf("%v, %v", a, err)
			}
			if sent.Load() > 64<<20 {
				t.Errorf("%d bytes were read", sent.Load())
			}
			if err != nil && len(err.Error()) > 64<<10 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
		})
	}
}
