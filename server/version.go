package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/version"
)

// kubeletAPIVersion is what every runtime answers in VersionResponse.version; the
// kubelet's own constant has been this since the field exists.
const kubeletAPIVersion = "0.1.0"

// Version tells who answers. The name is CRI-O's, since it becomes the scheme of
// container IDs ("cri-o://...") on nodes that change over.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version: kubeletAPIVersion, RuntimeName: version.RuntimeName,
		RuntimeVersion: version.Version, RuntimeApiVersion: "v1",
	}, nil
}
