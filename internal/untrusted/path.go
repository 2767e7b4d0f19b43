// Package untrusted is the border for what comes from images and pods: it sizes,
// types and resolves it before anything else of the daemon sees it.
package untrusted

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// openInRoot opens a path inside root as a process would that is chroot'ed there: no
// link and no ".." leads out (openat2(2), RESOLVE_IN_ROOT). Following /proc's magic
// links is refused.
func openInRoot(root, name string, flags int) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", root, err)
	}
	defer unix.Close(dir)
	fd, err := openat2(dir, name, flags)
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", name, root, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// FindInRoot opens a directory or a regular file inside root with O_PATH, as openInRoot
// does; the caller closes it. Whatever else is there, a device or a socket, is refused.
func FindInRoot(root, name string) (*os.File, error) {
	f, err := openInRoot(root, name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s in %s is neither a directory nor a regular file", name, root)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// CheckSubPath takes a relative path that does not climb (Mount.image_sub_path).
func CheckSubPath(name string) error {
	if path.IsAbs(name) || climbs(name) || strings.Contains(name, "\x00") {
		return fmt.Errorf("%q is not a relative path without \"..\"", name)
	}
	return nil
}

func openat2(dir int, name string, flags int) (int, error) {
	// EAGAIN: something was renamed meanwhile, and ".." could not be proved safe.
	const tries = 16
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EAGAIN) || try == tries {
			return fd, err
		}
	}
}

// Owner is who new files belong to, by the IDs of the node.
type Owner struct{ UID, GID int }

// MkdirAllInRoot makes a directory inside root with its parents, and leaves what exists
// as it is. Links inside are followed inside; one to a place that does not exist is an error.
func MkdirAllInRoot(root, name string, perm uint32, owner Owner) error {
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("root %s: %w", root, err)
	}
	defer unix.Close(at)
	walked := "/"
	for part := range strings.SplitSeq(path.Clean("/"+name), "/") {
		if part == "" {
			continue
		}
		parent, err := openat2(at, walked, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("mkdir %s in %s: %w", name, root, err)
		}
		walked = path.Join(walked, part)
		if err = unix.Mkdirat(parent, part, perm); err == nil {
			err = unix.Fchownat(parent, part, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
		}
		unix.Close(parent)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("mkdir %s in %s: %w", name, root, err)
		}
	}
	last, err := openat2(at, walked, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("%s in %s: %w", name, root, err)
	}
	return unix.Close(last)
}

// CheckLogDirectory takes PodSandboxConfig.log_directory: an absolute path that does not
// climb, or "" for a pod without logs.
func CheckLogDirectory(directory string) error {
	if directory != "" && (!path.IsAbs(directory) || climbs(directory) || strings.ContainsAny(directory, "\x00\n")) {
		return fmt.Errorf("log_directory %q is not an absolute path without \"..\" and control characters", directory)
	}
	return nil
}

// CheckLogPath joins PodSandboxConfig.log_directory and ContainerConfig.log_path. The
// first must be absolute, the second relative, and neither may climb.
func CheckLogPath(directory, relative string) (string, error) {
	switch {
	case !path.IsAbs(directory) || climbs(directory):
		return "", fmt.Errorf("log_directory %q is not an absolute path without \"..\"", directory)
	case path.IsAbs(relative) || climbs(relative) || path.Clean(relative) == "." || strings.HasSuffix(relative, "/"):
		return "", fmt.Errorf("log_path %q is not the relative path of a file without \"..\"", relative)
	case strings.ContainsAny(directory+relative, "\x00\n"):
		return "", errors.New("log path contains a control character")
	}
	return path.Join(directory, relative), nil
}

func climbs(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// maxHostname is the kernel's limit (uname(2), __NEW_UTS_LEN).
const maxHostname = 64

// CheckHostname takes what sethostname(2) and a line of /etc/hosts both stand.
func CheckHostname(name string) error {
	if name == "" || len(name) > maxHostname {
		return fmt.Errorf("%q has not 1 to %d bytes", name, maxHostname)
	}
	for _, r := range []byte(name) {
		if r <= ' ' || r > '~' || r == '/' {
			return fmt.Errorf("%q contains a character that no hostname has", name)
		}
	}
	return nil
}
