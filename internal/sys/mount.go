package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Unmount detaches every mount that is stacked on path, without following a symbolic
// link there. nil when nothing is mounted or path does not exist.
func Unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		// EINVAL is the kernel's word for "not a mount point" (umount(2)).
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		}
		return fmt.Errorf("unmount %s: %w", path, err)
	}
}

// IsMountpoint tells whether path itself, a directory or a file, is the root of a
// mount. A path that does not exist is none. It does not follow a symbolic link.
func IsMountpoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("statx %s: the kernel does not tell mount points (it is older than 5.8)", path)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
