package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.podman.io/storage/pkg/idtools"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// ErrUsers: neither storage driver nor kernel can give the files of an image other
// owners without copying them all. Test with errors.Is.
var ErrUsers = errors.New("overlay cannot be mounted on idmapped layers here (it takes Linux 5.19 and a file system that can)")

// ServesUsers tells whether layers can be given other owners; nil if so. The first call
// tries it out with mounts below the storage's directory; the library keeps the answer.
func (s *Store) ServesUsers() error {
	_, _, err := s.mappings(pod.Users{UIDs: pod.IDRange{Host: 1 << 16, Length: 1 << 16}, GIDs: pod.IDRange{Host: 1 << 16, Length: 1 << 16}})
	return err
}

// mappings are the users in the library's form. Without idmapped mounts it would copy
// the image for each mapping, which nothing ever removes.
func (s *Store) mappings(u pod.Users) (uids, gids []idtools.IDMap, err error) {
	driver, err := s.store.GraphDriver()
	if err != nil {
		return nil, nil, err
	}
	uids = []idtools.IDMap{{HostID: int(u.UIDs.Host), Size: int(u.UIDs.Length)}}
	gids = []idtools.IDMap{{HostID: int(u.GIDs.Host), Size: int(u.GIDs.Length)}}
	if !driver.SupportsShifting(uids, gids) {
		return nil, nil, fmt.Errorf("storage driver %s: %w", s.store.GraphDriverName(), ErrUsers)
	}
	return uids, gids, nil
}

// unmountMapped removes the mounts by which the library sees the image's layers with
// other owners while it mounts the container's. They are there still if the process was
// killed in between, and then whoever deletes the directory would delete the image.
func unmountMapped(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if err := sys.Unmount(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}
