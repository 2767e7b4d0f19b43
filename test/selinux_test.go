package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// haveSELinux tells whether the kernel has it.
func haveSELinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// label is the SELinux context of a file on the node, without the NUL at its end.
func label(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

// context is what a command in the container runs as.
func (n *node) context(id string) string {
	n.t.Helper()
	return strings.Trim(string(n.exec(id, "cat", "/proc/self/attr/current").GetStdout()), "\x00\n")
}

func level(context string) string {
	parts := strings.SplitN(context, ":", 4)
	return parts[len(parts)-1]
}

const (
	labelled = "system_u:system_r:container_t:s0:c"
	files    = "system_u:object_r:container_file_t:"
)

// Pods have categories of their own, containers of one pod the same, and all that they
// write has them, too; a restart of the daemon changes nothing of it.
func TestSELinuxKeepsPodsApart(t *testing.T) {
	if !haveSELinux() {
		t.Skip("the kernel has no SELinux")
	}
	n, image := readyNode(t, options{env: []string{"CONTAINER_SELINUX=true"}})
	pod, other := n.podConfig(), n.podConfig()
	pod.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	box, otherBox := n.runPod(pod), n.runPod(other)
	config := n.containerConfig(image, shell("cat /proc/self/attr/current; echo; exec sleep 999")...)
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	first := n.runContainer(box, pod, config)
	own := n.context(first)
	if !strings.HasPrefix(own, labelled) {
		t.Fatalf("the context is %q", own)
	}
	n.awaitLog(logOf(pod, config), own) // of the first process, as of a command
	if theirs := n.context(n.runContainer(otherBox, other, n.containerConfig(image, "sleep", "999"))); level(theirs) == level(own) {
		t.Errorf("two pods have %s", own)
	}
	if pause := string(n.exec(first, "cat", "/proc/1/attr/current").GetStdout()); strings.Trim(pause, "\x00\n") != own {
		t.Errorf("the pod's own process has %q", pause)
	}
	mounts := string(n.exec(first, "cat", "/proc/self/mountinfo").GetStdout())
	for _, at := range []string{" / / ", " /dev/shm "} {
		found := false
		for line := range strings.Lines(mounts) {
			found = found || strings.Contains(line, at) && strings.Contains(line, `context="`+files+level(own)+`"`) ||
				strings.Contains(line, at) && strings.Contains(line, `context=`+files+level(own))
		}
		if !found {
			t.Errorf("%s has not the pod's label:\n%s", at, mounts)
		}
	}
	for _, name := range []string{"resolv.conf", "hostname", "hosts"} {
		if got := label(t, n.path("run/pods/"+box+"/"+name)); got != files+level(own) {
			t.Errorf("%s has the label %s", name, got)
		}
	}
	n.stop()
	n.start()
	again := n.containerConfig(image, "sleep", "999")
	if got := n.context(n.runContainer(box, pod, again)); got != own || n.context(first) != own {
		t.Errorf("after a restart of the daemon: %s, was %s", got, own)
	}
}

// selinux_options of pod and container, privileged, namespaces of the node.
func TestSELinuxOptions(t *testing.T) {
	if !haveSELinux() {
		t.Skip("the kernel has no SELinux")
	}
	n, image := readyNode(t, options{env: []string{"CONTAINER_SELINUX=true"}})
	pod := n.podConfig()
	pod.Linux.SecurityContext.Privileged = true
	pod.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Level: "s0:c1,c2"}
	box := n.runPod(pod)
	for name, tt := range map[string]struct {
		options    *cri.SELinuxOption
		privileged bool
		want       string
	}{
		"the pod's":      {nil, false, labelled + "1,c2"},
		"level":          {&cri.SELinuxOption{Level: "s0:c3,c4"}, false, labelled + "3,c4"},
		"type":           {&cri.SELinuxOption{Type: "initrc_t"}, false, "system_u:system_r:initrc_t:s0:c1,c2"},
		"all":            {&cri.SELinuxOption{User: "system_u", Role: "system_r", Type: "initrc_t", Level: "s0:c5"}, false, "system_u:system_r:initrc_t:s0:c5"},
		"privileged":     {nil, true, ""},
		"and its option": {&cri.SELinuxOption{Type: "container_t"}, true, ""},
	} {
		config := n.containerConfig(image, "sleep", "999")
		config.Linux.SecurityContext.SelinuxOptions, config.Linux.SecurityContext.Privileged = tt.options, tt.privileged
		got := n.context(n.runContainer(box, pod, config))
		if tt.want != "" && got != tt.want || tt.want == "" && strings.Contains(got, "container_t") {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	config := n.containerConfig(image, "true")
	config.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Type: "absent_t"}
	_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "selinux_options") || !strings.Contains(err.Error(), "absent_t") {
		t.Errorf("a type that the policy does not have: %v", err)
	}
	bad := n.podConfig()
	bad.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{User: "a:b"}
	if _, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: bad}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "selinux_options.user") {
		t.Errorf("a user that is none: %v", err)
	}
	host := n.podConfig()
	host.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	id := n.runContainer(n.runPod(host), host, n.containerConfig(image, "sleep", "999"))
	if got := n.context(id); strings.Contains(got, "container_t") {
		t.Errorf("on the node's network: %s", got)
	}
}

// Mount.selinux_relabel gives a volume the pod's label, and only then.
func TestSELinuxRelabel(t *testing.T) {
	if !haveSELinux() {
		t.Skip("the kernel has no SELinux")
	}
	n, image := readyNode(t, options{env: []string{"CONTAINER_SELINUX=true"}})
	dir := t.TempDir()
	for _, name := range []string{"asked/below/file", "not/file"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before := label(t, dir+"/not/file")
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "999")
	config.Mounts = []*cri.Mount{
		{HostPath: dir + "/asked", ContainerPath: "/asked", SelinuxRelabel: true}, {HostPath: dir + "/not", ContainerPath: "/not"},
	}
	own := n.context(n.runContainer(box, pod, config))
	for _, path := range []string{"asked", "asked/below", "asked/below/file"} {
		if got := label(t, filepath.Join(dir, path)); got != files+level(own) {
			t.Errorf("%s has the label %s, the pod %s", path, got, own)
		}
	}
	if got := label(t, dir+"/not/file"); got != before {
		t.Errorf("a volume that did not ask has the label %s", got)
	}
	for _, path := range []string{"/etc", "/bin", "/usr"} {
		was := label(t, path)
		config := n.containerConfig(image, "true")
		config.Mounts = []*cri.Mount{{HostPath: path, ContainerPath: "/data", SelinuxRelabel: true}}
		_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "selinux_relabel") || label(t, path) != was {
			t.Errorf("%s: %v, label %s", path, err, label(t, path))
		}
	}
}

// What pods say of SELinux does not keep them from a node without it: it is told, once.
func TestSELinuxOptionsOnANodeWithoutIt(t *testing.T) {
	o := options{}
	if !haveSELinux() {
		o.env = []string{"CONTAINER_SELINUX=true"} // the kernel decides
	}
	n, image := readyNode(t, o)
	pod := n.podConfig()
	pod.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Level: "s0:c1,c2"}
	box := n.runPod(pod)
	for range 2 {
		config := n.containerConfig(image, "sleep", "999")
		config.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Level: "s0:c1,c2"}
		config.Mounts = []*cri.Mount{{HostPath: "/etc", ContainerPath: "/data", SelinuxRelabel: true}}
		n.runContainer(box, pod, config)
	}
	for _, message := range []string{"pod test/" + pod.GetMetadata().GetName() + " has selinux_options", "selinux_options of a container of pod test/" + pod.GetMetadata().GetName()} {
		if count := strings.Count(n.output.String(), message); count != 1 {
			t.Errorf("%q is told %d times", message, count)
		}
	}
}
