package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry serves images from a directory by the distribution protocol, as much of it as
// a pull needs. Blobs and manifests are files named by their digests.
type registry struct {
	dir     string
	address string
	server  *http.Server
}

// file of a layer: data, else a link, else size bytes that compress to about a half.
type file struct {
	name, link string
	data       []byte
	size       int64
}

// layer is the files of one layer.
type layer []file

func newRegistry(dir string) (*registry, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{dir: dir, address: listener.Addr().String()}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *registry) close() error { return r.server.Close() }

// ServeHTTP answers GET and HEAD of /v2/, and of the manifests and blobs of any repository.
func (r *registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	parts := strings.Split(strings.Trim(request.URL.Path, "/"), "/")
	if len(parts) != 4 {
		return // "/v2/" itself
	}
	name, kind, which := parts[1], parts[2], filepath.Base(parts[3])
	if kind == "manifests" {
		if target, err := os.Readlink(filepath.Join(r.dir, name+":"+which)); err == nil {
			which = target
		}
		w.Header().Set("Content-Type", imgspec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", which)
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	http.ServeFile(w, request, filepath.Join(r.dir, which))
}

// add makes an image with one tag and returns its reference.
func (r *registry) add(name string, layers []layer, command ...string) (string, error) {
	config := imgspec.Image{
		Platform: imgspec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   imgspec.ImageConfig{Env: []string{"PATH=/bin"}, Entrypoint: command},
		RootFS:   imgspec.RootFS{Type: "layers"},
	}
	manifest := imgspec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest}
	for _, l := range layers {
		described, diff, err := r.pack(l)
		if err != nil {
			return "", err
		}
		manifest.Layers = append(manifest.Layers, described)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
	}
	var err error
	if manifest.Config, err = r.document(imgspec.MediaTypeImageConfig, config); err != nil {
		return "", err
	}
	described, err := r.document(imgspec.MediaTypeImageManifest, manifest)
	if err != nil {
		return "", err
	}
	return r.address + "/" + name + ":v1", os.Symlink(described.Digest.String(), filepath.Join(r.dir, name+":v1"))
}

func (r *registry) document(mediaType string, v any) (imgspec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return imgspec.Descriptor{}, err
	}
	d := imgspec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, os.WriteFile(filepath.Join(r.dir, d.Digest.String()), data, 0o644)
}

// pack writes a layer as a compressed tar, and returns it with the digest of the plain one.
func (r *registry) pack(l layer) (imgspec.Descriptor, digest.Digest, error) {
	out, err := os.CreateTemp(r.dir, "layer-")
	if err != nil {
		return imgspec.Descriptor{}, "", err
	}
	defer out.Close()
	plain, packed := sha256.New(), sha256.New()
	zip, err := gzip.NewWriterLevel(io.MultiWriter(out, packed), gzip.BestSpeed)
	if err != nil {
		return imgspec.Descriptor{}, "", err
	}
	w := tar.NewWriter(io.MultiWriter(zip, plain))
	for _, f := range l {
		if err := f.write(w); err != nil {
			return imgspec.Descriptor{}, "", err
		}
	}
	if err := errors.Join(w.Close(), zip.Close()); err != nil {
		return imgspec.Descriptor{}, "", err
	}
	info, err := out.Stat()
	if err != nil {
		return imgspec.Descriptor{}, "", err
	}
	d := imgspec.Descriptor{MediaType: imgspec.MediaTypeImageLayerGzip, Digest: digest.NewDigest(digest.SHA256, packed), Size: info.Size()}
	return d, digest.NewDigest(digest.SHA256, plain), os.Rename(out.Name(), filepath.Join(r.dir, d.Digest.String()))
}

func (f file) write(w *tar.Writer) error {
	h := &tar.Header{Name: f.name, Mode: 0o755, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Size: max(f.size, int64(len(f.data)))}
	switch {
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
	case strings.HasSuffix(f.name, "/"):
		h.Typeflag = tar.TypeDir
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if f.size == 0 {
		_, err := w.Write(f.data)
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	block := make([]byte, 1<<20)
	for left := f.size; left > 0; left -= int64(len(block)) {
		block = block[:min(left, int64(len(block)))]
		if _, err := random.Read(block[:len(block)/2]); err != nil {
			return err
		}
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// rootFiles are a small root file system: Debian's static busybox.
func rootFiles() (layer, error) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: install busybox-static", err)
	}
	l := layer{{name: "bin/"}, {name: "dev/"}, {name: "etc/"}, {name: "proc/"}, {name: "sys/"}, {name: "tmp/"}, {name: "bin/busybox", data: program}}
	for _, applet := range []string{"sh", "sleep", "true", "echo", "yes", "head"} {
		l = append(l, file{name: "bin/" + applet, link: "busybox"})
	}
	return l, nil
}

// busybox is the reference of the image of most containers.
func (r *registry) busybox() (string, error) {
	const name = "busybox"
	if _, err := os.Lstat(filepath.Join(r.dir, name+":v1")); err == nil {
		return r.address + "/" + name + ":v1", nil
	}
	files, err := rootFiles()
	if err != nil {
		return "", err
	}
	return r.add(name, []layer{files}, "sh")
}

// unpack writes the files of a small layer below dir.
func (l layer) unpack(dir string) error {
	for _, f := range l {
		path := filepath.Join(dir, f.name)
		var err error
		switch {
		case f.link != "":
			err = os.Symlink(f.link, path)
		case strings.HasSuffix(f.name, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.WriteFile(path, f.data, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// layers are the digests of an image's own layers, which lie above the one of all images.
func (r *registry) layers(name string) (digests []string, err error) {
	data, err := os.ReadFile(filepath.Join(r.dir, name+":v1"))
	if err != nil {
		return nil, err
	}
	var m imgspec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	for _, layer := range m.Layers {
		digests = append(digests, layer.Digest.String())
	}
	return digests, nil
}
