package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountHere mounts in the tests' own namespace, and unmounts at the end.
func mountHere(t *testing.T, source, target, kind string, flags uintptr) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func propagation(t *testing.T, target string, flag uintptr) {
	t.Helper()
	if err := unix.Mount("", target, "", flag|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
}

const (
	private       = cri.MountPropagation_PROPAGATION_PRIVATE
	fromNode      = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bidirectional = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

// Mount.propagation: what is mounted on the node later appears inside, or not, and for
// BIDIRECTIONAL what the container mounts appears on the node.
func TestMountPropagation(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "shared")
	mountHere(t, "node", shared, "tmpfs", 0)
	propagation(t, shared, unix.MS_SHARED)
	slave := filepath.Join(t.TempDir(), "slave")
	mountHere(t, shared, slave, "", unix.MS_BIND)
	propagation(t, slave, unix.MS_SLAVE)
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	pod.Linux.SecurityContext.Privileged = true
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	config.Linux.SecurityContext.Privileged = true
	config.Mounts = []*cri.Mount{
		{HostPath: shared, ContainerPath: "/private", Propagation: private},
		{HostPath: shared, ContainerPath: "/told", Propagation: fromNode},
		{HostPath: slave, ContainerPath: "/slave", Propagation: fromNode},
		{HostPath: shared, ContainerPath: "/both", Propagation: bidirectional},
	}
	id := n.runContainer(box, pod, config)
	seen := func(path string, want bool) {
		t.Helper()
		out := string(n.exec(id, "cat", "/proc/self/mountinfo").GetStdout())
		if strings.Contains(out, " "+path+" ") != want {
			t.Errorf("%s is mounted in the container: %t, want %t\n%s", path, !want, want, out)
		}
	}
	mountHere(t, "later", shared+"/later", "tmpfs", 0)
	for path, want := range map[string]bool{"/private/later": false, "/told/later": true, "/slave/later": true, "/both/later": true} {
		seen(path, want)
	}
	onNode := func(path string) bool {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(data), " "+path+" ")
	}
	for path, want := range map[string]bool{"private": false, "told": false, "both": true} {
		got := n.exec(id, shell(fmt.Sprintf("mkdir -p /%s/of-%s && mount -t tmpfs inner /%s/of-%s", path, path, path, path))...)
		if got.GetExitCode() != 0 {
			t.Fatalf("mount in /%s: %s", path, got.GetStderr())
		}
		if reached := onNode(shared + "/of-" + path); reached != want {
			t.Errorf("what is mounted in /%s reaches the node: %t, want %t", path, reached, want)
		}
	}
	n.exec(id, "umount", "/both/of-both")
	if onNode(shared + "/of-both") {
		t.Error("what was unmounted in the container is still mounted on the node")
	}
}

// The source's own mount decides, not one whose path begins alike; the refusal says
// which mount it is and what to do.
func TestMountPropagationNeedsTheSourcesMount(t *testing.T) {
	dir := t.TempDir()
	n, image := readyNode(t, options{})
	alike, longer := filepath.Join(dir, "a"), filepath.Join(dir, "ab")
	mountHere(t, "alike", alike, "tmpfs", 0)
	propagation(t, alike, unix.MS_SHARED)
	mountHere(t, "longer", longer, "tmpfs", 0)
	slave := filepath.Join(dir, "slave")
	mountHere(t, alike, slave, "", unix.MS_BIND)
	propagation(t, slave, unix.MS_SLAVE)
	if err := os.Mkdir(longer+"/in", 0o755); err != nil {
		t.Fatal(err)
	}
	pod := n.podConfig()
	box := n.runPod(pod)
	for _, tt := range []struct {
		source      string
		propagation cri.MountPropagation
		refused     string
	}{
		{alike, fromNode, ""},
		{alike, bidirectional, ""},
		{slave, fromNode, ""},
		{slave, bidirectional, "is on the mount " + slave + ", which is not shared: run mount --make-rshared " + slave},
		{longer + "/in", private, ""},
		{longer + "/in", fromNode, "is on the mount " + longer + ", which is not shared or a slave: run mount --make-rshared " + longer},
		{longer + "/in", bidirectional, "is on the mount " + longer + ", which is not shared: run mount --make-rshared " + longer},
	} {
		config := n.containerConfig(image, "true")
		config.Mounts = []*cri.Mount{{HostPath: tt.source, ContainerPath: "/data", Propagation: tt.propagation}}
		_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		switch {
		case tt.refused == "" && err != nil:
			t.Errorf("%s of %s: %v", tt.propagation, tt.source, err)
		case tt.refused != "" && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), tt.refused)):
			t.Errorf("%s of %s: %v, want %q", tt.propagation, tt.source, err, tt.refused)
		}
	}
}

// Mount.mount_options, as RuntimeFeatures.mount_options promises them.
func TestMountOptionsHaveTheirEffect(t *testing.T) {
	n, image := readyNode(t, options{})
	s, err := n.Status(n.ctx(), &cri.StatusRequest{})
	if err != nil || !s.GetFeatures().GetMountOptions() {
		t.Fatalf("mount_options is not promised: %v, %v", s, err)
	}
	host := t.TempDir()
	if err := os.WriteFile(host+"/run", []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(host+"/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(host+"/crontab", busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(host+"/crontab", 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	config.Mounts = []*cri.Mount{{HostPath: host, ContainerPath: "/plain"}}
	for _, option := range []string{"noexec", "nodev", "nosuid"} {
		config.Mounts = append(config.Mounts, &cri.Mount{HostPath: host, ContainerPath: "/" + option, MountOptions: []string{option}})
	}
	config.Mounts = append(config.Mounts, &cri.Mount{HostPath: host, ContainerPath: "/all", Readonly: true, MountOptions: []string{"noexec", "nodev", "nosuid"}})
	id := n.runContainer(box, pod, config)
	for command, want := range map[string]map[string]bool{
		"$at/run":            {"plain": true, "noexec": false, "nodev": true, "nosuid": true, "all": false},
		"head -c 1 $at/zero": {"plain": true, "noexec": true, "nodev": false, "nosuid": true, "all": false},
		"$at/crontab -l 2>&1 | grep -v -e suid -e denied | grep crontab": {"plain": true, "noexec": false, "nodev": true, "nosuid": false, "all": false},
	} {
		for place, works := range want {
			if got := n.exec(id, shell("at=/"+place+"; "+command)...); (got.GetExitCode() == 0) != works {
				t.Errorf("%s in /%s: exit code %d, %s%s", command, place, got.GetExitCode(), got.GetStdout(), got.GetStderr())
			}
		}
	}
}
