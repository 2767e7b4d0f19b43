package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/sys"
)

// checkPropagation refuses a mount whose propagation (Mount.propagation) would have no
// effect, since the source's own mount does not tell of what is mounted below it, or
// would not be told. Whether a container may have BIDIRECTIONAL is the API server's to
// decide, which wants privileged ones; CRI has no such rule.
func checkPropagation(ctx context.Context, mounts []spec.Mount) error {
	var asked []spec.Mount
	var paths []string
	for _, m := range mounts {
		if m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE && m.GetImage() == nil {
			asked, paths = append(asked, m), append(paths, m.Source)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	found, err := within(ctx, func() ([]sys.Mount, error) { return sys.MountsOf(paths) })
	if err != nil {
		return fmt.Errorf("mounts: propagation: %w", err)
	}
	for i, m := range asked {
		on, wanted := found[i], "shared"
		if m.GetPropagation() == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
			wanted = "shared or a slave"
		}
		if on.Shared || on.Slave && m.GetPropagation() == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
			continue
		}
		return fault.New(fault.FailedPrecondition,
			"mounts: propagation %s of %s: host_path %s is on the mount %s, which is not %s: run mount --make-rshared %s",
			m.GetPropagation(), m.GetContainerPath(), m.Source, on.Point, wanted, on.Point)
	}
	return nil
}

// checkKernelPlaces refuses mounts on /proc and /sys that would fail when the container
// starts, for all that the request and the node tell.
func checkKernelPlaces(ctx context.Context, mounts []spec.Mount, runc bool) error {
	for _, m := range mounts {
		target := filepath.Clean(m.GetContainerPath())
		ofProc, err := within(ctx, func() (bool, error) { return target == "/proc" && isProc(m.Source), nil })
		if err != nil {
			return fmt.Errorf("mounts: %s: %w", target, err)
		}
		if err := spec.CheckKernelPlace(target, runc, ofProc); err != nil {
			return fault.As(fault.InvalidArgument, err)
		}
		covered := slices.ContainsFunc(mounts, func(o spec.Mount) bool {
			return strings.HasPrefix(target, filepath.Clean(o.GetContainerPath())+"/")
		})
		if covered || !spec.KernelFile(target) {
			continue
		}
		there, err := os.Stat(target)
		if err != nil && badPath(err) {
			return fault.New(fault.InvalidArgument, "mounts: container_path %.200q: the kernel has none, and nobody can make it: %w", target, reason(err))
		}
		if err != nil {
			return fmt.Errorf("mounts: container_path: %w", err)
		}
		source, err := within(ctx, func() (os.FileInfo, error) { return os.Stat(m.Source) })
		if err != nil {
			return fmt.Errorf("mounts: %s: %w", target, err)
		}
		if source.IsDir() != there.IsDir() {
			return fault.New(fault.InvalidArgument, "mounts: container_path %s: of it and host_path %s one is a directory and the other is none", target, m.Source)
		}
	}
	return nil
}

func isProc(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// within runs what may wait for a file system, as long as ctx lasts.
func within[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	return sys.Within(ctx, "the file system does not answer", ask)
}
