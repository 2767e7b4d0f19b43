package sys

import (
	"errors"
	"fmt"
	"os"

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

// Bind mounts what source (opened with O_PATH) stands for, a directory or a file, on
// target, which it makes. The new mount is private and has attributes (MOUNT_ATTR_ of
// mount_setattr(2)) from the moment it can be seen. The source is no path, so that
// nobody can exchange it for a link after it was looked up.
func Bind(source *os.File, target string, attributes uint64) error {
	return bind(source, target, unix.MountAttr{Attr_set: attributes})
}

// BindAs is Bind for the eyes of a user namespace: what belongs to the node's root, or to
// another ID that it maps, belongs to its own there (MOUNT_ATTR_IDMAP).
func BindAs(source *os.File, target string, users *os.File) error {
	return bind(source, target, idmapped(users))
}

// CanBindAs is nil if the file system of source can be mounted by BindAs. Nothing is.
func CanBindAs(source, users *os.File) error {
	tree, err := detached(source, idmapped(users))
	if err != nil {
		return err
	}
	return unix.Close(tree)
}

func idmapped(users *os.File) unix.MountAttr {
	return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
}

func bind(source *os.File, target string, attr unix.MountAttr) error {
	info, err := source.Stat()
	if err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	tree, err := detached(source, attr)
	if err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind %s: move_mount: %w", target, err)
	}
	return nil
}

// detached returns a private mount of source that has no place yet, and ends with its
// descriptor if it gets none.
func detached(source *os.File, attr unix.MountAttr) (tree int, err error) {
	tree, err = unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	attr.Propagation = unix.MS_PRIVATE
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("mount_setattr: %w", err)
	}
	return tree, nil
}
