// Package spec turns what a pod asks for and what the node gives into an OCI
// runtime specification. It is pure: files, devices and users are looked up by the
// caller and come in as values, so that a golden file can hold every result.
package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is what the machine and the daemon's configuration give to every container.
type Node struct {
	// OCIVersion is the newest that the handler's runtime accepts.
	OCIVersion string
	// CgroupV2 selects a private cgroup namespace and the unified resources.
	CgroupV2 bool
	// Capabilities are those the daemon holds in its bounding set, with the CAP_
	// prefix: a container cannot be given more.
	Capabilities []string
	// MinOOMScoreAdj is the lowest value that the daemon may set (proc(5), oom_score_adj).
	MinOOMScoreAdj int64
	// RecursiveReadOnly: the runtime knows the mount option "rro".
	RecursiveReadOnly bool
	// WithoutNodeDevices: privileged containers have no access to devices that they do not ask for.
	WithoutNodeDevices bool
	// IDMap: the runtime can give mounts mappings of their own.
	IDMap bool
	// Hugetlb and Swap: huge pages and swap can be limited.
	Hugetlb, Swap bool
	// Cpuset: CPUs and memory nodes can be chosen.
	Cpuset bool
	// CPUs and MemoryNodes are what the machine has, as lists such as "0-3,8"; "" is not known.
	CPUs, MemoryNodes string
	// AppArmor: the kernel has it enabled.
	AppArmor bool
	// AppArmorProfile is loaded and stands for RuntimeDefault; Unconfined is none by the
	// administrator's will, "" is none since it could not be loaded.
	AppArmorProfile string
	// DefaultCapabilities, with or without the CAP_ prefix, are what a pod adds to and drops
	// from, unless it says ALL.
	DefaultCapabilities []string
	// DefaultEnv are KEY=VALUE pairs that image and pod may override.
	DefaultEnv []string
	// Rlimits for every container.
	Rlimits []specs.POSIXRlimit
	// HardLimits are the daemon's own by their RLIMIT_ name: without CAP_SYS_RESOURCE
	// nobody below it can have more. Those that it may raise are left out.
	HardLimits map[string]uint64
	// PidsLimit is the number of tasks; 0 or less is unlimited.
	PidsLimit int64
	// ReadOnly makes every root file system read-only.
	ReadOnly bool
}

// User is an identity resolved in the image.
type User struct {
	UID, GID uint32
	Groups   []uint32
	// Home becomes $HOME where nothing else sets it.
	Home string
}

// Namespaces are paths to join; "" makes a new one, except where Host says
// that the node's own is kept.
type Namespaces struct {
	Net, IPC, UTS, PID string
	HostNet, HostIPC   bool
	HostUTS, HostPID   bool
	// User is the path of a user namespace, the one that those above belong to, and
	// UIDs and GIDs what it maps, from 0 on; "" is the node's.
	User       string
	UIDs, GIDs specs.LinuxIDMapping
}

// Mount is a mount of the pod whose source has been looked up.
type Mount struct {
	*cri.Mount
	// Source is the host path with its symbolic links resolved.
	Source string
}

// Volume is a directory of the root file system, and the place at which it can be bound.
type Volume struct{ Target, Source string }

// Input is everything Container depends on.
type Input struct {
	Node   Node
	Config *cri.ContainerConfig
	Image  imagespec.ImageConfig
	// Rootfs is the mounted root file system.
	Rootfs      string
	User        User
	Namespaces  Namespaces
	CgroupsPath string
	Hostname    string
	// Files are the pod's own files by the place where a container sees them
	// (/etc/resolv.conf ...). A mount of the pod on the same place wins.
	Files map[string]string
	// Shm is the directory bound at /dev/shm.
	Shm string
	// HostMqueue: the node has a /dev/mqueue, which containers in its IPC namespace see.
	HostMqueue bool
	Mounts     []Mount
	// Volumes are directories of the image that stay writable on a read-only root.
	Volumes []Volume
	// Devices are the pod's devices, and for a privileged container all of the node's.
	Devices []Device
	// SeccompProfile is the text of a Localhost profile, or of the node's own
	// RuntimeDefault; without one RuntimeDefault is the built-in profile.
	SeccompProfile []byte
	// ProcessLabel and MountLabel are SELinux contexts, "" for none.
	ProcessLabel, MountLabel string
	// Annotations are those that the handler may see, and no others: a runtime takes
	// orders from them (CVE-2024-3154).
	Annotations map[string]string
	// Sysctls are set nowhere else; the pod's own are written into its pinned namespaces.
	Sysctls map[string]string
}

// ReadOnlyRoot tells whether the container gets a read-only root file system.
func (in Input) ReadOnlyRoot() bool {
	return in.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs() || in.Node.ReadOnly
}

// Covered tells whether one of the pod's files is on target, or a mount of the pod on it
// or above it.
func (in Input) Covered(target string) bool {
	return in.Files[target] != "" || slices.ContainsFunc(in.Config.GetMounts(), func(m *cri.Mount) bool {
		at := path.Clean(m.GetContainerPath())
		return target == at || strings.HasPrefix(target, at+"/")
	})
}

// Device is a device node with the access that the pod asked for, of "rwm".
type Device struct {
	specs.LinuxDevice
	Access string
	// OfNode: a privileged container has it without asking.
	OfNode bool
}

// Result is the specification, the resources that it puts in force, and what had to be
// taken back from the request, each as a sentence for the log.
type Result struct {
	Spec      *specs.Spec
	Resources *cri.LinuxContainerResources
	Clamped   []string
}

// Container builds the specification. Errors are about the request, never about the node.
func Container(in Input) (Result, error) {
	g, err := generate.New("linux")
	if err != nil {
		return Result{}, fmt.Errorf("oci spec template: %w", err)
	}
	b := &builder{Input: in, g: &g, security: in.Config.GetLinux().GetSecurityContext()}
	for _, step := range []func() error{
		b.checkUsers, b.process, b.capabilities, b.namespaces, b.mounts, b.devices, b.resources, b.paths, b.seccomp, b.apparmor, b.selinux,
	} {
		if err := step(); err != nil {
			return Result{}, err
		}
	}
	return Result{Spec: g.Config, Resources: b.inForce, Clamped: b.clamped}, nil
}

// builder carries the input through the steps of one specification.
type builder struct {
	Input
	g        *generate.Generator
	security *cri.LinuxContainerSecurityContext
	inForce  *cri.LinuxContainerResources
	clamped  []string
}

func (b *builder) privileged() bool { return b.security.GetPrivileged() }

func (b *builder) clamp(format string, args ...any) {
	b.clamped = append(b.clamped, fmt.Sprintf(format, args...))
}

func (b *builder) process() error {
	args, err := commandLine(b.Config, b.Image)
	if err != nil {
		return err
	}
	g := b.g
	g.SetOCIVersion(b.Node.OCIVersion)
	g.Config.Annotations = b.Annotations
	g.SetRootPath(b.Rootfs)
	g.SetRootReadonly(b.ReadOnlyRoot())
	g.SetProcessArgs(args)
	g.SetProcessCwd(WorkingDir(b.Config, b.Image))
	g.SetProcessTerminal(b.Config.GetTty())
	b.user()
	g.SetProcessNoNewPrivileges(b.security.GetNoNewPrivs())
	b.rlimits()
	if b.Hostname != "" && !b.Namespaces.HostUTS && b.Namespaces.UTS == "" {
		g.SetHostname(b.Hostname)
	} else {
		g.RemoveHostname()
	}
	return b.environment()
}

func (b *builder) user() {
	b.g.SetProcessUID(b.User.UID)
	b.g.SetProcessGID(b.User.GID)
	b.g.ClearProcessAdditionalGids()
	for _, gid := range b.User.Groups {
		b.g.AddProcessAdditionalGid(gid)
	}
}

// environment is built from the lowest to the highest authority: node, image, pod.
func (b *builder) environment() error {
	const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	env := []string{defaultPath, "HOSTNAME=" + b.Hostname}
	if b.User.Home != "" {
		env = append(env, "HOME="+b.User.Home)
	}
	if b.Config.GetTty() {
		env = append(env, "TERM=xterm")
	}
	env = append(env, b.Node.DefaultEnv...)
	for _, kv := range b.Image.Env {
		// A runtime in C would see what is before it, and another one refuse the container.
		if strings.Contains(kv, "\x00") {
			return fmt.Errorf("env of the image: %q contains a NUL byte", kv)
		}
		env = append(env, kv)
	}
	for _, kv := range b.Config.GetEnvs() {
		if strings.ContainsAny(kv.GetKey(), "=\x00") || kv.GetKey() == "" {
			return fmt.Errorf("envs: %q is not a name of an environment variable", kv.GetKey())
		}
		if slices.Contains(kv.GetValue(), 0) {
			return fmt.Errorf("envs: the value of %s contains a NUL byte", kv.GetKey())
		}
		if !utf8.Valid(kv.GetValue()) {
			// The field is of bytes, but the specification is JSON, which would replace them.
			return fmt.Errorf("envs: the value of %s is not UTF-8, which an OCI runtime cannot be given: mount it as a file", kv.GetKey())
		}
		env = append(env, kv.GetKey()+"="+string(kv.GetValue()))
	}
	b.g.Config.Process.Env = lastWins(env)
	return nil
}

// lastWins keeps the last value of each name at the place of its first.
func lastWins(env []string) []string {
	at := make(map[string]int, len(env))
	var out []string
	for _, kv := range env {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			continue
		}
		if i, seen := at[name]; seen {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

// commandLine follows ContainerConfig.command and .args: the pod's command replaces
// the image's entrypoint and with it the image's cmd; the pod's args replace the cmd.
func commandLine(config *cri.ContainerConfig, image imagespec.ImageConfig) ([]string, error) {
	command, args := config.GetCommand(), config.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	line := slices.Concat(command, args)
	if len(line) == 0 || line[0] == "" {
		return nil, fmt.Errorf("command: neither the container nor its image %q names one", config.GetImage().GetImage())
	}
	for field, words := range map[string][]string{"command": command, "args": args} {
		if i := slices.IndexFunc(words, func(word string) bool { return strings.Contains(word, "\x00") }); i >= 0 {
			return nil, fmt.Errorf("%s: word %d contains a NUL byte", field, i)
		}
	}
	return line, nil
}

// WorkingDir is where the first process starts: the pod's choice, the image's, or "/".
func WorkingDir(config *cri.ContainerConfig, image imagespec.ImageConfig) string {
	for _, dir := range []string{config.GetWorkingDir(), image.WorkingDir} {
		if dir != "" {
			return path.Join("/", dir)
		}
	}
	return "/"
}

func (b *builder) namespaces() error {
	b.g.ClearLinuxNamespaces()
	b.users()
	type namespace struct {
		kind specs.LinuxNamespaceType
		path string
		host bool
	}
	n := b.Namespaces
	for _, ns := range []namespace{
		{specs.MountNamespace, "", false},
		{specs.NetworkNamespace, n.Net, n.HostNet},
		{specs.IPCNamespace, n.IPC, n.HostIPC},
		{specs.UTSNamespace, n.UTS, n.HostUTS},
		{specs.PIDNamespace, n.PID, n.HostPID},
		// A privileged container manages the node's cgroups and has to see them.
		{specs.CgroupNamespace, "", !b.Node.CgroupV2 || b.privileged()},
	} {
		if ns.host {
			continue
		}
		b.g.Config.Linux.Namespaces = append(b.g.Config.Linux.Namespaces, specs.LinuxNamespace{Type: ns.kind, Path: ns.path})
	}
	b.g.ClearLinuxSysctl()
	for k, v := range b.Sysctls {
		b.g.AddLinuxSysctl(k, v)
	}
	return nil
}

// users joins the user namespace. The mappings repeat what it has: runtimes want to know
// the IDs of its root, and not all of them look.
func (b *builder) users() {
	n, l := b.Namespaces, b.g.Config.Linux
	if n.User == "" {
		return
	}
	l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: n.User})
	l.UIDMappings, l.GIDMappings = []specs.LinuxIDMapping{n.UIDs}, []specs.LinuxIDMapping{n.GIDs}
}

func (b *builder) checkUsers() error { return b.Namespaces.CheckUser(b.User) }

// CheckUser refuses who is nobody in the user namespace.
func (n Namespaces) CheckUser(u User) error {
	if n.User == "" {
		return nil
	}
	if u.UID >= n.UIDs.Size {
		return fmt.Errorf("user %d: the pod's user namespace has the IDs below %d only", u.UID, n.UIDs.Size)
	}
	for _, gid := range append([]uint32{u.GID}, u.Groups...) {
		if gid >= n.GIDs.Size {
			return fmt.Errorf("group %d: the pod's user namespace has the IDs below %d only", gid, n.GIDs.Size)
		}
	}
	return nil
}

// paths hides parts of /proc and /sys as the pod says. Without a security context
// there is nobody who chose to see them, so the safe list stands.
func (b *builder) paths() error {
	l := b.g.Config.Linux
	switch {
	case b.privileged():
		l.MaskedPaths, l.ReadonlyPaths = nil, nil
	case b.security == nil:
		l.MaskedPaths, l.ReadonlyPaths = safeMasked(), safeReadonly()
	default:
		l.MaskedPaths, l.ReadonlyPaths = b.security.GetMaskedPaths(), b.security.GetReadonlyPaths()
	}
	return nil
}

// safeMasked and safeReadonly are the lists of the kubelet's procMount "Default".
func safeMasked() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

func safeReadonly() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
