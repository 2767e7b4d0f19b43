package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the pod asks for is there inside of its container.
func TestPodOptionsReachTheContainer(t *testing.T) {
	n, image := readyNode(t, options{})
	host := filepath.Join(t.TempDir(), "host")
	if err := os.MkdirAll(host+"/inner", 0o755); err != nil {
		t.Fatal(err)
	}
	pod := n.podConfig()
	pod.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"}}
	pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shmmax": "4096"}
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	config.WorkingDir = "/made/for/it"
	config.Envs = []*cri.KeyValue{{Key: "GREETING", Value: []byte("hello world")}}
	config.Mounts = []*cri.Mount{
		{HostPath: host, ContainerPath: "/data"}, {HostPath: host, ContainerPath: "/fixed", Readonly: true},
	}
	config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	config.Linux.SecurityContext.SupplementalGroups = []int64{2000}
	config.Linux.SecurityContext.ReadonlyRootfs = true
	id := n.runContainer(box, pod, config)
	for command, want := range map[string]string{
		"cat /etc/resolv.conf": "search a.test b.test\noptions ndots:5\nnameserver 192.0.2.53\n",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax": "77\n4096\n",
		"pwd; echo $GREETING":                     "/made/for/it\nhello world\n",
		"id -u; id -G":                            "1000\n0 2000\n",
		"touch /x 2>&1":                           "touch: /x: Read-only file system\n",
		"touch /fixed/x 2>&1":                     "touch: /fixed/x: Read-only file system\n",
		"ls /data":                                "inner\n",
		"hostname; cat /etc/hostname":             pod.Hostname + "\n" + pod.Hostname + "\n",
		"grep -c " + pod.Hostname + " /etc/hosts": "1\n",
		"stat -c %a /dev/shm; grep -c ' /dev/shm ' /proc/mounts": "1777\n1\n",
	} {
		if got := string(n.exec(id, shell(command)...).GetStdout()); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

// dns_config without a word is not "no name servers": the node's are copied, as without it.
func TestEmptyDNSConfigIsTheNodes(t *testing.T) {
	n, image := readyNode(t, options{})
	want, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	pod := n.podConfig()
	pod.DnsConfig = &cri.DNSConfig{}
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	if got := string(n.exec(id, "cat", "/etc/resolv.conf").GetStdout()); got != string(want) {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
}

// A pod in all of the node's namespaces. It did not start where the node has no
// /dev/mqueue.
func TestHostNamespaces(t *testing.T) {
	n, image := readyNode(t, options{})
	node := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	pod := n.podConfig()
	pod.Hostname, pod.Linux.SecurityContext.NamespaceOptions = "", node
	config := n.containerConfig(image, "sleep", "99")
	config.Linux.SecurityContext.NamespaceOptions = node
	id := n.runContainer(n.runPod(pod), pod, config)
	out := string(n.exec(id, shell("for kind in net ipc pid uts; do readlink /proc/self/ns/$kind; done")...).GetStdout())
	for _, kind := range []string{"net", "ipc", "pid", "uts"} {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || !strings.Contains(out, own) {
			t.Errorf("%s is not the node's, %s: %s, %v", kind, own, out, err)
		}
	}
}

// The kubelet asks for an ID, and shows people the name that it is answered.
func TestContainerIsToldWithTheNameOfItsImage(t *testing.T) {
	n, image := readyNode(t, options{})
	tag := n.imageStatus(image).GetRepoTags()[0]
	pod := n.podConfig()
	box := n.runPod(pod)
	for _, tt := range []struct{ specified, want string }{{"", tag}, {"busybox:as-the-pod-says", "busybox:as-the-pod-says"}} {
		config := n.containerConfig(image, "true")
		config.Image.UserSpecifiedImage = tt.specified
		id := n.create(box, pod, config)
		list, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: id}})
		if err != nil || len(list.GetContainers()) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		for _, got := range []*cri.ImageSpec{n.container(id).GetImage(), list.GetContainers()[0].GetImage()} {
			if got.GetImage() != tt.want || got.GetUserSpecifiedImage() != tt.specified {
				t.Errorf("specified %q: image %v, want %s", tt.specified, got, tt.want)
			}
		}
		if ref := n.container(id).GetImageRef(); !strings.HasPrefix(ref, strings.TrimSuffix(tag, ":v1")+"@sha256:") {
			t.Errorf("image ref %s", ref)
		}
	}
}
