package engine

import (
	"context"
	"errors"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/rootfs"
)

// platformAnnotation of an ImageSpec, which the kubelet fills with the pod's annotations,
// chooses the image of another platform than the node's: "linux/arm64".
const platformAnnotation = "io.kubernetes.cri-o.platform"

// CheckImage refuses an ImageSpec whose runtime_handler is not configured, and reads the
// platform that it chooses. Images do not differ by handler.
func (e *Engine) CheckImage(s *cri.ImageSpec) (image.Platform, error) {
	if _, err := e.handler(s.GetRuntimeHandler()); err != nil {
		return image.Platform{}, fmt.Errorf("image.runtime_handler: %w", err)
	}
	p, err := image.ParsePlatform(s.GetAnnotations()[platformAnnotation])
	if err != nil {
		return p, fmt.Errorf("image.annotations[%s]: %w", platformAnnotation, err)
	}
	return p, nil
}

// RemoveImage removes the image with all of its names; one that is not there is removed.
func (e *Engine) RemoveImage(ctx context.Context, s *cri.ImageSpec) error {
	if _, err := e.CheckImage(s); err != nil {
		return err
	}
	return e.Images.Remove(ctx, s.GetImage(), e.releaseImage)
}

func (e *Engine) releaseImage(ctx context.Context, id string) error {
	err := e.Layers.Release(ctx, id)
	if errors.Is(err, rootfs.ErrInUse) {
		return fmt.Errorf("%w: %w", image.ErrInUse, err)
	}
	return err
}

// FsInfo measures images and what containers have written, which are on one filesystem.
func (e *Engine) FsInfo(ctx context.Context) (images, containers image.Usage, err error) {
	if images, err = e.Images.FsInfo(ctx); err != nil {
		return images, containers, err
	}
	containers.Mountpoint = images.Mountpoint
	containers.Bytes, containers.Inodes, err = e.Layers.AllUsage(ctx)
	return images, containers, err
}

// FindImage looks on the node. An image is not there, either, when the name stands for the
// one of another platform than is asked for; an ID is always that image.
func (e *Engine) FindImage(ctx context.Context, s *cri.ImageSpec) (image.Image, bool, error) {
	platform, err := e.CheckImage(s)
	if err != nil {
		return image.Image{}, false, err
	}
	img, ok, err := e.Images.Status(ctx, s.GetImage())
	if err != nil || !ok {
		return img, false, err
	}
	return img, img.HasID(s.GetImage()) || platform.Accepts(img.Platform), nil
}
