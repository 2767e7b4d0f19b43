package server

import (
	"context"
	"encoding/json"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageStatus of an image that is not there is an answer without one, not an error. It is
// not there either when the name stands for the image of another platform than the one
// asked for, so that the kubelet pulls that one.
func (s *Server) ImageStatus(ctx context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	img, ok, err := s.engine.FindImage(ctx, r.GetImage())
	if err != nil {
		return nil, err
	}
	if !ok {
		return &cri.ImageStatusResponse{}, nil
	}
	answer := &cri.ImageStatusResponse{Image: criImage(img)}
	if r.GetVerbose() {
		data, err := json.Marshal(map[string]any{"config": img.Config})
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", img.ID, err)
		}
		answer.Info = map[string]string{"info": string(data)}
	}
	return answer, nil
}
