package spec

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
)

// Pause describes the first process of a pod whose containers share one PID
// namespace: the built-in program, alone in a read-only root, with no capability.
// It joins the pod's pinned namespaces and brings a new PID namespace. The user and,
// of in.Config, the profiles are those of the sandbox's security context. in.Hostname and
// in.Annotations are for a runtime that makes a sandbox of it.
func Pause(in Input) (*specs.Spec, error) {
	g, err := generate.New("linux")
	if err != nil {
		return nil, fmt.Errorf("oci spec template: %w", err)
	}
	b := &builder{Input: in, g: &g, security: in.Config.GetLinux().GetSecurityContext()}
	g.SetOCIVersion(in.Node.OCIVersion)
	g.SetRootPath(in.Rootfs)
	g.SetRootReadonly(true)
	g.SetProcessArgs([]string{"/pause"})
	g.SetProcessCwd("/")
	b.user()
	g.SetProcessNoNewPrivileges(true)
	g.ClearProcessEnv()
	g.ClearProcessRlimits()
	g.RemoveHostname()
	if in.Hostname != "" {
		g.SetHostname(in.Hostname)
	}
	g.Config.Annotations = in.Annotations
	g.Config.Process.Capabilities = &specs.LinuxCapabilities{}
	if err := b.namespaces(); err != nil {
		return nil, err
	}
	// What the runtime itself needs, /proc and /dev: it makes links in there, which must not
	// stay for the next pod, and nodes, which the root of a user namespace cannot make in a
	// directory of the node's.
	g.Config.Mounts = b.kernelMounts()[:2]
	if err := b.devices(); err != nil {
		return nil, err
	}
	g.SetLinuxCgroupsPath(in.CgroupsPath)
	// As the kubelet gives to what must not die before its pod: low, but not unkillable.
	const pauseOOMScoreAdj = -998
	g.SetProcessOOMScoreAdj(int(max(pauseOOMScoreAdj, in.Node.MinOOMScoreAdj)))
	g.Config.Linux.MaskedPaths, g.Config.Linux.ReadonlyPaths = safeMasked(), safeReadonly()
	for _, step := range []func() error{b.seccomp, b.apparmor, b.selinux} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return g.Config, nil
}
