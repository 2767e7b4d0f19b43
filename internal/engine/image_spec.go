package engine

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/image"
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
