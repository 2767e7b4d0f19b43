package pod

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idBytes makes IDs of 64 hex digits, the length every CRI client expects.
const idBytes = 32

// NewID returns a fresh random ID. It cannot fail: crypto/rand ends the process
// when the kernel has no randomness.
func NewID() string {
	var b [idBytes]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ValidID tells whether s can be an ID, and so a file name.
func ValidID(s string) bool {
	if len(s) != 2*idBytes {
		return false
	}
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return true
}

// Layout computes every path of an object from its ID, so that teardown needs no
// memory of what was done.
type Layout struct {
	// State is on disk and survives a reboot; Run is on tmpfs and must not.
	State, Run string
}

// SandboxRecords is the directory of the sandboxes' records.
func (l Layout) SandboxRecords() string { return filepath.Join(l.State, "pods") }

// ContainerRecords is the directory of the containers' records.
func (l Layout) ContainerRecords() string { return filepath.Join(l.State, "containers") }

// Quarantine is where records go that cannot be read.
func (l Layout) Quarantine() string { return filepath.Join(l.State, "quarantine") }

// SandboxDirs is the parent of all SandboxDir.
func (l Layout) SandboxDirs() string { return filepath.Join(l.Run, "pods") }

// SandboxDir holds a pod's namespaces, its /dev/shm and the files that its containers share.
func (l Layout) SandboxDir(id string) string { return filepath.Join(l.SandboxDirs(), id) }

// NamespaceDir holds the pinned namespaces of a pod.
func (l Layout) NamespaceDir(id string) string { return filepath.Join(l.SandboxDir(id), "ns") }

// Namespace is the file that pins one namespace: user, net, ipc, uts, or the shared pid.
func (l Layout) Namespace(id, kind string) string { return filepath.Join(l.NamespaceDir(id), kind) }

// Shm is the mount point of a pod's /dev/shm.
func (l Layout) Shm(id string) string { return filepath.Join(l.SandboxDir(id), "shm") }

// ContainerDirs is the parent of all ContainerDir.
func (l Layout) ContainerDirs() string { return filepath.Join(l.Run, "containers") }

// ContainerDir is a container's bundle; its monitor's socket and exit record are there too.
// A pause process has the one of its sandbox's ID.
func (l Layout) ContainerDir(id string) string { return filepath.Join(l.ContainerDirs(), id) }

// Nothing is what stands for the root file system of a pod without a process: "diff" in
// it, where cAdvisor looks for what was written, is empty.
func (l Layout) Nothing() string { return filepath.Join(l.Run, "nothing") }

// InfraName is the name by which the kubelet and cAdvisor know what stands for a whole
// pod (k8s.io/kubernetes/pkg/kubelet/types: PodInfraContainerName).
const InfraName = "POD"

// KubernetesName is the name that a pod's container, or InfraName, has in dashboards since Docker.
func KubernetesName(container string, box *cri.PodSandboxMetadata, attempt uint32) string {
	return fmt.Sprintf("k8s_%s_%s_%s_%s_%d", container, box.GetName(), box.GetNamespace(), box.GetUid(), attempt)
}

// Rootfs is where the root file system of a process in a user namespace is bound, since
// the storage's own directories are closed to the root of that namespace.
func (l Layout) Rootfs(id string) string { return filepath.Join(l.ContainerDir(id), "rootfs") }

// TargetNamespace is the file that pins the PID namespace of another container, which
// this one is to join.
func (l Layout) TargetNamespace(id string) string { return filepath.Join(l.ContainerDir(id), "pidns") }

// MountDir holds what is mounted for a container alone, to be bound into it: all of it
// can be unmounted without knowing what it is.
func (l Layout) MountDir(id string) string { return filepath.Join(l.ContainerDir(id), "mounts") }

// ImageMount is where the image of the container's nth mount is mounted.
func (l Layout) ImageMount(id string, n int) string {
	return filepath.Join(l.MountDir(id), "image-"+strconv.Itoa(n))
}

// VolumeMount is where the nth volume that the image declares is mounted.
func (l Layout) VolumeMount(id string, n int) string {
	return filepath.Join(l.MountDir(id), "volume-"+strconv.Itoa(n))
}

// DeviceMount is a file system with the device nodes of a container in a user namespace.
func (l Layout) DeviceMount(id string) string { return filepath.Join(l.MountDir(id), "devices") }

// ImageLayer names the layer by which the container's nth mount shows an image.
func ImageLayer(id string, n int) string { return id + "-image-" + strconv.Itoa(n) }

// LayerOwner is the ID of the container that a layer belongs to.
func LayerOwner(layer string) string {
	id, _, _ := strings.Cut(layer, "-")
	return id
}

// PauseRootfs is the read-only root file system of the built-in pause process.
func (l Layout) PauseRootfs() string { return filepath.Join(l.Run, "pause") }

// RuntimeRoot is the default state directory of the OCI runtime of a handler.
func (l Layout) RuntimeRoot(handler string) string { return filepath.Join(l.Run, "oci", handler) }
