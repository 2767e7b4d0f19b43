package image

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"go.podman.io/storage"
	"golang.org/x/sys/unix"
)

const (
	usageMinAge = 10 * time.Second
	// usageRest keeps walks of huge layers below a twentieth of one CPU.
	usageRest = 20
)

// containerUsage remembers the last walk over what containers wrote.
type containerUsage struct {
	turn chan struct{} // holds a value while a walk runs: one at a time
	last Usage
	next time.Time // when last is too old
}

// FsInfo measures images and containers. Images come from the index; what
// containers wrote is walked, at most every 10 seconds and the more rarely the
// longer a walk takes.
func (s *Store) FsInfo(ctx context.Context) (FsInfo, error) {
	if err := s.ready(); err != nil {
		return FsInfo{}, fmt.Errorf("image filesystem: %w", err)
	}
	root := s.store.GraphRoot()
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return FsInfo{}, fmt.Errorf("image filesystem %s: %w", root, err)
	}
	info := FsInfo{Images: Usage{Mountpoint: root, Bytes: s.current(ctx).bytes, Inodes: st.Files - st.Ffree}}
	var err error
	if info.Containers, err = s.containerFs(ctx); err != nil {
		return FsInfo{}, fmt.Errorf("container filesystem %s: %w", root, err)
	}
	return info, nil
}

func (s *Store) containerFs(ctx context.Context) (Usage, error) {
	u := &s.usage
	select {
	case u.turn <- struct{}{}:
		defer func() { <-u.turn }()
	case <-ctx.Done():
		return Usage{}, ctx.Err()
	}
	begun := time.Now()
	if begun.Before(u.next) {
		return u.last, nil
	}
	all, err := s.store.MultiList(storage.MultiListOptions{Containers: true})
	if err != nil {
		return Usage{}, err
	}
	driver, err := s.store.GraphDriver()
	if err != nil {
		return Usage{}, err
	}
	sum := Usage{Mountpoint: s.store.GraphRoot()}
	for _, c := range all.Containers {
		dirs, err := driver.Metadata(c.LayerID)
		if err != nil || dirs["UpperDir"] == "" {
			continue // removed meanwhile
		}
		if err := addTree(ctx, dirs["UpperDir"], &sum); err != nil {
			return Usage{}, err
		}
	}
	u.last = sum
	u.next = time.Now().Add(max(usageMinAge, usageRest*time.Since(begun)))
	return sum, nil
}

// addTree adds allocated bytes (512-byte blocks, stat(2)) and inodes below dir.
// Files that vanish during the walk don't count; hard links count each time.
func addTree(ctx context.Context, dir string, sum *Usage) error {
	return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum.Bytes += uint64(st.Blocks) * 512
			sum.Inodes++
		}
		return nil
	})
}
