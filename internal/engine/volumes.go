package engine

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// maxVolumes bounds what an image's config may have made for it.
const maxVolumes = 128

// volumes makes the directories that the image declares (config.Volumes of the OCI
// image-spec) and returns what has to be mounted so that they are writable.
//
// They are directories of the container's own layer: they begin with what the image has
// there, count as what the container wrote, and go with it. That layer is writable, but
// for a read-only root file system: there they are bound over themselves, since whoever
// declares a volume expects to write to it.
func (e *Engine) volumes(box pod.Sandbox, v pod.Container, in spec.Input) ([]spec.Volume, error) {
	var out []spec.Volume
	paths := volumePaths(in.Image)
	if len(paths) > maxVolumes {
		return nil, fault.New(fault.InvalidArgument, "image %s declares %d volumes, more than %d", v.ImageName, len(paths), maxVolumes)
	}
	for i, target := range paths {
		if in.Covered(target) {
			continue
		}
		if err := untrusted.MkdirAllInRoot(v.Rootfs, target, 0o755, rootOf(box)); err != nil {
			return nil, fault.New(fault.InvalidArgument, "volume %s of image %s: %w", target, v.ImageName, err)
		}
		if !in.ReadOnlyRoot() {
			continue
		}
		if err := e.bindVolume(v, target, i); err != nil {
			return nil, fmt.Errorf("volume %s of image %s: %w", target, v.ImageName, err)
		}
		out = append(out, spec.Volume{Target: target, Source: e.Layout.VolumeMount(v.ID, i)})
	}
	return out, nil
}

// bindVolume gives the directory a name outside the root, whose links nobody can lead
// elsewhere before the runtime mounts it.
func (e *Engine) bindVolume(v pod.Container, target string, n int) error {
	dir, err := untrusted.FindInRoot(v.Rootfs, target)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := os.MkdirAll(e.Layout.MountDir(v.ID), 0o700); err != nil {
		return err
	}
	return sys.Bind(dir, e.Layout.VolumeMount(v.ID, n), 0)
}

// volumePaths are clean and sorted; the root itself is no volume, and neither is what
// the kernel fills.
func volumePaths(config imagespec.ImageConfig) []string {
	var out []string
	for p := range maps.Keys(config.Volumes) {
		p = path.Clean("/" + p)
		top, _, _ := strings.Cut(p[1:], "/")
		if p != "/" && !slices.Contains([]string{"proc", "sys", "dev"}, top) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
