package selftest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repository and tag of the built-in image.
const (
	repository = "crio/selftest"
	tag        = "v1"
)

// guestPath is the only program in the image.
const guestPath = "/guest"

// registry serves the built-in image on loopback by the distribution protocol, as
// much of it as a pull needs.
type registry struct {
	address  string
	server   *http.Server
	manifest []byte
	blobs    map[string][]byte
}

// startRegistry builds the image around the program at guest and serves it until close.
func startRegistry(guest string) (*registry, error) {
	program, err := os.ReadFile(guest)
	if err != nil {
		return nil, fmt.Errorf("built-in image: %w: it is installed beside conmon", err)
	}
	r := &registry{blobs: map[string][]byte{}}
	if err := r.build(program); err != nil {
		return nil, fmt.Errorf("built-in image: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("loopback registry: %w", err)
	}
	r.address = listener.Addr().String()
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *registry) close() error { return r.server.Close() }

// reference by which the daemon pulls.
func (r *registry) reference() string { return r.address + "/" + repository + ":" + tag }

func (r *registry) build(program []byte) error {
	layer, err := layerOf(program)
	if err != nil {
		return err
	}
	created := time.Unix(0, 0).UTC()
	config, err := json.Marshal(imagespec.Image{
		Created:  &created,
		Platform: imagespec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   imagespec.ImageConfig{Entrypoint: []string{guestPath}, Cmd: []string{"run", "4"}},
		RootFS:   imagespec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return err
	}
	r.manifest, err = json.Marshal(imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: imagespec.MediaTypeImageManifest,
		Config:    r.blob(imagespec.MediaTypeImageConfig, config),
		Layers:    []imagespec.Descriptor{r.blob(imagespec.MediaTypeImageLayer, layer)},
	})
	return err
}

func (r *registry) blob(mediaType string, data []byte) imagespec.Descriptor {
	d := digest.FromBytes(data)
	r.blobs[d.String()] = data
	return imagespec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func layerOf(program []byte) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	header := &tar.Header{
		Name: strings.TrimPrefix(guestPath, "/"), Mode: 0o755, Size: int64(len(program)), ModTime: time.Unix(0, 0),
	}
	_, err := 0, w.WriteHeader(header)
	if err == nil {
		_, err = w.Write(program)
	}
	return out.Bytes(), errors.Join(err, w.Close())
}

// ServeHTTP answers GET and HEAD of the base, the manifest and the blobs.
func (r *registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	base := "/v2/" + repository + "/"
	sum := sha256.Sum256(r.manifest)
	manifestDigest := "sha256:" + hex.EncodeToString(sum[:])
	name, ok := strings.CutPrefix(request.URL.Path, base)
	switch {
	case request.URL.Path == "/v2/":
		return
	case ok && (name == "manifests/"+tag || name == "manifests/"+manifestDigest):
		w.Header().Set("Content-Type", imagespec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", manifestDigest)
		send(w, request, r.manifest)
	case ok && r.blobs[strings.TrimPrefix(name, "blobs/")] != nil:
		w.Header().Set("Content-Type", "application/octet-stream")
		send(w, request, r.blobs[strings.TrimPrefix(name, "blobs/")])
	default:
		http.NotFound(w, request)
	}
}

func send(w http.ResponseWriter, request *http.Request, data []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if request.Method != http.MethodHead {
		_, _ = w.Write(data) // the client's pull fails by itself
	}
}

// waitFor is how long the guest's lines may take to reach the log.
const waitFor = 5 * time.Second

// readLog waits until the log at path has want and returns the text of its records.
// A log has no event that a reader could wait for, and so it is looked at again.
func readLog(ctx context.Context, path, want string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, waitFor)
	defer cancel()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), want) {
			return string(data), nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return "", fmt.Errorf("log %s has no %q after %s (%w): is the monitor running?", path, want, waitFor, errors.Join(err, ctx.Err()))
		}
	}
}
