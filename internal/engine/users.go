package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/rootfs"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// ServesUsers is nil where pods can have user namespaces, as far as the node is concerned.
func (e *Engine) ServesUsers() error { return e.usersRefused }

// tryUsers makes a user namespace and asks whether the layers can be seen from it.
func (e *Engine) tryUsers(ctx context.Context) error {
	r := pod.IDRange{Host: 1 << 16, Length: 1 << 16}
	users, err := netns.OpenUsers(ctx, e.Pause, pod.Users{UIDs: r, GIDs: r})
	if err != nil {
		return err
	}
	defer users.Close()
	driver, root, _ := e.Images.Place()
	return rootfs.ServesUsers(driver, root, users)
}

// checkSandboxUsers refuses what the API server refuses, too: in a PID namespace of the
// node nobody but its root may mount /proc, and its IPC objects belong to others.
func checkSandboxUsers(s *cri.LinuxSandboxSecurityContext) error {
	o := s.GetNamespaceOptions()
	users, err := pod.UsersOf(o)
	switch {
	case err != nil || !users.Private():
		return err
	case o.GetPid() == cri.NamespaceMode_NODE:
		return errors.New("namespace_options.pid: NODE excludes a user namespace (userns_options)")
	case o.GetIpc() == cri.NamespaceMode_NODE:
		return errors.New("namespace_options.ipc: NODE excludes a user namespace (userns_options)")
	}
	own, err := pauseUser(s)
	if err != nil {
		return err
	}
	var n spec.Namespaces
	joinUsers(&n, users, "not made yet")
	return n.CheckUser(own)
}

// joinUsers adds the user namespace that is pinned at path.
func joinUsers(n *spec.Namespaces, u pod.Users, path string) {
	n.User = path
	n.UIDs = specs.LinuxIDMapping{HostID: u.UIDs.Host, Size: u.UIDs.Length}
	n.GIDs = specs.LinuxIDMapping{HostID: u.GIDs.Host, Size: u.GIDs.Length}
}

// checkContainerUsers wants the sandbox's user namespace for each of its containers.
func checkContainerUsers(o *cri.NamespaceOption, box pod.Sandbox) error {
	users, err := pod.UsersOf(o)
	switch {
	case err != nil:
		return err
	case users != box.Users():
		return fmt.Errorf("namespace_options.userns_options: %s, but sandbox %s was made with %s", users, box.ID, box.Users())
	case users.Private() && o.GetPid() == cri.NamespaceMode_NODE:
		return errors.New("namespace_options.pid: NODE excludes a user namespace (userns_options)")
	}
	return nil
}

// canHaveUsers refuses a pod with a user namespace where runtime or node lack something.
func (e *Engine) canHaveUsers(config *cri.PodSandboxConfig, h pod.Handler) error {
	users, err := pod.UsersOf(config.GetLinux().GetSecurityContext().GetNamespaceOptions())
	switch {
	case err != nil || !users.Private():
		return err
	case !e.configured(h).Features.UserNamespaces:
		return fault.New(fault.InvalidArgument, "namespace_options.userns_options: the runtime handler %q (%s) does not support user namespaces", h.Name, h.Path)
	case e.usersRefused != nil:
		return fault.New(fault.FailedPrecondition, "namespace_options.userns_options: %w", e.usersRefused)
	}
	return nil
}

// checkMappings looks at the numbers; which mounts can have them is the specification's to say.
func checkMappings(m *cri.Mount) error {
	for field, mappings := range map[string][]*cri.IDMapping{"uidMappings": m.GetUidMappings(), "gidMappings": m.GetGidMappings()} {
		for _, mapping := range mappings {
			if err := pod.CheckMapping(fmt.Sprintf("mounts: %s of %s", field, m.GetContainerPath()), mapping); err != nil {
				return err
			}
		}
	}
	return nil
}

// onNode is who a user of the pod is on the node. In the node's own user namespace the
// runtime gives its pipes to the user itself, and root's are left to it.
func onNode(box pod.Sandbox, user *cri.LinuxContainerUser) untrusted.Owner {
	root := rootOf(box)
	if !box.Users().Private() {
		return root
	}
	return untrusted.Owner{UID: root.UID + int(user.GetUid()), GID: root.GID + int(user.GetGid())}
}

// rootOf is who root inside of the pod is on the node.
func rootOf(box pod.Sandbox) untrusted.Owner {
	u := box.Users()
	return untrusted.Owner{UID: int(u.UIDs.Host), GID: int(u.GIDs.Host)}
}

// bindRootfs returns the path by which the runtime reaches a root file system. The root of
// a user namespace is nobody outside of it, and the way to the storage is closed to
// others. For it the root file system is bound into the bundle, which its group may pass,
// and nobody else; the directories above, of names that cannot be guessed, everybody may.
func (e *Engine) bindRootfs(box pod.Sandbox, id, root string) (string, error) {
	if !box.Users().Private() {
		return root, nil
	}
	for _, dir := range []string{e.Layout.Run, e.Layout.ContainerDirs()} {
		if err := os.Chmod(dir, 0o711); err != nil {
			return "", err
		}
	}
	bundle, bound := e.Layout.ContainerDir(id), e.Layout.Rootfs(id)
	if err := os.MkdirAll(bound, 0o700); err != nil {
		return "", err
	}
	if err := errors.Join(os.Chown(bundle, 0, rootOf(box).GID), os.Chmod(bundle, 0o710)); err != nil {
		return "", err
	}
	if err := unix.Mount(root, bound, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("bind %s: %w", bound, err)
	}
	return bound, nil
}
