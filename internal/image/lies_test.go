package image

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// A registry that sends something else than the digests say is not believed, and leaves
// nothing that the next, honest pull would take for what it is not.
func TestRegistryThatLies(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img, other := small(t, "x"), small(t, "y")
	r.Push(t, "a", "v1", img)
	layer, config := digest.FromBytes(img.Layers[0]).String(), digest.FromBytes(img.Config).String()
	for name, lie := range map[string]struct {
		of, ref string
		data    []byte
	}{
		"another layer":            {layer, ":v1", other.Layers[0]},
		"a layer and more":         {layer, ":v1", append(bytes.Clone(img.Layers[0]), 0)},
		"a layer without its end":  {layer, ":v1", img.Layers[0][:len(img.Layers[0])-1]},
		"another config":           {config, ":v1", other.Config},
		"another manifest":         {"/manifests/" + img.Digest, "@" + img.Digest, other.Manifest},
		"a manifest that is empty": {"/manifests/" + img.Digest, "@" + img.Digest, nil},
	} {
		t.Run(name, func(t *testing.T) {
			lying := true
			p, o := startProxy(t, r, func(w http.ResponseWriter, req *http.Request, _ int) bool {
				if !lying || !strings.HasSuffix(req.URL.Path, lie.of) {
					return false
				}
				w.Header().Set("Content-Type", imgspec.MediaTypeImageManifest)
				_, _ = w.Write(lie.data)
				return true
			})
			s := open(t, o)
			if id, err := s.Pull(t.Context(), p.host+"/a"+lie.ref, Credential{}, Platform{}); err == nil {
				t.Errorf("pulled as %s", id)
			}
			if all, err := s.List(t.Context(), ""); err != nil || len(all) != 0 {
				t.Errorf("the store has %v, %v", all, err)
			}
			lying = false
			pullOK(t, s, p.host+"/a"+lie.ref, img)
		})
	}
}

// FuzzDocuments feeds what a registry sends as manifest and config: it is read or refused.
func FuzzDocuments(f *testing.F) {
	img := fixture.BuildImage(f, fixture.ImageSpec{Layers: [][]fixture.File{{{Path: "x", Data: []byte("x")}}}})
	f.Add(img.Manifest, img.Config)
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[{"blobSum":"sha256:0"}],"history":[{"v1Compatibility":"{}"}]}`), []byte(`{"config":{"User":"-1:x","Env":[null],"ExposedPorts":null}}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`), []byte(`{"os":1}`))
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"x"},"annotations":{"a":{}}}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		var doc document
		if of, err := doc.readManifest(manifest); err == nil && of == "" {
			t.Error("a manifest without a config was read")
		}
		if err := doc.readConfig(config); err == nil {
			if uid, name := configUser(doc.config.User); uid != nil && name != "" {
				t.Errorf("user %q is %d and %q", doc.config.User, *uid, name)
			}
		}
	})
}
