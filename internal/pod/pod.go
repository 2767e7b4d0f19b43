// Package pod holds the values of the daemon: what a sandbox and a container
// are, which transitions they may make, and the names that follow from their IDs.
//
// Nothing here does I/O. A value is replaced, never changed: Step returns the next
// one, so a snapshot that a reader holds stays as it was.
package pod

import (
	"encoding/json"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxPhase is where a sandbox stands in its life.
//
//	Creating -> Ready -> NotReady -> Removing -> Gone
//	   any of the first three may go to Removing; Creating never becomes NotReady,
//	   since a sandbox that was never ready has nothing to tell.
type SandboxPhase string

const (
	// SandboxCreating: the record exists, its resources may exist. Not listed.
	SandboxCreating SandboxPhase = "creating"
	// SandboxReady: namespaces, network and, where one is needed, the pause process are up.
	SandboxReady SandboxPhase = "ready"
	// SandboxNotReady: it is stopped or being stopped, or its namespaces are gone (reboot,
	// pause process died).
	SandboxNotReady SandboxPhase = "notready"
	// SandboxRemoving: teardown has begun and is the only thing that may still happen.
	SandboxRemoving SandboxPhase = "removing"
	// SandboxGone: nothing is left, the record is deleted.
	SandboxGone SandboxPhase = "gone"
)

// ContainerPhase is where a container stands in its life.
//
//	Creating -> Created -> Running -> Exited -> Removing -> Gone
//	            Created -> Exited (its start failed, or the node rebooted)
//	   every phase but Gone may go to Removing.
type ContainerPhase string

const (
	// ContainerCreating: the record exists, its layer may exist. Not listed.
	ContainerCreating ContainerPhase = "creating"
	// ContainerCreated: layer and bundle are there; no process has been started.
	ContainerCreated ContainerPhase = "created"
	// ContainerRunning: the monitor has told the pid of its first process.
	ContainerRunning ContainerPhase = "running"
	// ContainerExited: the monitor has told the exit, or proved that there is none to tell.
	ContainerExited ContainerPhase = "exited"
	// ContainerRemoving: teardown has begun.
	ContainerRemoving ContainerPhase = "removing"
	// ContainerGone: nothing is left, the record is deleted.
	ContainerGone ContainerPhase = "gone"
)

// Reasons that ContainerStatus.reason may carry. OOMKilled is prescribed by the
// proto (ContainerStatus.reason); the kubelet knows Completed, Error and StartError.
const (
	ReasonCompleted    = "Completed"
	ReasonError        = "Error"
	ReasonOOMKilled    = "OOMKilled"
	ReasonStartError   = "StartError"
	ReasonMonitorLost  = "MonitorLost"
	ReasonNodeRebooted = "NodeRebooted"
)

// Exit codes that do not come from the container itself.
const (
	// ExitStartFailed is what shells use for a command that could not be run.
	ExitStartFailed = 128
	// ExitUnknown stands where no witness saw the end.
	ExitUnknown = 255
)

// Handler is an OCI runtime as it was when the pod was made. It is kept in the
// record, so that a pod outlives the removal of its handler from the configuration.
type Handler struct {
	// Name as the pod asked for it; "" is the default handler.
	Name string `json:"name"`
	// Path of the runtime's binary.
	Path string `json:"path"`
	// Root is the directory of the runtime's own state (its --root).
	Root string `json:"root"`
	// Systemd: the runtime is run with --systemd-cgroup.
	Systemd bool `json:"systemd,omitempty"`
	// Args come before each sub-command of the runtime.
	Args []string `json:"args,omitempty"`
	// Sandbox: the runtime runs the pod's containers in a sandbox of its own, which the
	// first one makes: the pause process.
	Sandbox bool `json:"sandbox,omitempty"`
}

// Network is what CNI made for a sandbox: enough to undo it without asking anyone.
type Network struct {
	// Name of the CNI network.
	Name string `json:"name,omitempty"`
	// Config is the network list that ADD was called with.
	Config json.RawMessage `json:"config,omitempty"`
	// Result is what ADD returned; empty while it runs.
	Result json.RawMessage `json:"result,omitempty"`
	// IPs of the pod, the first one being the primary.
	IPs []string `json:"ips,omitempty"`
}

// Process is a process by an identity that survives the reuse of its pid.
type Process struct {
	Pid int `json:"pid"`
	// StartTicks is field 22 of /proc/<pid>/stat.
	StartTicks uint64 `json:"startTicks"`
}

// Sandbox is one pod sandbox. Config is shared between copies and never written.
type Sandbox struct {
	ID    string
	Phase SandboxPhase
	// Config as the request brought it, byte for byte what PodSandboxStatus returns.
	Config  *cri.PodSandboxConfig
	Handler Handler
	// CreatedAt in nanoseconds since the epoch.
	CreatedAt int64
	// BootID of the boot in which its namespaces were made.
	BootID string
	// StopRequested is set before anything of the sandbox is stopped and cleared when all
	// of it is: whoever finds it after a crash goes on.
	StopRequested bool
	// Network is set before CNI ADD begins and cleared when DEL has succeeded.
	Network *Network
	// Cgroups are the parent directories made for this pod because nobody had made them.
	Cgroups []string
	// ProcessLabel and MountLabel are the SELinux contexts of the pod's containers and of
	// their files, and its hold on their level; "" without SELinux.
	ProcessLabel, MountLabel string
	// Pause is the first process of the pod's shared PID namespace, if it has one.
	Pause *Process
	// Overhead and Resources are what the client says of the pod as a whole: those of
	// Config until UpdatePodSandboxResources. The pod's cgroup is the client's own.
	Overhead, Resources *cri.LinuxContainerResources
}

// HostNetwork tells whether the pod lives in the node's network namespace.
func (s Sandbox) HostNetwork() bool { return s.namespaces().GetNetwork() == cri.NamespaceMode_NODE }

// HostIPC tells whether the pod lives in the node's IPC namespace.
func (s Sandbox) HostIPC() bool { return s.namespaces().GetIpc() == cri.NamespaceMode_NODE }

// SharesPID tells whether the containers share one PID namespace, which then needs a pause process.
func (s Sandbox) SharesPID() bool { return s.namespaces().GetPid() == cri.NamespaceMode_POD }

// NeedsPause tells whether the pod has the built-in pause process: as the first one of a
// shared PID namespace, or as what makes the runtime's own sandbox.
func (s Sandbox) NeedsPause() bool { return s.SharesPID() || s.Handler.Sandbox }

// Users of the pod's processes. The record has only what UsersOf has taken.
func (s Sandbox) Users() Users {
	u, err := UsersOf(s.namespaces())
	if err != nil {
		return Users{}
	}
	return u
}

func (s Sandbox) namespaces() *cri.NamespaceOption {
	return s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// IPs of the pod, primary first; empty on the host network. One that is not ready has
// none for anybody, although they may not have been given back yet.
func (s Sandbox) IPs() []string {
	if s.Network == nil || s.Phase != SandboxReady {
		return nil
	}
	return s.Network.IPs
}

// Container is one container of a sandbox. Config is shared between copies and never written.
type Container struct {
	ID        string
	SandboxID string
	Phase     ContainerPhase
	Config    *cri.ContainerConfig
	Handler   Handler
	// CgroupParent is the sandbox's, kept here so that teardown needs this record alone.
	CgroupParent string
	// ImageID is the image's ID in the store; PullImage returned the same.
	ImageID string
	// ImageName is what people call the image: a name, where there is one.
	ImageName string
	// ImageRef is the digested reference, or the ID where the image has no digest.
	ImageRef string
	// ImageMounts are the images among the mounts of Config, in its order.
	ImageMounts []ImageMount
	// Rootfs is the mounted root file system; valid in the boot of BootID.
	Rootfs string
	BootID string
	// LogPath is absolute; empty when the container writes no log.
	LogPath string
	// User is what the first process starts as, resolved in the image.
	User *cri.LinuxContainerUser
	// StopSignal by number.
	StopSignal int
	// Times in nanoseconds since the epoch; 0 where it has not happened.
	CreatedAt, StartedAt, FinishedAt int64
	// StartRequested is set before the monitor is spawned: from then on there may be processes.
	StartRequested bool
	Init           Process
	ExitCode       int32
	Signal         int
	OOMKilled      bool
	Reason         string
	Message        string
	// LogDropped counts the bytes of output that could not be written to the log.
	LogDropped uint64
	// Resources are those in force: Config's until UpdateContainerResources.
	Resources *cri.LinuxContainerResources
	// Update is what an update under way wants to put in force; nil without one. It is
	// recorded first, so that whoever finds it after a crash takes back what there is of it.
	Update *cri.LinuxContainerResources
}

// ImageMount is a mount of Config whose source is an image.
type ImageMount struct {
	// Mount is its index in Config.Mounts.
	Mount int `json:"mount"`
	// ImageID and ImageRef are what Container has for its own image.
	ImageID  string `json:"imageID"`
	ImageRef string `json:"imageRef"`
}

// SandboxKey is what makes a sandbox unique for the kubelet (PodSandboxMetadata).
type SandboxKey struct {
	UID, Namespace, Name string
	Attempt              uint32
}

// KeyOfSandbox returns the key of the metadata.
func KeyOfSandbox(m *cri.PodSandboxMetadata) SandboxKey {
	return SandboxKey{UID: m.GetUid(), Namespace: m.GetNamespace(), Name: m.GetName(), Attempt: m.GetAttempt()}
}

func (k SandboxKey) String() string {
	return fmt.Sprintf("pod %s/%s uid %s attempt %d", k.Namespace, k.Name, k.UID, k.Attempt)
}

// ContainerKey is unique within a node: name and attempt within one sandbox (ContainerMetadata).
type ContainerKey struct {
	SandboxID, Name string
	Attempt         uint32
}

// KeyOfContainer returns the key of a container in a sandbox.
func KeyOfContainer(sandboxID string, m *cri.ContainerMetadata) ContainerKey {
	return ContainerKey{SandboxID: sandboxID, Name: m.GetName(), Attempt: m.GetAttempt()}
}

func (k ContainerKey) String() string {
	return fmt.Sprintf("container %s attempt %d of sandbox %s", k.Name, k.Attempt, k.SandboxID)
}
