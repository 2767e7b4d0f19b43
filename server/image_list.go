package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/image"
)

// ListImages reads the index in memory.
func (s *Server) ListImages(ctx context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	platform, err := s.engine.CheckImage(r.GetFilter().GetImage())
	if err != nil {
		return nil, err
	}
	all, err := s.images.List(ctx, r.GetFilter().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	answer := &cri.ListImagesResponse{}
	for _, img := range all {
		if !platform.Accepts(img.Platform) {
			continue
		}
		answer.Images = append(answer.Images, criImage(img))
	}
	return answer, nil
}

func criImage(i image.Image) *cri.Image {
	out := &cri.Image{
		Id: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size, Username: i.Username, Pinned: i.Pinned,
		Spec: &cri.ImageSpec{Image: i.ID, Annotations: i.Annotations},
	}
	if i.UID != nil {
		out.Uid = &cri.Int64Value{Value: *i.UID}
	}
	return out
}
