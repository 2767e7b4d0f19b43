package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A daemon that is killed while it makes pods with user namespaces leaves nothing, and
// takes nothing from the image, whose layers are mounted in the container's for a moment.
func TestKilledAmongUserNamespacesNothingIsLeft(t *testing.T) {
	n, image := readyNode(t, conformOptions(t, "runc"))
	users := usersFrom(1 << 20)
	n.killedAtRandom(func() {
		n.churnOf(image, podUsers(users), containerUsers(users, cri.NamespaceMode_CONTAINER))
	})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	if got := string(n.exec(id, "stat", "-c", "%u:%g", "/bin/busybox").GetStdout()); got != "0:0\n" {
		t.Errorf("the image's file belongs to %q", got)
	}
}

// The next daemon finds pod and containers with the users that they had.
func TestRestartKeepsUserNamespaces(t *testing.T) {
	n, image := readyNode(t, conformOptions(t, "crun"))
	users := usersFrom(1 << 20)
	pod := n.podConfig()
	podUsers(users)(pod)
	pod.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "999")
	containerUsers(users, cri.NamespaceMode_POD)(config)
	id := n.runContainer(box, pod, config)
	before, beforeBox := n.container(id), n.sandbox(box)
	n.kill()
	n.start()
	if after, afterBox := n.container(id), n.sandbox(box); !proto.Equal(before, after) || !proto.Equal(beforeBox, afterBox) {
		t.Errorf("before %v %v\nafter  %v %v", before, beforeBox, after, afterBox)
	}
	if got := string(n.exec(id, shell("touch /new && echo ok > /dev/stdout")...).GetStdout()); got != "ok\n" {
		t.Errorf("exec: %q", got)
	}
	another := n.containerConfig(image, "sleep", "999")
	containerUsers(users, cri.NamespaceMode_POD)(another)
	n.runContainer(box, pod, another)
	if pids := string(n.exec(id, "ps").GetStdout()); strings.Count(pids, "sleep 999") != 2 {
		t.Errorf("a container of the next daemon is elsewhere:\n%s", pids)
	}
}

// What is the daemon's own is closed to others (CVE-2024-25621). The root of a user
// namespace passes two directories that tell nobody what is in them, and its own bundle.
func TestDirectoriesAreClosed(t *testing.T) {
	n, image := readyNode(t, conformOptions(t, "runc"))
	const closed, bundle, passed = 0o700, 0o710, 0o711
	users := usersFrom(1 << 20)
	plain, mapped := n.podConfig(), n.podConfig()
	podUsers(users)(mapped)
	plainBox := n.runPod(plain)
	plainID := n.runContainer(plainBox, plain, n.containerConfig(image, "sleep", "99"))
	n.wantModes(map[string]fs.FileMode{"run": closed, "run/pods": closed, "run/containers": closed, "run/oci": closed, "state": closed})

	mappedBox := n.runPod(mapped)
	config := n.containerConfig(image, "sleep", "99")
	containerUsers(users, cri.NamespaceMode_CONTAINER)(config)
	mappedID := n.runContainer(mappedBox, mapped, config)
	n.wantModes(map[string]fs.FileMode{
		"run": passed, "run/containers": passed, "run/containers/" + mappedID: bundle, "run/containers/" + plainID: closed,
		"run/pods": closed, "run/pods/" + mappedBox: closed, "run/pods/" + plainBox: closed,
		"run/oci": closed, "state": closed, "state/pods": closed, "state/containers": closed, "storage": closed,
		"run/containers/" + mappedID + "/config.json": 0o600,
	})
	(&conform{node: n}).wantOwner(n.path("run/containers/"+mappedID), 0, 1<<20+mappedLength)
}

// wantModes checks permissions by path below the node's directory.
func (n *node) wantModes(want map[string]fs.FileMode) {
	n.t.Helper()
	for name, mode := range want {
		info, err := os.Lstat(n.path(name))
		if err != nil {
			n.t.Error(err)
			continue
		}
		if got := info.Mode().Perm(); got != mode {
			n.t.Errorf("%s has mode %o, want %o", name, got, mode)
		}
	}
}

// Runtimes that cannot are told from those that can, and what they cannot is refused by name.
func TestOldRuntimesAndUserNamespaces(t *testing.T) {
	old := filepath.Join(t.TempDir(), "runc")
	// A runc without the features command: crun 1.8 is one in this.
	script := "#!/bin/sh\n[ \"$1\" = features ] && exit 1\nexec " + runtimePath(t, "runc") + " \"$@\"\n"
	// One that has user namespaces, but no idmapped mounts: runc 1.1 is one.
	older := filepath.Join(t.TempDir(), "runc")
	without := "#!/bin/sh\n[ \"$1\" = features ] && echo '{\"ociVersionMax\":\"1.0.2\",\"linux\":{\"namespaces\":[\"user\"]}}' && exit\nexec " + runtimePath(t, "runc") + " \"$@\"\n"
	for path, text := range map[string]string{old: script, older: without} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o := conformOptions(t, "runc")
	o.conf += fmt.Sprintf("[crio.runtime.runtimes.none]\nruntime_path = %q\n[crio.runtime.runtimes.unmapped]\nruntime_path = %q\n", old, older)
	n, image := readyNode(t, o)
	// It stays with its first container, as that of the default handler has.
	if err := os.MkdirAll(n.path("run/oci/unmapped"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.before = n.settled()
	users := usersFrom(1 << 20)
	pod := n.podConfig()
	podUsers(users)(pod)
	_, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: "none"})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `userns_options: the runtime handler "none"`) {
		t.Errorf("a runtime without user namespaces: %v", err)
	}
	a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: "unmapped"})
	if err != nil {
		t.Fatal(err)
	}
	config := n.containerConfig(image, "sleep", "99")
	containerUsers(users, cri.NamespaceMode_CONTAINER)(config)
	n.runContainer(a.GetPodSandboxId(), pod, config)
	config.Metadata.Attempt++
	config.Mounts = []*cri.Mount{{HostPath: t.TempDir(), ContainerPath: "/m", UidMappings: users.Uids, GidMappings: users.Gids}}
	_, err = n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: a.GetPodSandboxId(), Config: config, SandboxConfig: pod})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "uidMappings of /m: the runtime handler does not support") {
		t.Errorf("a runtime without idmapped mounts: %v", err)
	}
	answer, err := n.Status(n.ctx(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range answer.GetRuntimeHandlers() {
		if want := h.GetName() != "none" && h.GetName() != "unmapped"; h.GetFeatures().GetUserNamespaces() != want {
			t.Errorf("handler %q tells user_namespaces %v", h.GetName(), !want)
		}
	}
}
