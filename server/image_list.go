package server

import (
	"context"
	"iter"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/image"
)

// ListImages reads the index in memory.
func (s *Server) ListImages(ctx context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	all, err := s.listImages(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListImagesResponse{Images: slices.Collect(all)}, nil
}

// StreamImages is ListImages in messages of a bounded size.
func (s *Server) StreamImages(r *cri.StreamImagesRequest, out cri.ImageService_StreamImagesServer) error {
	all, err := s.listImages(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(out.Context(), chunkBytes, all, func(chunk []*cri.Image) error {
		return out.Send(&cri.StreamImagesResponse{Images: chunk})
	})
}

// listImages encodes those that the filter wants out of one state of the index.
func (s *Server) listImages(ctx context.Context, filter *cri.ImageFilter) (iter.Seq[*cri.Image], error) {
	platform, err := s.engine.CheckImage(filter.GetImage())
	if err != nil {
		return nil, err
	}
	all, err := s.images.List(ctx, filter.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	return func(yield func(*cri.Image) bool) {
		for _, img := range all {
			if platform.Accepts(img.Platform) && !yield(criImage(img)) {
				return
			}
		}
	}, nil
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
