// Package oci runs the OCI runtime for everything but create and start, which the
// monitor does: features, exec, delete. It is the only one that knows its command line.
package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Runtime is one OCI runtime with its state directory. It is a value and safe to share.
type Runtime struct {
	// Path of the binary.
	Path string
	// Root is the state directory (--root).
	Root string
	// Systemd passes --systemd-cgroup.
	Systemd bool
	// Args are options of the configuration, before every sub-command.
	Args []string
	// Sandbox: the containers of a pod run in a sandbox of the runtime's own (sandbox.go).
	Sandbox bool
}

// GlobalArgs come before every sub-command.
func (r Runtime) GlobalArgs() []string {
	args := []string{"--root", r.Root}
	if r.Systemd {
		args = append(args, "--systemd-cgroup")
	}
	return append(args, r.Args...)
}

// Features is what the daemon needs to know of a runtime.
type Features struct {
	// Version is the first line of --version.
	Version string
	// OCIVersion is the newest specification that the runtime accepts.
	OCIVersion string
	// Runc: the runtime calls itself runc, and takes in /proc what runc takes.
	Runc bool
	// ExecByController: exec takes --cgroup CONTROLLER:PATH, as runc's does with cgroup v1.
	ExecByController bool
	// RecursiveReadOnly: the mount option "rro" is known.
	RecursiveReadOnly bool
	// BindOptions: noexec, nodev and nosuid are known (Mount.mount_options).
	BindOptions bool
	// NetDevices: linux.netDevices of the specification has an effect. A runtime that does
	// not know it passes over it without a word.
	NetDevices bool
	// UserNamespaces: processes can have one (linux.namespaces).
	UserNamespaces bool
	// IDMap: mounts can have mappings of their own (linux.mountExtensions.idmap).
	IDMap bool
}

// oldestOCIVersion is what a runtime without the features command is given.
// crun 1.8 is one, and refuses anything newer than 1.0.x.
const oldestOCIVersion = "1.0.2"

// Probe asks the runtime for its version and features.
func Probe(ctx context.Context, path string) (Features, error) {
	out, err := run(ctx, nil, path, "--version")
	if err != nil {
		return Features{}, fmt.Errorf("runtime %s: %w", path, err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	runc := strings.HasPrefix(version, "runc ")
	f := Features{Version: version, OCIVersion: oldestOCIVersion, Runc: runc, ExecByController: runc}
	out, err = run(ctx, nil, path, "features")
	var known features.Features
	if err != nil || json.Unmarshal(out, &known) != nil {
		return f, ctx.Err()
	}
	f.OCIVersion = accepted(known.OCIVersionMax)
	has := func(option string) bool { return slices.Contains(known.MountOptions, option) }
	f.RecursiveReadOnly = has("rro")
	f.BindOptions = has("noexec") && has("nodev") && has("nosuid")
	if l := known.Linux; l != nil {
		f.NetDevices = l.NetDevices != nil && l.NetDevices.Enabled != nil && *l.NetDevices.Enabled
		f.UserNamespaces = slices.Contains(l.Namespaces, "user")
		f.IDMap = l.MountExtensions != nil && l.MountExtensions.IDMap != nil && l.MountExtensions.IDMap.Enabled != nil && *l.MountExtensions.IDMap.Enabled
	}
	return f, nil
}

// accepted is the lower of what the runtime accepts and what our types describe. A
// development version ("1.0.2-dev") sorts below its release, which it may refuse.
func accepted(maximum string) string {
	var ours, theirs [3]int
	var rest string
	if _, err := fmt.Sscanf(specs.Version, "%d.%d.%d", &ours[0], &ours[1], &ours[2]); err != nil {
		return oldestOCIVersion
	}
	n, _ := fmt.Sscanf(maximum, "%d.%d.%d%s", &theirs[0], &theirs[1], &theirs[2], &rest)
	if n < len(theirs) {
		return oldestOCIVersion
	}
	for i := range ours {
		if ours[i] != theirs[i] {
			if ours[i] < theirs[i] {
				return specs.Version
			}
			return maximum
		}
	}
	return maximum
}

// Delete kills what is left of the container and removes the runtime's state and
// cgroup. nil when the runtime does not know it, which its state directory tells
// without an exec. For a container that has ended a plain delete is enough: runc's forced
// one waits 100 ms, be there something to kill or not.
func (r Runtime) Delete(ctx context.Context, id string) error {
	if known, err := r.Knows(id); err != nil || !known {
		return err
	}
	if !r.Sandbox {
		if _, err := run(ctx, nil, r.Path, append(r.GlobalArgs(), "delete", id)...); err == nil {
			return nil
		}
	}
	// Where the time is over it does not begin.
	_, err := run(ctx, nil, r.Path, append(r.GlobalArgs(), "delete", "--force", id)...)
	if err != nil && !notFound(err) {
		return fmt.Errorf("runtime delete %s: %w", id, err)
	}
	if r.Sandbox {
		return r.dropLocks(id)
	}
	return nil
}

// dropLocks removes what a runsc leaves that was killed between the two files of its
// state, the last of which the next one does not miss.
func (r Runtime) dropLocks(id string) error {
	entries, err := os.ReadDir(r.Root)
	if err != nil {
		return fmt.Errorf("runtime delete %s: %w", id, err)
	}
	for _, entry := range entries {
		if name := entry.Name(); strings.HasPrefix(name, id+"_sandbox:") && strings.HasSuffix(name, ".lock") {
			if err := os.Remove(filepath.Join(r.Root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("runtime delete %s: %w", id, err)
			}
		}
	}
	return nil
}

// Knows tells whether the runtime has a container of this ID, by its state directory.
func (r Runtime) Knows(id string) (bool, error) {
	if r.Sandbox {
		// ID_sandbox:SANDBOX.state, and .lock beside it.
		entries, err := os.ReadDir(r.Root)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return slices.ContainsFunc(entries, func(f os.DirEntry) bool { return strings.HasPrefix(f.Name(), id+"_sandbox:") }), err
	}
	_, err := os.Stat(filepath.Join(r.Root, id))
	return !errors.Is(err, fs.ErrNotExist), nil
}

// notFound: --force makes runc succeed for an unknown container; crun says this.
func notFound(err error) bool {
	return strings.Contains(err.Error(), "does not exist") || strings.Contains(err.Error(), "No such file or directory")
}

// Update changes the resources of a running container; what is not set stays as it is.
// After an error some of them may have been changed.
func (r Runtime) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	data, err := json.Marshal(resources)
	if err != nil {
		return fmt.Errorf("runtime update %s: %w", id, err)
	}
	// It ends with the daemon, which is a thread for the kernel: the next daemon takes the
	// update back and must not be overtaken.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, err := run(ctx, data, r.Path, append(r.GlobalArgs(), "update", "--resources", "-", id)...); err != nil {
		return fmt.Errorf("runtime update %s: %w", id, err)
	}
	return nil
}

// run starts the runtime with stdin and waits for it. Its stderr becomes the error's text.
func run(ctx context.Context, stdin []byte, path string, args ...string) ([]byte, error) {
	var out, text bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	if stdin != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &text
	// A grandchild may hold the pipes; the answer does not depend on it.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, fmt.Errorf("%w: %s", err, lastLine(text.String()))
	}
	return out.Bytes(), nil
}

// lastLine is where runc and crun put the reason.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
