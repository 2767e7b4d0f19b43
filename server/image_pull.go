package server

import (
	"context"
	"encoding/base64"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/image"
)

// PullImage answers with the image's ID, the same that ImageStatus and
// ContainerStatus tell.
func (s *Server) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, fault.New(fault.InvalidArgument, "image is missing")
	}
	platform, err := s.engine.CheckImage(r.GetImage())
	if err != nil {
		return nil, err
	}
	credential, err := credential(r.GetAuth())
	if err != nil {
		return nil, err
	}
	id, err := s.images.Pull(ctx, r.GetImage().GetImage(), credential, platform)
	if err != nil {
		return nil, err
	}
	return &cri.PullImageResponse{ImageRef: id}, nil
}

// credential reads AuthConfig; its auth field is "user:password" in base64, as in
// docker's config.json.
func credential(a *cri.AuthConfig) (image.Credential, error) {
	c := image.Credential{
		Username: a.GetUsername(), Password: a.GetPassword(), IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(), ServerAddress: a.GetServerAddress(),
	}
	if a.GetAuth() == "" || c.Username != "" {
		return c, nil
	}
	data, err := base64.StdEncoding.DecodeString(a.GetAuth())
	if err != nil {
		return c, fault.New(fault.InvalidArgument, "auth.auth is not base64")
	}
	user, password, ok := strings.Cut(string(data), ":")
	if !ok {
		return c, fault.New(fault.InvalidArgument, "auth.auth is not of the form user:password")
	}
	c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	return c, nil
}
