package server

import (
	"encoding/json"
	"maps"
	"net/http"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/pod"
)

// containerNameLabel is the label of a container's name.
const containerNameLabel = "io.kubernetes.container.name"

// NodeInfo is the answer to GET /info. Where the socket's path ends with
// run/crio/crio.sock, the kubelet's cAdvisor asks for it, and labels the file systems of
// images and containers by it (github.com/google/cadvisor/container/crio: Info).
type NodeInfo struct {
	StorageDriver string `json:"storage_driver"`
	StorageRoot   string `json:"storage_root"`
	StorageImage  string `json:"storage_image"` // where images are apart from it
	CgroupDriver  string `json:"cgroup_driver"`
}

// ContainerInfo is the answer to GET /containers/ID, which cAdvisor asks for each cgroup
// that is called crio-ID (github.com/google/cadvisor/container/crio: ContainerInfo).
type ContainerInfo struct {
	Name string `json:"name"`
	// Pid is 0 when nothing runs, and cAdvisor asks again later.
	Pid   int    `json:"pid"`
	Image string `json:"image"`
	// CreatedTime in nanoseconds since the epoch.
	CreatedTime int64             `json:"created_time"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	LogPath     string            `json:"log_path"`
	// Root is the mounted root file system; beside it is the "diff" that cAdvisor measures.
	Root    string   `json:"root"`
	Sandbox string   `json:"sandbox"`
	IPs     []string `json:"ip_addresses"`
}

func (s *Server) nodeInfo(w http.ResponseWriter, _ *http.Request) {
	driver, root, images := s.images.Place()
	s.writeJSON(w, NodeInfo{StorageDriver: driver, StorageRoot: root, StorageImage: images, CgroupDriver: s.engine.Cgroups.Driver()})
}

func (s *Server) containerInfo(w http.ResponseWriter, r *http.Request) {
	info, err := s.inspect(r.PathValue("id"))
	switch {
	case err == nil:
		s.writeJSON(w, info)
	case fault.Of(err) == fault.NotFound:
		http.Error(w, err.Error(), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// inspect finds a container or a sandbox.
func (s *Server) inspect(id string) (ContainerInfo, error) {
	v, err := s.engine.Container(id)
	if fault.Of(err) == fault.NotFound {
		box, err := s.engine.Sandbox(id)
		if err != nil {
			return ContainerInfo{}, err
		}
		return s.inspectSandbox(box), nil
	}
	if err != nil {
		return ContainerInfo{}, err
	}
	box, err := s.engine.Sandbox(v.SandboxID)
	if err != nil {
		return ContainerInfo{}, err
	}
	info := ContainerInfo{
		Name:  pod.KubernetesName(v.Config.GetMetadata().GetName(), box.Config.GetMetadata(), v.Config.GetMetadata().GetAttempt()),
		Image: v.ImageName, CreatedTime: v.CreatedAt, Labels: labelled(v.Config.GetLabels(), nil), Annotations: v.Config.GetAnnotations(),
		LogPath: v.LogPath, Root: v.Rootfs, Sandbox: box.ID, IPs: box.IPs(),
	}
	if v.Phase == pod.ContainerRunning {
		info.Pid = v.Init.Pid
	}
	return info, nil
}

// inspectSandbox answers for the container that other runtimes have in each pod, to
// which cAdvisor gives the network counters of the pod: they are those of the pause
// process, or else of any process in the pod's network.
func (s *Server) inspectSandbox(v *pod.Sandbox) ContainerInfo {
	info := ContainerInfo{
		Name: pod.KubernetesName(pod.InfraName, v.Config.GetMetadata(), v.Config.GetMetadata().GetAttempt()), CreatedTime: v.CreatedAt,
		Labels: labelled(v.Config.GetLabels(), map[string]string{containerNameLabel: pod.InfraName}), Annotations: v.Config.GetAnnotations(),
		Root: s.engine.Layout.Nothing(), Sandbox: v.ID, IPs: v.IPs(),
	}
	if v.Pause != nil {
		info.Pid = v.Pause.Pid
	}
	for _, c := range s.engine.ContainersOf(v.ID) {
		if info.Pid == 0 && c.Phase == pod.ContainerRunning {
			info.Pid = c.Init.Pid
		}
	}
	return info
}

// labelled joins labels. The result is never nil: cAdvisor writes into what it decodes.
func labelled(labels, more map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, labels)
	maps.Copy(all, more)
	return all
}

func (s *Server) writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.Log.Debug("http", "err", err)
	}
}
