package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/rootfs"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// ErrImageMount: an image that is on the node cannot be mounted into a container, or
// has not the sub path that was asked for.
var ErrImageMount = errors.New("image mount")

// checkImages reads the ImageSpecs of all images that a container is made of.
func (e *Engine) checkImages(config *cri.ContainerConfig) error {
	if _, err := e.CheckImage(config.GetImage()); err != nil {
		return err
	}
	for _, m := range config.GetMounts() {
		if _, err := e.CheckImage(m.GetImage()); err != nil {
			return fmt.Errorf("mounts: %s: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}

// checkImageMount follows Mount.image and .image_sub_path in the proto. The sub path of a
// mount without an image means nothing: the kubelet sends the one of every volume.
func checkImageMount(m *cri.Mount) error {
	if m.GetImage() == nil {
		return nil
	}
	switch {
	case m.GetImage().GetImage() == "":
		return errors.New("image is set, but names none")
	case m.GetHostPath() != "":
		return errors.New("host_path and image exclude each other")
	case !m.GetReadonly():
		return errors.New("readonly must be set: an image can only be mounted read-only")
	case m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return errors.New("propagation: an image has no mounts to hand on")
	}
	if err := untrusted.CheckSubPath(m.GetImageSubPath()); err != nil {
		return fmt.Errorf("image_sub_path: %w", err)
	}
	return nil
}

// checkImageMappings: the owners in an image are those of the pod's user namespace
// without being asked for; no others can be had.
func checkImageMappings(m *cri.Mount, box pod.Sandbox) error {
	if m.GetImage() == nil || len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
		return nil
	}
	mapped, err := pod.UsersOf(&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Uids: m.GetUidMappings(), Gids: m.GetGidMappings()}})
	if err != nil || mapped != box.Users() {
		return fmt.Errorf("mounts: uidMappings and gidMappings of %s: those of an image can only be its pod's", m.GetContainerPath())
	}
	return nil
}

// imageMounts finds the images that the container mounts.
func (e *Engine) imageMounts(ctx context.Context, config *cri.ContainerConfig) ([]pod.ImageMount, error) {
	var found []pod.ImageMount
	for i, m := range config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		img, ok, err := e.FindImage(ctx, m.GetImage())
		if err != nil {
			return nil, fmt.Errorf("mounts: image %s: %w", m.GetImage().GetImage(), err)
		}
		if !ok {
			return nil, fault.New(fault.NotFound, "mounts: %s: image %q is not on the node: pull it first",
				m.GetContainerPath(), m.GetImage().GetImage())
		}
		found = append(found, pod.ImageMount{Mount: i, ImageID: img.ID, ImageRef: img.DigestFor(imageName(m.GetImage(), img))})
	}
	return found, nil
}

// mountImages mounts the images at the places from which the container binds them.
//
// Each is a layer of the container's own, like its root file system: the store knows by
// it that the image is in use, for every tool and after every crash, and any layer that
// can be a root file system can be mounted. Nothing is ever written to it.
//
// like are the options of the container's own layer: an image has its owners and label.
func (e *Engine) mountImages(ctx context.Context, v pod.Container, like rootfs.Options) error {
	for _, m := range v.ImageMounts {
		asked := v.Config.GetMounts()[m.Mount]
		err := e.mountImage(ctx, v, m, like)
		switch {
		case errors.Is(err, rootfs.ErrNotFound):
			return fault.New(fault.NotFound, "mounts: %s: image %s was removed meanwhile: pull it again: %w", asked.GetContainerPath(), m.ImageID, err)
		case err != nil:
			return fmt.Errorf("%w of %s at %s: %w", ErrImageMount, asked.GetImage().GetImage(), asked.GetContainerPath(), err)
		}
	}
	return nil
}

func (e *Engine) mountImage(ctx context.Context, v pod.Container, m pod.ImageMount, like rootfs.Options) error {
	id, subPath := v.ID, v.Config.GetMounts()[m.Mount].GetImageSubPath()
	layer := pod.ImageLayer(id, m.Mount)
	if err := e.Layers.Create(ctx, layer, m.ImageID); err != nil {
		return err
	}
	root, err := e.Layers.Mount(ctx, layer, like)
	if err != nil {
		return err
	}
	sys.Failpoint("image mount", "layer mounted")
	found, err := untrusted.FindInRoot(root, filepath.Join("/", subPath))
	if err != nil {
		return fault.New(fault.InvalidArgument, "image_sub_path: %w", err)
	}
	defer found.Close()
	if err := os.MkdirAll(e.Layout.MountDir(id), 0o700); err != nil {
		return err
	}
	return sys.Bind(found, e.Layout.ImageMount(id, m.Mount), unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// unmountAll unmounts what is mounted for a container alone. It needs nothing but the ID.
func (e *Engine) unmountAll(id string) error {
	dir := e.Layout.MountDir(id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		err = errors.Join(err, unmount(filepath.Join(dir, entry.Name())))
	}
	return err
}

// removeLayers removes the layers of a container, its own last.
func (e *Engine) removeLayers(ctx context.Context, v pod.Container) error {
	for _, m := range v.ImageMounts {
		if err := e.Layers.Remove(ctx, pod.ImageLayer(v.ID, m.Mount)); err != nil {
			return err
		}
	}
	return e.Layers.Remove(ctx, v.ID)
}
