package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	intoStore     = "skopeo copy into a store"
	intoDirectory = "skopeo copy to a directory"
	unpacking     = "reading and unpacking"
	rowPullLarge  = "PullImage, large, against " + intoStore
	pullRounds    = 3
	manyLayers    = 60
)

// pulls measures an image of many small layers and a large one of one layer. Each time
// the store is without it.
func (b *bench) pulls(ctx context.Context) error {
	var layers []layer
	for i := range manyLayers {
		layers = append(layers, layer{{name: fmt.Sprintf("file-%d", i), size: 64 << 10}})
	}
	many, err := b.images.add("many", layers)
	if err != nil {
		return err
	}
	large, err := b.images.add("large", []layer{{{name: "data", size: int64(b.pullMiB) << 20}}})
	if err != nil {
		return err
	}
	rowMany := fmt.Sprintf("PullImage, %d layers, against ", manyLayers)
	for range pullRounds {
		for _, image := range []struct{ ref, name, row string }{{many, "many", rowMany}, {large, "large", "PullImage, large, against "}} {
			took, err := b.skopeo(ctx, image.ref, "containers-storage:[overlay@%s/root+%s/run]"+image.ref)
			if err != nil {
				return err
			}
			b.took(image.row+intoStore, floorName, took)
			if took, err = b.skopeo(ctx, image.ref, "dir:%s/dir%.0s"); err != nil {
				return err
			}
			b.took(image.row+intoDirectory, floorName, took)
			if took, err = b.unpack(ctx, image.name); err != nil {
				return err
			}
			b.took(image.row+unpacking, floorName, took)
		}
		for _, d := range b.daemons {
			took, err := d.timedPull(ctx, many)
			if err != nil {
				return err
			}
			for _, floor := range []string{intoStore, intoDirectory, unpacking} {
				b.took(rowMany+floor, d.name, took)
			}
			if err := b.pullLarge(ctx, d, large); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	return nil
}

func (b *bench) pullLarge(ctx context.Context, d *daemon, ref string) error {
	pid, err := d.pid()
	if err != nil {
		return err
	}
	// Resets the peak (proc_pid_clear_refs(5)).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return err
	}
	before, err := peak(pid)
	if err != nil {
		return err
	}
	took, err := d.timedPull(ctx, ref)
	if err != nil {
		return err
	}
	after, err := peak(pid)
	if err != nil {
		return err
	}
	for _, floor := range []string{intoStore, intoDirectory, unpacking} {
		b.took("PullImage, large, against "+floor, d.name, took)
	}
	b.report.add("daemon's peak during the large pull", "MiB", d.name, float64(after-before)/1024)
	return nil
}

// peak of the resident memory in KiB (VmHWM of proc_pid_status(5)).
func peak(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	value, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return strconv.Atoi(value)
}

func (d *daemon) timedPull(ctx context.Context, ref string) (time.Duration, error) {
	begun := time.Now()
	if _, err := d.pull(ctx, ref); err != nil {
		return 0, fmt.Errorf("pull %s: %w", ref, err)
	}
	took := time.Since(begun)
	_, err := d.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return took, err
}

// skopeo copies to a target, a format that is given the same directory twice.
func (b *bench) skopeo(ctx context.Context, ref, target string) (time.Duration, error) {
	dir := b.path("skopeo")
	policy := b.path("policy.json")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644)); err != nil {
		return 0, err
	}
	begun := time.Now()
	out, err := exec.CommandContext(ctx, "skopeo", "copy", "--quiet", "--policy", policy, "--src-tls-verify=false",
		"docker://"+ref, fmt.Sprintf(target, dir, dir)).CombinedOutput()
	took := time.Since(begun)
	if err != nil {
		err = fmt.Errorf("skopeo copy %s: %w: %s", ref, err, out)
	}
	// The storage library's bind mount of its own directory.
	if unmounted := unix.Unmount(filepath.Join(dir, "root/overlay"), unix.MNT_DETACH); unmounted != nil && !errors.Is(unmounted, unix.EINVAL) && !errors.Is(unmounted, unix.ENOENT) {
		err = errors.Join(err, unmounted)
	}
	return took, errors.Join(err, os.RemoveAll(dir))
}

// unpack reads the blobs of an image and writes the files to the disk, one behind the other.
func (b *bench) unpack(ctx context.Context, name string) (time.Duration, error) {
	target := b.path("unpacked")
	defer os.Remove(target)
	digests, err := b.images.layers(name)
	if err != nil {
		return 0, err
	}
	out, err := os.Create(target)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	begun := time.Now()
	for _, digest := range digests {
		if err := b.unpackLayer(ctx, out, name, digest); err != nil {
			return 0, fmt.Errorf("unpack %s: %w", digest, err)
		}
	}
	// PullImage returns when the image would survive a power cut.
	err = out.Sync()
	return time.Since(begun), err
}

func (b *bench) unpackLayer(ctx context.Context, out io.Writer, name, digest string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.images.address+"/v2/"+name+"/blobs/"+digest, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	plain, err := gzip.NewReader(answer.Body)
	if err != nil {
		return err
	}
	for files := tar.NewReader(plain); ; {
		if _, err := files.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := io.Copy(out, files); err != nil {
			return err
		}
	}
}
