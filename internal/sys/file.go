// Package sys wraps the few kernel and file primitives that several parts need in
// exactly the same way: atomic files, process identity, unix sockets, mounts.
package sys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// newPrefix marks files that WriteFile has not renamed yet. A crash can leave one;
// whoever owns the directory may remove every name that begins with a dot.
const newPrefix = "."

// WriteFile replaces path by data: readers see the old content or the new, never a
// part. perm is exact, whatever the umask. A power cut may lose or empty the file.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return replace(path, data, perm, false)
}

// WriteFileSync is WriteFile whose effect has reached the disk when it returns:
// content first, then the name.
func WriteFileSync(path string, data []byte, perm fs.FileMode) error {
	return replace(path, data, perm, true)
}

func replace(path string, data []byte, perm fs.FileMode, sync bool) (err error) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	// A name of its own for each writer, so that two of one path cannot mix.
	temp := filepath.Join(dir, newPrefix+base+"."+rand.Text()[:10])
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
			_ = os.Remove(temp)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	Failpoint("file", "written, not renamed")
	if err = os.Rename(temp, path); err != nil || !sync {
		return err
	}
	return syncOne(dir)
}

// Sync returns when a file that WriteFile wrote has reached the disk, with its name.
func Sync(path string) error {
	var dir errgroup.Group // at once: one commit of the file system's journal does for both
	dir.Go(func() error { return syncOne(filepath.Dir(path)) })
	return errors.Join(syncOne(path), dir.Wait())
}

func syncOne(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// AppendFile appends what is in a file of the kernel's, one that never makes a reader
// wait. It is not for others: without os.File nothing but the thread waits. A list of 250
// pods reads thousands of them.
func AppendFile(data []byte, path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return data, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		data = slices.Grow(data, 512)
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return data, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return data, nil
		default:
			data = data[:len(data)+n]
		}
	}
}

// BootID is /proc/sys/kernel/random/boot_id: another one means that the node was
// rebooted in between.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// LockDir makes the caller the only holder of the directory's lock file until it
// calls release or ends, however it ends. The directory must exist. The error of a
// second holder names the pid of the first. A disk that is full or read-only keeps
// nobody from a lock file that is there.
func LockDir(path string) (release func(), err error) {
	name := filepath.Join(path, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) {
		f, err = os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: another crio uses it (pid %s)", path, strings.TrimSpace(string(holder[:n])))
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	// Informative only, and so not worth an error: the flock is the lock.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() { _ = f.Close() }, nil
}
