package image

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"

	"go.podman.io/storage/pkg/lockfile"
)

// mendLinks takes away what a process that was killed while the overlay driver made a
// layer can leave, before the store loads and removes the layer itself.
//
// Each layer has a short name, a link in "l" to its directory, kept in its file
// "link". With an empty file the driver takes "l" for the link of this layer, and
// removes it with the short names of all layers. A link that no file names stays for ever.
//
// The lock is the one that every tool holds that makes a layer: what is half-made
// while we have it belongs to nobody.
func mendLinks(root, driver string) error {
	if cmp.Or(driver, overlayDriver) != overlayDriver {
		return nil
	}
	home, layers := filepath.Join(root, overlayDriver), filepath.Join(root, overlayDriver+"-layers")
	if _, err := os.Stat(layers); err != nil {
		return nil // a new store
	}
	lock, err := lockfile.GetLockFile(filepath.Join(layers, "layers.lock"))
	if err != nil {
		return fmt.Errorf("lock the layers: %w", err)
	}
	lock.Lock()
	defer lock.Unlock()
	files, err := filepath.Glob(filepath.Join(home, "*", "link"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if info, err := os.Lstat(file); err == nil && info.Size() == 0 {
			if err := os.Remove(file); err != nil {
				return fmt.Errorf("mend layer: %w", err)
			}
		}
	}
	links, err := filepath.Glob(filepath.Join(home, "l", "*"))
	if err != nil {
		return err
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue // not a short name
		}
		name, err := os.ReadFile(filepath.Join(home, "l", filepath.Dir(target), "link"))
		if os.IsNotExist(err) || err == nil && string(name) != filepath.Base(link) {
			if err := os.Remove(link); err != nil {
				return fmt.Errorf("mend layer: %w", err)
			}
		}
	}
	return nil
}
