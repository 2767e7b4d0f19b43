package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimes is the directory of current runtimes: Debian's runc and crun do not know idmapped mounts.
func runtimes() string {
	if dir := os.Getenv("CRIO_RUNTIMES"); dir != "" {
		return dir
	}
	return filepath.Join(os.Getenv("CRIO_BUILD"), "runtimes")
}

// eachRuntime runs a test with a node for each of the current runtimes, whose directory
// the root of a user namespace can get to, as it can to /run.
func eachRuntime(t *testing.T, test func(n *node, image string)) {
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(runtimes(), name)
			if _, err := os.Stat(path); err != nil {
				t.Fatalf("a current %s: %v: set CRIO_RUNTIMES", name, err)
			}
			n, image := readyNode(t, options{conf: fmt.Sprintf("[crio.runtime]\ndefault_runtime = %q\n[crio.runtime.runtimes.%s]\nruntime_path = %q\n", name, name, path)})
			for dir := n.dir; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
				if err := os.Chmod(dir, 0o711); err != nil {
					t.Fatal(err)
				}
			}
			test(n, image)
		})
	}
}

const mapped = 64 << 10

// usersFrom is a user namespace as the kubelet makes them.
func usersFrom(host uint32) *cri.UserNamespace {
	return &cri.UserNamespace{
		Mode: cri.NamespaceMode_POD,
		Uids: []*cri.IDMapping{{HostId: host, Length: mapped}}, Gids: []*cri.IDMapping{{HostId: host + mapped, Length: mapped}},
	}
}

// usersPod is a pod with a user namespace; in makes containers of it.
func (n *node) usersPod(users *cri.UserNamespace) *cri.PodSandboxConfig {
	pod := n.podConfig()
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	return pod
}

func (n *node) inUsers(users *cri.UserNamespace, image string, command ...string) *cri.ContainerConfig {
	config := n.containerConfig(image, command...)
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	return config
}

// wantOutput runs commands in a container and compares what they write.
func (n *node) wantOutput(id string, commands map[string]string) {
	n.t.Helper()
	for command, want := range commands {
		got := n.exec(id, shell(command)...)
		if string(got.GetStdout()) != want {
			n.t.Errorf("%s: %q, want %q; %s", command, got.GetStdout(), want, got.GetStderr())
		}
	}
}

// wantOwner looks from the node at what a container has made.
func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// Root inside is root of the image's files, of its network and of nothing else; two pods
// with other maps use the same image.
func TestUserNamespace(t *testing.T) {
	eachRuntime(t, func(n *node, image string) {
		for _, base := range []uint32{1 << 20, 1 << 24} {
			users := usersFrom(base)
			pod := n.usersPod(users)
			pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024", "kernel.shmmni": "77"}
			box := n.runPod(pod)
			config := n.inUsers(users, image, shell("echo out > /dev/stdout; echo err > /dev/stderr; exec sleep 99")...)
			config.WorkingDir = "/made/for/it"
			config.Linux.SecurityContext.SupplementalGroups = []int64{2000}
			id := n.runContainer(box, pod, config)
			n.awaitLog(logOf(pod, config), "stderr F err")
			n.awaitLog(logOf(pod, config), "stdout F out")
			n.wantOutput(id, map[string]string{
				"cat /proc/self/uid_map | tr -s ' '":                                                         fmt.Sprintf(" 0 %d %d\n", base, mapped),
				"cat /proc/self/gid_map | tr -s ' '":                                                         fmt.Sprintf(" 0 %d %d\n", base+mapped, mapped),
				"id -u; id -G":                                                                               "0\n0 2000\n",
				"stat -c %u:%g / /etc /bin/busybox . /dev/shm /etc/resolv.conf":                              strings.Repeat("0:0\n", 6),
				"pwd; touch f; chown 77:78 f; stat -c %u:%g f":                                               "/made/for/it\n77:78\n",
				"echo x > /bin/new && rm /bin/yes && cat /bin/new":                                           "x\n",
				"touch /dev/shm/x && echo x >> /etc/hosts && echo ok":                                        "ok\n",
				"echo > /dev/null && mkdir /tmp/m && mount -t tmpfs none /tmp/m 2>/dev/null || echo refused": "refused\n",
				"cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname":        "77\n1024\n" + pod.Hostname + "\n",
				"httpd -p 80 && echo bound":                                                                  "bound\n",
				"ls /proc/1/fd >/dev/null && ls -d /sys/class/net/eth0":                                      "/sys/class/net/eth0\n",
			})
			upper := upperPath(t, n, id)
			wantOwner(t, upper+"/made/for/it", base, base+mapped)
			wantOwner(t, upper+"/made/for/it/f", base+77, base+mapped+78)
			wantOwner(t, upper+"/bin/new", base, base+mapped)
			for _, kind := range []string{"user", "net", "ipc", "uts"} {
				inside := strings.TrimSpace(string(n.exec(id, "readlink", "/proc/self/ns/"+kind).GetStdout()))
				if own, err := os.Readlink("/proc/self/ns/" + kind); err != nil || inside == own || inside == "" {
					t.Errorf("%s namespace %q, the node's is %q, %v", kind, inside, own, err)
				}
			}
			if got := n.sandbox(box).GetLinux().GetNamespaces().GetOptions().GetUsernsOptions(); got.String() != users.String() {
				t.Errorf("sandbox status: %v", got)
			}
		}
	})
}

// upperPath is the directory on the node with what a container has written.
func upperPath(t *testing.T, n *node, id string) string {
	t.Helper()
	return filepath.Join(filepath.Dir(mergedPath(t, n, id)), "diff")
}
