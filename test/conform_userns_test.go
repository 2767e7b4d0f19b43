package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformUsersCases() []conformCase {
	const options = "NamespaceOption.userns_options"
	return []conformCase{
		{"users own what is in the pod", []string{options, "UserNamespace.mode", "UserNamespace.uids", "UserNamespace.gids"}, nil, usersOwn},
	}
}

const mappedLength = 64 << 10

// usersFrom is a user namespace as the kubelet makes them.
func usersFrom(host uint32) *cri.UserNamespace {
	return &cri.UserNamespace{
		Mode: cri.NamespaceMode_POD,
		Uids: []*cri.IDMapping{{HostId: host, Length: mappedLength}}, Gids: []*cri.IDMapping{{HostId: host + mappedLength, Length: mappedLength}},
	}
}

func podUsers(users *cri.UserNamespace) func(*cri.PodSandboxConfig) {
	return func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users }
}

// wantOwner looks from the node at what a container has made.
func (c *conform) wantOwner(path string, uid, gid uint32) {
	c.t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		c.t.Error(err)
		return
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
		c.t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// upper is the directory on the node with what a container in a user namespace has written.
func (c *conform) upper(id string) string {
	c.t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, c.path("run/containers/"+id+"/rootfs")) {
			_, rest, _ := strings.Cut(line, "upperdir=")
			path, _, _ := strings.Cut(rest, ",")
			if !filepath.IsAbs(path) {
				path = filepath.Join(c.path("storage/overlay"), path)
			}
			return path
		}
	}
	c.t.Fatalf("the root file system of %s is not mounted", id)
	return ""
}

// Root inside is root of the image's files and of the pod's namespaces, and nobody on
// the node. Pods with other maps share the image.
func usersOwn(c *conform) {
	for _, base := range []uint32{1 << 20, 1 << 24} {
		users := usersFrom(base)
		box, pod := c.pod(func(p *cri.PodSandboxConfig) {
			podUsers(users)(p)
			p.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024", "kernel.shmmni": "77"}
		})
		config := c.containerConfig(c.image, shell("echo out > /dev/stdout; echo err > /dev/stderr; exec sleep 3600")...)
		config.WorkingDir = "/made/for/it"
		config.Linux.SecurityContext.SupplementalGroups = []int64{2000}
		config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
		id := c.runContainer(box, pod, config)
		c.awaitLog(logOf(pod, config), "stdout F out")
		c.awaitLog(logOf(pod, config), "stderr F err")
		c.sees(id, "tr -s ' ' < /proc/self/uid_map", fmt.Sprintf(" 0 %d %d\n", base, mappedLength))
		c.sees(id, "tr -s ' ' < /proc/self/gid_map", fmt.Sprintf(" 0 %d %d\n", base+mappedLength, mappedLength))
		c.sees(id, "id -u; id -G", "0\n0 2000\n")
		c.sees(id, "stat -c %u:%g / /etc /bin/busybox . /dev/shm /etc/resolv.conf", strings.Repeat("0:0\n", 6))
		c.sees(id, "pwd; touch f; chown 77:78 f; stat -c %u:%g f", "/made/for/it\n77:78\n")
		c.sees(id, "echo x > /bin/new && rm /bin/yes && cat /bin/new", "x\n")
		c.sees(id, "touch /dev/shm/x && echo x >> /etc/hosts && echo > /dev/null && echo ok", "ok\n")
		c.sees(id, "cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname", "77\n1024\n"+pod.Hostname+"\n")
		c.sees(id, "nc -l -p 80 & sleep 0.2; netstat -ltn | grep -c :80", "1\n")
		c.sees(id, "ls -d /sys/class/net/eth0; grep -c ' /sys sysfs ro' /proc/mounts", "/sys/class/net/eth0\n1\n")
		upper := c.upper(id)
		c.wantOwner(upper+"/made/for/it", base, base+mappedLength)
		c.wantOwner(upper+"/made/for/it/f", base+77, base+mappedLength+78)
		c.wantOwner(upper+"/bin/new", base, base+mappedLength)
		for _, kind := range []string{"user", "net", "ipc", "uts"} {
			own, err := os.Readlink("/proc/self/ns/" + kind)
			if inside := strings.TrimSpace(string(c.exec(id, "readlink", "/proc/self/ns/"+kind).GetStdout())); err != nil || inside == own || inside == "" {
				c.t.Errorf("%s namespace %q, the node's is %q, %v", kind, inside, own, err)
			}
		}
		if got := c.sandbox(box).GetLinux().GetNamespaces().GetOptions().GetUsernsOptions(); got.String() != users.String() {
			c.t.Errorf("sandbox status: %v", got)
		}
	}
}
