package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/oci"
	"github.com/crio-minimal/crio/internal/pod"
)

// Handlers whose runtime has a sandbox of its own (pod.Handler.Sandbox), such as runsc.
// The pod's pause process makes it, in the pod's network namespace and cgroup; what the
// node has of the other containers are the helpers that give them their files.

// runtimeSandbox are the annotations by which such a runtime tells the container that
// makes a sandbox (boxID is "") from those that go into it: containerd's, which runsc reads.
func runtimeSandbox(h pod.Handler, id, boxID string) map[string]string {
	const kind, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
	switch {
	case !h.Sandbox:
		return nil
	case boxID == "":
		return map[string]string{kind: "sandbox", sandbox: id}
	}
	return map[string]string{kind: "container", sandbox: boxID}
}

// checkRuntimeSandbox refuses what a pod cannot have behind a kernel of its own.
func checkRuntimeSandbox(config *cri.PodSandboxConfig, h pod.Handler) error {
	if !h.Sandbox {
		return nil
	}
	o := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for field, mode := range map[string]cri.NamespaceMode{"network": o.GetNetwork(), "pid": o.GetPid(), "ipc": o.GetIpc()} {
		if mode == cri.NamespaceMode_NODE {
			return fmt.Errorf("namespace_options.%s: NODE: pods of the runtime handler %q are apart from the node's kernel", field, h.Name)
		}
	}
	if len(config.GetLinux().GetSysctls()) > 0 {
		return fmt.Errorf("sysctls: pods of the runtime handler %q have a kernel of their own, which does not know the node's", h.Name)
	}
	return nil
}

// checkInRuntimeSandbox is the same for containers.
func checkInRuntimeSandbox(config *cri.ContainerConfig, h pod.Handler) error {
	if !h.Sandbox {
		return nil
	}
	refuse := func(field string) error {
		return fmt.Errorf("%s: the runtime handler %q runs containers in a sandbox of its own, which cannot have that", field, h.Name)
	}
	s := config.GetLinux().GetSecurityContext()
	switch mode := s.GetNamespaceOptions().GetPid(); {
	case mode != cri.NamespaceMode_POD && mode != cri.NamespaceMode_CONTAINER:
		return refuse("namespace_options.pid " + mode.String())
	case len(config.GetDevices()) > 0:
		return refuse("devices")
	case len(config.GetCDIDevices()) > 0:
		return refuse("CDI_devices")
	case s.GetSeccomp().GetProfileType() == cri.SecurityProfile_Localhost:
		return refuse("seccomp Localhost")
	case s.GetApparmor().GetProfileType() == cri.SecurityProfile_Localhost:
		return refuse("apparmor Localhost")
	}
	for _, m := range config.GetMounts() {
		if m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE {
			return refuse("mounts: propagation " + m.GetPropagation().String() + " of " + m.GetContainerPath())
		}
	}
	return nil
}

// inSandbox is inContainer for a command that runs by the runtime alone, which stays
// beside it and ends with its exit code.
func (e *Engine) inSandbox(ctx context.Context, v pod.Container, command oci.Exec, do func(oci.Runtime, oci.Exec) error) error {
	// Empty until the command runs. A daemon that finds it after a crash kills the command.
	if err := os.WriteFile(command.PidFile, nil, 0o600); err != nil {
		return fmt.Errorf("exec %s: %w", v.ID, err)
	}
	defer os.Remove(command.PidFile)
	r := runtimeOf(v.Handler)
	err := do(r, command)
	if ctx.Err() == nil || err == nil {
		return err
	}
	clean, cancelClean := context.WithTimeout(context.WithoutCancel(ctx), killBudget)
	defer cancelClean()
	if killErr := r.KillCommand(clean, command); killErr != nil {
		e.Log.Warn("a command that was given up could not be killed", "container", v.ID, "err", killErr)
	}
	return err
}

// killExecsInSandbox is killExecs for commands that only the runtime can reach.
func (e *Engine) killExecsInSandbox(ctx context.Context, v pod.Container) error {
	entries, err := os.ReadDir(e.Layout.ContainerDir(v.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), execPrefix) || !entry.Type().IsRegular() {
			continue
		}
		command := oci.Exec{ID: v.ID, PidFile: filepath.Join(e.Layout.ContainerDir(v.ID), entry.Name())}
		err = errors.Join(err, runtimeOf(v.Handler).KillCommand(ctx, command), os.Remove(command.PidFile))
	}
	return err
}

// checkUpdate refuses to change the resources of a running container whose processes
// share the sandbox's cgroup with all others of the pod.
func checkUpdate(v pod.Container) error {
	if !v.Handler.Sandbox || v.Phase != pod.ContainerRunning {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "update %s: the runtime handler %q cannot change the resources of a running container", v.ID, v.Handler.Name)
}

// sandboxCapabilities are those of the node's kernel that a sandbox's may know: runsc
// refuses a container with one that is newer than CAP_AUDIT_READ (Linux 3.16). What they
// allow, it has not.
func sandboxCapabilities(held []string) []string {
	newer := []string{"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"}
	return slices.DeleteFunc(slices.Clone(held), func(name string) bool { return slices.Contains(newer, name) })
}
