package test

import (
	"os"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// privileged_without_host_devices keeps the node's devices from a handler's privileged
// containers, not what the pod asks for, and not from those of another handler.
func TestPrivilegedWithoutHostDevices(t *testing.T) {
	n, image := readyNode(t, options{conf: "[crio.runtime.runtimes.runc]\n[crio.runtime.runtimes.kept]\nruntime_path = \"/usr/sbin/runc\"\nprivileged_without_host_devices = true\n"})
	// A handler's directory is made with its first pod, and stays.
	if err := os.MkdirAll(n.path("run/oci/kept"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.before = n.settled()
	for handler, want := range map[string]string{
		"":     "/dev/kmsg\n/dev/mine\n1:3\nopened\n",
		"kept": "/dev/mine\n1:3\n",
	} {
		pod := n.podConfig()
		pod.Linux.SecurityContext.Privileged = true
		a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		n.made = append(n.made, a.GetPodSandboxId())
		config := n.containerConfig(image, "sleep", "999")
		config.Linux.SecurityContext.Privileged = true
		config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rw"}}
		id := n.runContainer(a.GetPodSandboxId(), pod, config)
		got := string(n.exec(id, shell("ls /dev/kmsg /dev/mine 2>/dev/null; stat -c %t:%T /dev/mine; mknod /k c 1 11; (: > /k) 2>/dev/null && echo opened")...).GetStdout())
		if got != want {
			t.Errorf("handler %q: %q, want %q", handler, got, want)
		}
	}
}
