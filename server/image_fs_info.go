package server

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/image"
)

// ImageFsInfo tells what images and container layers use of their file system.
func (s *Server) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	images, containers, err := s.engine.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	return &cri.ImageFsInfoResponse{
		ImageFilesystems:     []*cri.FilesystemUsage{usage(now, images)},
		ContainerFilesystems: []*cri.FilesystemUsage{usage(now, containers)},
	}, nil
}

func usage(now int64, u image.Usage) *cri.FilesystemUsage {
	return &cri.FilesystemUsage{
		Timestamp: now, FsId: &cri.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes: &cri.UInt64Value{Value: u.Bytes}, InodesUsed: &cri.UInt64Value{Value: u.Inodes},
	}
}
