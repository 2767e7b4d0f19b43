package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/rootfs"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// CreateContainer makes a container in a ready sandbox and returns its ID. Nothing
// of it runs. A call with the name and attempt of one that is being made joins it;
// of one that exists, returns its ID.
func (e *Engine) CreateContainer(ctx context.Context, sandboxID string, config *cri.ContainerConfig) (string, error) {
	s, err := e.index.sandbox(sandboxID)
	if err != nil {
		return "", err
	}
	v := s.snapshot()
	if err := errors.Join(checkContainer(config, v), e.checkImages(config), checkInRuntimeSandbox(config, v.Handler)); err != nil {
		return "", fault.As(fault.InvalidArgument, err)
	}
	key := pod.KeyOfContainer(v.ID, config.GetMetadata())
	return e.run(ctx, opKey{"create container", key.String()}, createBudget, func(ctx context.Context, op *operation) (string, error) {
		if c, ok := e.index.containerWithKey(key); ok {
			switch old := c.snapshot(); old.Phase {
			case pod.ContainerCreated, pod.ContainerRunning, pod.ContainerExited:
				return old.ID, nil
			}
		}
		return e.createContainer(ctx, op, s, config)
	})
}

func (e *Engine) createContainer(ctx context.Context, op *operation, s *sandbox, config *cri.ContainerConfig) (string, error) {
	op.stage("image")
	img, ok, err := e.FindImage(ctx, config.GetImage())
	if err != nil {
		return "", fmt.Errorf("image %s: %w", config.GetImage().GetImage(), err)
	}
	if !ok {
		return "", fault.New(fault.NotFound, "image %q is not on the node: pull it first", config.GetImage().GetImage())
	}
	mounted, err := e.imageMounts(ctx, config)
	if err != nil {
		return "", err
	}
	box, name := s.snapshot(), imageName(config.GetImage(), img)
	c := newContainer(pod.Container{
		ID: pod.NewID(), SandboxID: box.ID, Phase: pod.ContainerCreating, Config: config,
		Handler: box.Handler, CgroupParent: box.Config.GetLinux().GetCgroupParent(),
		Resources: config.GetLinux().GetResources(),
		ImageID:   img.ID, ImageName: name, ImageRef: img.DigestFor(name), ImageMounts: mounted,
		CreatedAt: time.Now().UnixNano(), BootID: e.bootID,
	})
	op.stage("record")
	v := c.snapshot()
	if err := e.containerRecords.Save(v); err != nil {
		return "", err
	}
	if err := e.index.addContainer(c, false); err != nil {
		return "", errors.Join(err, e.containerRecords.Delete(v.ID))
	}
	// In its queue, so that a removal of its sandbox waits until there is something to
	// remove, or nothing.
	err = c.queue.wait(func() error {
		made, err := e.makeContainer(ctx, op, box, v, img)
		if err == nil {
			op.stage("commit")
			if err = e.commitContainer(c, pod.ContainerMade{Made: made}); err == nil {
				return nil
			}
		}
		op.stage("undo")
		// Not beyond the daemon's end: the next one finds the record and goes on.
		undo, cancel := context.WithTimeout(e.ctx, removeBudget)
		defer cancel()
		if undoErr := e.removeContainer(undo, op, c); undoErr != nil {
			e.Log.Error("a container that could not be made cannot be undone yet", "container", v.ID, "err", undoErr)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return v.ID, nil
}

// makeContainer makes the layer and the bundle and returns the container as resolved.
func (e *Engine) makeContainer(ctx context.Context, op *operation, box pod.Sandbox, v pod.Container, img image.Image) (pod.Container, error) {
	labels, err := e.containerLabels(box, v.Config.GetLinux().GetSecurityContext())
	if err != nil {
		return v, err
	}
	e.Cgroups.Hasten() // its start is what comes next
	op.stage("layer")
	layer := rootfs.Options{MountLabel: labels.Mount, Users: box.Users(), Namespace: e.Layout.Namespace(box.ID, "user")}
	err = e.Layers.Create(ctx, v.ID, img.ID)
	if errors.Is(err, rootfs.ErrNotFound) {
		return v, fault.New(fault.NotFound, "image %s was removed meanwhile: pull it again: %w", img.ID, err)
	}
	if err != nil {
		return v, fmt.Errorf("layer %s: %w", v.ID, err)
	}
	op.stage("mount")
	if v.Rootfs, err = e.Layers.Mount(ctx, v.ID, layer); err != nil {
		return v, fmt.Errorf("mount %s: %w", v.ID, err)
	}
	op.stage("user")
	user, err := lookupUser(v.Rootfs, v.Config, img)
	if err != nil {
		return v, fault.New(fault.InvalidArgument, "user of container %s: %w", v.Config.GetMetadata().GetName(), err)
	}
	v.User = criUser(user)
	if v.StopSignal, err = pod.StopSignal(v.Config, img.Config.StopSignal); err != nil {
		return v, fault.As(fault.InvalidArgument, err)
	}
	op.stage("log directory")
	if v.LogPath, err = logPath(box.Config.GetLogDirectory(), v.Config.GetLogPath()); err != nil {
		return v, err
	}
	op.stage("image mounts")
	if err := e.mountImages(ctx, v, layer); err != nil {
		return v, err
	}
	op.stage("inputs")
	in, err := e.inputs(ctx, op, box, v, img)
	if err != nil {
		return v, err
	}
	in.ProcessLabel, in.MountLabel = labels.Process, labels.Mount
	op.stage("relabel")
	if err := e.relabel(ctx, in.Mounts, labels); err != nil {
		return v, err
	}
	in.User = spec.User{UID: user.UID, GID: user.GID, Groups: user.Groups, Home: user.Home}
	op.stage("volumes")
	if in.Volumes, err = e.volumes(box, v, in); err != nil {
		return v, err
	}
	op.stage("working directory")
	if err := makeWorkingDir(box, v, spec.WorkingDir(v.Config, img.Config)); err != nil {
		return v, err
	}
	if in.Rootfs, err = e.bindRootfs(box, v.ID, v.Rootfs); err != nil {
		return v, fmt.Errorf("root file system of %s: %w", v.ID, err)
	}
	op.stage("spec")
	result, err := spec.Container(in)
	if err != nil {
		if errors.Is(err, spec.ErrRecursiveReadOnly) {
			return v, err
		}
		return v, fault.New(fault.InvalidArgument, "container %s: %w", v.Config.GetMetadata().GetName(), err)
	}
	v.Resources = result.Resources
	for _, message := range result.Clamped {
		e.warnOnce(message)
	}
	op.stage("devices")
	if err := e.addDevices(&v, in, result.Spec); err != nil {
		return v, err
	}
	if err := e.writeBundle(v.ID, result.Spec); err != nil {
		return v, fmt.Errorf("bundle %s: %w", v.ID, err)
	}
	return v, nil
}

func makeWorkingDir(box pod.Sandbox, v pod.Container, dir string) error {
	err := untrusted.MkdirAllInRoot(v.Rootfs, dir, 0o755, rootOf(box))
	if err == nil {
		return nil
	}
	if badPath(err) {
		if errno := unix.Errno(0); errors.As(err, &errno) {
			err = errno
		}
		return fault.New(fault.InvalidArgument, "working_dir %.200q: %w", dir, err)
	}
	return fmt.Errorf("working_dir of %s: %w", v.ID, err)
}

// imageName is what people call the image: as it was asked for, or, since the kubelet
// asks by ID, as its pod names it, else by one of its tags.
func imageName(asked *cri.ImageSpec, img image.Image) string {
	switch {
	case asked.GetUserSpecifiedImage() != "":
		return asked.GetUserSpecifiedImage()
	case strings.TrimPrefix(asked.GetImage(), "sha256:") == img.ID && len(img.RepoTags) > 0:
		return img.RepoTags[0]
	}
	return asked.GetImage()
}

// logPath makes the directory of the log; "" where the container writes none.
func logPath(directory, relative string) (string, error) {
	if directory == "" || relative == "" {
		return "", nil
	}
	path, err := untrusted.CheckLogPath(directory, relative)
	if err != nil {
		return "", fault.New(fault.InvalidArgument, "log_path: %w", err)
	}
	// The kubelet made it with these modes; crictl has not. The links above the pod's
	// directory are the node's own. From there on a container that sees the directory could
	// have made them, and none leads out.
	above := filepath.Dir(filepath.Clean(directory))
	if err := os.MkdirAll(above, 0o755); err != nil {
		return "", fmt.Errorf("log directory: %w", err)
	}
	below, err := filepath.Rel(above, filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("log directory: %w", err)
	}
	if err := untrusted.MkdirAllInRoot(above, below, 0o755, untrusted.Owner{}); err != nil {
		return "", fmt.Errorf("log directory %s, in which no link may lead out of %s: %w", directory, above, err)
	}
	return path, nil
}

func lookupUser(root string, config *cri.ContainerConfig, img image.Image) (untrusted.User, error) {
	s := config.GetLinux().GetSecurityContext()
	u := untrusted.UserSpec{
		Username: s.GetRunAsUsername(), ImageUser: img.Config.User,
		SupplementalGroups: s.GetSupplementalGroups(),
		Strict:             s.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Strict,
	}
	if v := s.GetRunAsUser(); v != nil {
		u.UID = &v.Value
	}
	if v := s.GetRunAsGroup(); v != nil {
		u.GID = &v.Value
	}
	return untrusted.LookupUser(root, u)
}

func criUser(u untrusted.User) *cri.LinuxContainerUser {
	out := &cri.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.Groups {
		out.SupplementalGroups = append(out.SupplementalGroups, int64(g))
	}
	return out
}

// checkContainer refuses what can never work, and what this version does not do.
func checkContainer(config *cri.ContainerConfig, box pod.Sandbox) error {
	s := config.GetLinux().GetSecurityContext()
	switch {
	case config.GetMetadata().GetName() == "":
		return errors.New("metadata: name must be set")
	case config.GetImage().GetImage() == "":
		return errors.New("image must be set")
	case s.GetPrivileged() && !box.Config.GetLinux().GetSecurityContext().GetPrivileged():
		return fmt.Errorf("privileged: sandbox %s was not made for privileged containers", box.ID)
	case config.GetWindows() != nil:
		return errors.New("windows: this node runs Linux")
	}
	for _, m := range config.GetMounts() {
		if err := checkImageMount(m); err != nil {
			return fmt.Errorf("mounts: %s: %w", m.GetContainerPath(), err)
		}
		if err := errors.Join(spec.CheckMount(m), checkMappings(m), checkImageMappings(m, box)); err != nil {
			return err
		}
	}
	for _, d := range config.GetDevices() {
		if err := spec.CheckDevice(d); err != nil {
			return err
		}
	}
	if _, ok := cri.SupplementalGroupsPolicy_name[int32(s.GetSupplementalGroupsPolicy())]; !ok {
		return fmt.Errorf("supplemental_groups_policy: %d is neither Merge nor Strict", s.GetSupplementalGroupsPolicy())
	}
	o := s.GetNamespaceOptions()
	// POD is the pod's own, be that the node's.
	switch network, ipc := o.GetNetwork(), o.GetIpc(); {
	case network != cri.NamespaceMode_POD && !(network == cri.NamespaceMode_NODE && box.HostNetwork()):
		return fmt.Errorf("namespace_options.network: %s is not what sandbox %s was made with", network, box.ID)
	case ipc != cri.NamespaceMode_POD && !(ipc == cri.NamespaceMode_NODE && box.HostIPC()):
		return fmt.Errorf("namespace_options.ipc: %s is not what sandbox %s was made with", ipc, box.ID)
	}
	if _, ok := cri.NamespaceMode_name[int32(o.GetPid())]; !ok {
		return fmt.Errorf("namespace_options.pid: %d is unknown", o.GetPid())
	}
	if (o.GetPid() == cri.NamespaceMode_TARGET) != (o.GetTargetId() != "") {
		return fmt.Errorf("namespace_options.target_id %q: it must be set with pid TARGET, and only with it", o.GetTargetId())
	}
	return checkContainerUsers(o, box)
}
