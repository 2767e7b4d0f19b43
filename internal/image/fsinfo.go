package image

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// FsInfo measures the images, from the index, and the filesystem that they are on.
func (s *Store) FsInfo(ctx context.Context) (Usage, error) {
	if err := s.ready(); err != nil {
		return Usage{}, fmt.Errorf("image filesystem: %w", err)
	}
	root := s.store.GraphRoot()
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return Usage{}, fmt.Errorf("image filesystem %s: %w", root, err)
	}
	return Usage{Mountpoint: root, Bytes: s.current(ctx).bytes, Inodes: st.Files - st.Ffree}, nil
}
