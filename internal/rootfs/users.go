package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.podman.io/storage/pkg/mount"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

// ErrUsers: the node cannot give the files of an image other owners without copying them
// all. Test with errors.Is.
var ErrUsers = errors.New("overlay cannot be mounted on idmapped layers here (it takes Linux 5.19 and a file system that can)")

// ServesUsers tells whether the layers of a store, which need not be open, can be given
// other owners; nil if so. users is any user namespace but the node's own.
func ServesUsers(driver, directory string, users *os.File) error {
	if driver != "overlay" {
		return fmt.Errorf("storage driver %s: %w", driver, ErrUsers)
	}
	root, err := openPath(directory)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := sys.CanBindAs(root, users); err != nil {
		return fmt.Errorf("%s: %w: %w", root.Name(), ErrUsers, err)
	}
	return nil
}

// mountMapped mounts a layer on the image's as they look to other users. The library can
// do it, too, but to have a user namespace it forks this process without an exec, and a
// kill in that moment leaves the copy with all descriptors and the lock of the daemon.
func (s *Store) mountMapped(id, dir string, opts Options) (err error) {
	users, err := os.Open(opts.Namespace)
	if err != nil {
		return err
	}
	defer users.Close()
	lowerDirs, err := s.lowerDirs(id, dir)
	if err != nil {
		return err
	}
	upper, work, merged := filepath.Join(dir, "diff"), filepath.Join(dir, "work"), filepath.Join(dir, "merged")
	if err := os.MkdirAll(mapped(dir), 0o700); err != nil {
		return err
	}
	for _, path := range []string{upper, work, merged} {
		if err := os.Lchown(path, int(opts.Users.UIDs.Host), int(opts.Users.GIDs.Host)); err != nil {
			return err
		}
	}
	// The overlay keeps what it is made of: nobody else needs to see these mounts.
	defer func() { err = errors.Join(err, unmountMapped(mapped(dir))) }()
	var short shortPaths
	defer short.close()
	lower, err := mapLower(mapped(dir), lowerDirs, users, &short)
	if err != nil {
		return err
	}
	sys.Failpoint("layer", "image's layers mapped")
	options := fmt.Sprintf("volatile,lowerdir=%s,upperdir=%s,workdir=%s", lower, escape(upper), escape(work))
	if opts.MountLabel != "" {
		options += fmt.Sprintf(",context=%q", opts.MountLabel)
	}
	err = unix.Mount("overlay", merged, "overlay", s.mountFlags(), options)
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: %w", ErrUsers, err)
	}
	return err
}

// lowerDirs are the files of the image's layers, the topmost first.
func (s *Store) lowerDirs(id, dir string) ([]string, error) {
	driver, err := s.driver()
	if err != nil {
		return nil, err
	}
	told, err := driver.Metadata(id)
	if err != nil {
		return nil, err
	}
	if lower := told["LowerDir"]; lower != "" {
		return strings.Split(lower, ":"), nil
	}
	return []string{filepath.Join(dir, "empty")}, nil // an image without any
}

// mapLower mounts the directories that hold the lower layers for users, below the given
// one, and returns the layers there as lowerdir has them.
func mapLower(below string, lowerDirs []string, users *os.File, short *shortPaths) (string, error) {
	var lower []string
	mapped := make(map[string]string)
	for _, dir := range lowerDirs {
		// A store has all of its layers in one directory, and more than one store can
		// have layers of one image.
		home := filepath.Dir(filepath.Dir(dir))
		if mapped[home] == "" {
			mapped[home] = filepath.Join(below, strconv.Itoa(len(mapped)))
			source, err := openPath(home)
			if err != nil {
				return "", err
			}
			err = sys.BindAs(source, mapped[home], users)
			source.Close()
			if err != nil {
				return "", err
			}
		}
		name, err := short.of(mapped[home] + strings.TrimPrefix(dir, home))
		if err != nil {
			return "", err
		}
		lower = append(lower, name)
	}
	return strings.Join(lower, ":"), nil
}

// shortPaths are other names of directories, as long as they are open: mount(2) takes one
// page of options, which has to do for a hundred layers.
type shortPaths struct {
	open []*os.File
}

func (s *shortPaths) of(path string) (string, error) {
	f, err := openPath(path)
	if err != nil {
		return "", err
	}
	s.open = append(s.open, f)
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
}

func (s *shortPaths) close() {
	for _, f := range s.open {
		f.Close()
	}
}

// escape keeps a path one word among the options of overlay. Upper and work directory
// keep their names there, for whoever looks for them in mountinfo.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`).Replace(path)
}

// mountFlags are those of the storage's mountopt (storage.conf(5)); the library's other
// options are for layers of its own making.
func (s *Store) mountFlags() uintptr {
	for _, option := range s.store.GraphOptions() {
		if name, value, _ := strings.Cut(option, "="); strings.HasSuffix(name, "mountopt") {
			flags, _ := mount.ParseOptions(value)
			return uintptr(flags)
		}
	}
	return 0
}

func openPath(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
}

// unmountMapped removes the mounts by which the image's layers are seen with other
// owners while the container's is mounted. They are there still if the process was
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
