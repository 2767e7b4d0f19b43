package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"
)

const (
	allUsageAge = 10 * time.Second
	// allUsageRest keeps walks of huge layers below a twentieth of one CPU.
	allUsageRest = 20
)

// allUsage remembers the last walk over all layers.
type allUsage struct {
	turn          chan struct{} // holds a value while a walk runs: one at a time
	bytes, inodes uint64
	next          time.Time // when they are too old
}

// Usage measures the container's own layer, what it wrote: allocated bytes and
// inodes (stat(2)), a file with several hard links once. It walks the layer
// without any lock, and stops when ctx ends.
func (s *Store) Usage(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	if err := s.opened(); err != nil {
		return 0, 0, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	dir, err := s.dir(id)
	if err != nil {
		return 0, 0, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	seen := make(map[uint64]bool)
	err = filepath.WalkDir(filepath.Join(dir, "diff"), func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil // the container removes files meanwhile
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || seen[st.Ino] {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			seen[st.Ino] = true
		}
		bytes += uint64(st.Blocks) * 512
		inodes++
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	return bytes, inodes, nil
}

// AllUsage is the sum over all layers. They are walked at most every 10 seconds, and the
// more rarely the longer a walk takes.
func (s *Store) AllUsage(ctx context.Context) (bytes, inodes uint64, err error) {
	u := &s.all
	select {
	case u.turn <- struct{}{}:
		defer func() { <-u.turn }()
	case <-ctx.Done():
		return 0, 0, fmt.Errorf("usage of all layers: %w", ctx.Err())
	}
	begun := time.Now()
	if begun.Before(u.next) {
		return u.bytes, u.inodes, nil
	}
	ids, err := s.List()
	if err != nil {
		return 0, 0, fmt.Errorf("usage of all layers: %w", err)
	}
	for _, id := range ids {
		b, i, err := s.Usage(ctx, id)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return 0, 0, err
		}
		bytes, inodes = bytes+b, inodes+i
	}
	u.bytes, u.inodes, u.next = bytes, inodes, time.Now().Add(max(allUsageAge, allUsageRest*time.Since(begun)))
	return bytes, inodes, nil
}
