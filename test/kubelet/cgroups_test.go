package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// cgroupRoot is the parent of all cgroups of this run.
func cgroupRoot() string { return fmt.Sprintf("/kubelet-test-%d", os.Getpid()) }

// version2 tells which cgroups the machine has.
func version2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// hierarchies are the roots of cgroups: one of version 2, or those of version 1.
func hierarchies() ([]string, error) {
	const root = "/sys/fs/cgroup"
	if version2() {
		return []string{root}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, entry := range entries {
		if entry.IsDir() { // not a link to one that has two controllers
			all = append(all, filepath.Join(root, entry.Name()))
		}
	}
	return all, nil
}

// makeCgroups makes the root that the kubelet's configuration names, with CPUs and
// memory nodes to give, which a cpuset of version 1 begins without.
func makeCgroups() error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root + cgroupRoot()
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(root, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), value, 0)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// ownCgroups lists the cgroups of this run, each after those below it, without its root.
func ownCgroups() ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, root := range roots {
		err := filepath.WalkDir(root+cgroupRoot(), func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it was removed meanwhile
			}
			if err == nil && entry.IsDir() && path != root+cgroupRoot() {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Reverse(found)
	return found, nil
}

// removeCgroups removes what is empty: the kubelet leaves the groups of its QoS classes,
// the daemon that of its monitors.
func removeCgroups() error {
	groups, err := ownCgroups()
	if err != nil {
		return err
	}
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		groups = append(groups, root+cgroupRoot())
	}
	for _, dir := range groups {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}
